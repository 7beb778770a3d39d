// Minima and maxima of the voxels at given distances, in arrays of three axes.

extern "C" __global__ void footprint(
    const Source* source, Target* target, Index count, Index depth, Index height, Index width,
    const int* offsets, int size, int mode, double cval, int most, int begun
) {
    Index n = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= count) return;
    Index x = n % width, y = n / width % height, z = n / width / height;
    Source found = begun ? (Source)target[n] : (Source)0;
    for (int k = 0; k < size; ++k) {
        Index plane = continued(z + offsets[3 * k], depth, mode);
        Index line = continued(y + offsets[3 * k + 1], height, mode);
        Source other = (Source)cval;
        if (plane >= 0 && line >= 0) {
            const Source* row = source + (plane * height + line) * width;
            other = voxel<Source>(row, x + offsets[3 * k + 2], width, 1, mode, cval);
        }
        found = k || begun ? extreme(found, other, most) : other;
    }
    target[n] = found;
}
