// The voxel of one rank among those of a footprint: the bits of its key are found one by one, by
// counting the voxels whose keys are not above one in the middle of those that are left.

enum Kind { WITHOUT_SIGN, WITH_SIGN, FLOATING };

// An unsigned integer in the order of the voxels, of the bits of one; NaN is above everything.
__device__ inline Source key_of(Source bits, int kind, Source infinity) {
    const Source sign = (Source)((Source)1 << (8 * sizeof(Source) - 1));
    const Source all = (Source)~(Source)0;
    if (kind == WITHOUT_SIGN) return bits;
    if (kind == WITH_SIGN) return bits ^ sign;
    if ((bits & (all ^ sign)) > infinity) return all;
    return bits & sign ? bits ^ all : bits | sign;
}

__device__ inline Source bits_of(Source key, int kind) {
    const Source sign = (Source)((Source)1 << (8 * sizeof(Source) - 1));
    const Source all = (Source)~(Source)0;
    if (kind == WITHOUT_SIGN) return key;
    if (kind == WITH_SIGN || key & sign) return key ^ sign;
    return key ^ all;
}

extern "C" __global__ void rank(
    const Source* source, Target* target, Index count, const Source* special, int kind,
    const long long* shape, const long long* halo, int axes,
    const long long* offsets, const long long* steps, int size, int rank, int mode
) {
    Index n = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= count) return;
    const Source outside = special[0], infinity = special[1];
    bool inside = true;
    Index rest = n;
    for (int axis = axes - 1; axis >= 0; --axis) {
        Index z = rest % (Index)shape[axis];
        rest /= (Index)shape[axis];
        inside = inside && z >= halo[axis] && z + halo[axis] < shape[axis];
    }
    Source found = 0;
    for (int bit = 8 * sizeof(Source) - 1; bit >= 0; --bit) {
        const Source step = (Source)((Source)1 << bit);
        const Source middle = (Source)(found + (Source)(step - 1));
        int below = 0;
        for (int k = 0; k < size && below <= rank; ++k) {
            Source seen = outside;
            if (inside) {
                seen = source[n + (Index)steps[k]];
            } else {
                Index at = 0, stride = 1;
                rest = n;
                for (int axis = axes - 1; axis >= 0; --axis) {
                    const Index length = (Index)shape[axis];
                    Index z = rest % length + (Index)offsets[k * axes + axis];
                    rest /= length;
                    z = continued(z, length, mode);
                    at = z < 0 || at < 0 ? -1 : at + z * stride;
                    stride *= length;
                }
                if (at >= 0) seen = source[at];
            }
            below += key_of(seen, kind, infinity) <= middle;
        }
        if (below <= rank) found = (Source)(found + step);
    }
    target[n] = bits_of(found, kind);
}
