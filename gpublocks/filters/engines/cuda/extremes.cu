// Minima and maxima of windows along an axis whose neighbours lie `inner` voxels apart.

extern "C" __global__ void extremes(
    const Source* source, Target* target, Index count, Index length, Index inner,
    int before, int size, int mode, double cval, int most
) {
    Index n = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= count) return;
    Index z = n / inner % length;
    const Source* line = source + (n - z * inner);
    Source found = voxel<Source>(line, z, length, inner, mode, cval);
    for (int k = 0; k < size; ++k)
        found = extreme(found, voxel<Source>(line, z - before + k, length, inner, mode, cval), most);
    target[n] = found;
}
