// Means of neighbours that are weighted by how far and how different they are, of any number of
// axes up to 8.

extern "C" __global__ void bilateral(
    const Source* source, Target* target, Index count, int axes, const long long* shapes,
    const double* spatial, int places, double factor, double most, int mode,
    double cval, int whole, double low, double high
) {
    Index n = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= count) return;
    const long long* lengths = shapes;
    const long long* sizes = shapes + axes;
    // From the first voxel of the window on, `step` counts all of its voxels.
    Index first[8], step[8];
    Index left = n;
    for (int axis = axes - 1; axis >= 0; --axis) {
        first[axis] = left % (Index)lengths[axis] - (Index)sizes[axis] / 2;
        left /= (Index)lengths[axis];
        step[axis] = 0;
    }
    double centre = (double)source[n], total = 0, weights = 0;
    for (int place = 0; place < places; ++place) {
        Index index = 0;
        for (int axis = 0; axis < axes && index >= 0; ++axis) {
            Index length = (Index)lengths[axis];
            Index z = continued(first[axis] + step[axis], length, mode);
            index = z < 0 ? -1 : index * length + z;
        }
        double value = index < 0 ? cval : (double)source[index];
        double x = (value - centre) * (value - centre) * factor;
        if (x < most) {
            x = -x;
            double weight =
                1 + x * (1 + x * (0.5 + x * (1.0 / 6 + x * (1.0 / 24 + x * (1.0 / 120)))));
            for (int square = 0; square < 10; ++square) weight *= weight;
            weight *= spatial[place];
            total += weight * value;
            weights += weight;
        }
        int axis = axes - 1;
        while (axis >= 0 && ++step[axis] == (Index)sizes[axis]) step[axis--] = 0;
    }
    double mean = total / weights;
    target[n] = whole ? (Target)nearest(mean, low, high) : (Target)mean;
}
