// Weighted sums along an axis whose neighbours lie `inner` voxels apart.

enum Combine { SET, ADD, SUBTRACT, ADD_SQUARES };

extern "C" __global__ void correlate(
    const Source* source, Target* target, Index count, Index length, Index inner,
    const double* weights, int size, int symmetry, int mode, double cval,
    int whole, double low, double high, int combine
) {
    Index n = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= count) return;
    Index z = n / inner % length;
    const Source* line = source + (n - z * inner);
    Index first = z - size / 2;
    double sum;
    if (symmetry == 0) {
        sum = voxel<double>(line, first + size - 1, length, inner, mode, cval) * weights[size - 1];
        for (int k = 0; k < size - 1; ++k)
            sum += voxel<double>(line, first + k, length, inner, mode, cval) * weights[k];
    } else {
        sum = voxel<double>(line, z, length, inner, mode, cval) * weights[size / 2];
        for (int k = 0; k < size / 2; ++k) {
            double one = voxel<double>(line, first + k, length, inner, mode, cval);
            double other = voxel<double>(line, first + size - 1 - k, length, inner, mode, cval);
            sum += (symmetry > 0 ? one + other : one - other) * weights[k];
        }
    }
    Target value = whole ? (Target)nearest(sum, low, high) : (Target)sum;
    if (combine == SET) target[n] = value;
    else if (combine == ADD) target[n] = (Target)(target[n] + value);
    else if (combine == SUBTRACT) target[n] = (Target)(target[n] - value);
    else target[n] = (Target)(target[n] + value * value);
}
