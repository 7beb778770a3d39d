// What all kernels begin with. Before it stand the types: Index, and those of voxels.
// One thread computes one voxel of the result. Sums are taken in double and in the order in which
// the other engines take them; the compiler is told not to fuse multiplications and additions.

enum Mode { REFLECT, MIRROR, NEAREST, CONSTANT };

// Which voxel of an axis stands for the one at z, beyond its ends; -1 for a constant.
__device__ inline Index continued(Index z, Index length, int mode) {
    if (z >= 0 && z < length) return z;
    if (mode == NEAREST) return z < 0 ? 0 : length - 1;
    if (mode == CONSTANT) return -1;
    Index period = mode == REFLECT ? 2 * length : 2 * length - 2;
    if (period < 1) return 0;
    z %= period;
    if (z < 0) z += period;
    Index back = mode == REFLECT ? period - 1 - z : period - z;
    return z < back ? z : back;
}

// The nearest integer, halves to even, within limits; 0 for what is no number.
__device__ inline double nearest(double value, double low, double high) {
    if (value != value) return 0;
    value = rint(value);
    return value < low ? low : value > high ? high : value;
}

// A voxel of an axis whose neighbours lie `inner` voxels apart, or what stands for it.
template <class T, class Source>
__device__ inline T voxel(
    const Source* line, Index z, Index length, Index inner, int mode, double cval
) {
    z = continued(z, length, mode);
    return z < 0 ? (T)cval : (T)line[z * inner];
}

// The lower or the higher one of two numbers; NaN if one is NaN.
template <class T>
__device__ inline T extreme(T found, T other, int most) {
    return other != other || (most ? other > found : other < found) ? other : found;
}
