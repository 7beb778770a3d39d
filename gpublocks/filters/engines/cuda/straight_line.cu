// A straight line through single voxels, which are limited first.

extern "C" __global__ void straight_line(
    const Source* source, Target* target, Index count, double low, double high, double origin,
    double unit, double factor, double offset, int whole, double least, double most
) {
    Index n = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= count) return;
    double value = (double)source[n];
    value = value < low ? low : value > high ? high : value;
    value = (value - origin) / unit * factor + offset;
    target[n] = whole ? (Target)nearest(value, least, most) : (Target)value;
}
