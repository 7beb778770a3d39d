// Sums and means of windows along an axis whose neighbours lie `inner` voxels apart.

// The sum of 2^power voxels from `first` on: that of the halves of each stretch.
__device__ inline double stretch(
    const Source* line, Index first, int power, Index length, Index inner, int mode, double cval
) {
    double sums[32];
    int waiting = 0;
    for (int k = 0; k < 1 << power; ++k) {
        double sum = voxel<double>(line, first + k, length, inner, mode, cval);
        for (int done = k; done & 1; done >>= 1) sum = sums[--waiting] + sum;
        sums[waiting++] = sum;
    }
    return sums[0];
}

extern "C" __global__ void sums(
    const Source* source, Target* target, Index count, Index length, Index inner,
    int before, int size, int mode, double cval,
    int exact, double divisor, int whole, double low, double high
) {
    Index n = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= count) return;
    Index z = n / inner % length;
    const Source* line = source + (n - z * inner);
    Index first = z - before;
    if (exact) {
        long long sum = 0;
        for (int k = 0; k < size; ++k)
            sum += voxel<long long>(line, first + k, length, inner, mode, cval);
        if (divisor == 1) target[n] = (Target)sum;
        else target[n] = whole ? (Target)nearest(sum / divisor, low, high) : (Target)(sum / divisor);
    } else {
        double sum = 0;
        int done = 0;
        for (int power = 0; size >> power; ++power) {
            if (!(size >> power & 1)) continue;
            double part = stretch(line, first + done, power, length, inner, mode, cval);
            sum = done ? sum + part : part;
            done += 1 << power;
        }
        sum /= divisor;
        target[n] = whole ? (Target)nearest(sum, low, high) : (Target)sum;
    }
}
