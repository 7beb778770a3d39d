// Eigenvalues of symmetric matrices, in decreasing order, and measures of ridges made of them.
// Formulas and the order of operations are those of hessians.py. The result takes the place of the
// first element.

enum Measure { EIGENVALUE, FRANGI, SATO, MEIJERING };

__device__ inline void eigenvalues_of_two(double a, double b, double d, double* values) {
    double middle = (a + b) / 2, half = (a - b) / 2;
    double root = sqrt(d * d + half * half);
    values[0] = middle + root;
    values[1] = middle - root;
}

__device__ inline void eigenvalues_of_three(
    double a, double b, double c, double d, double e, double f, double* values
) {
    double q = (a + b + c) / 3;
    a -= q, b -= q, c -= q;
    double p = sqrt((a * a + b * b + c * c + 2 * (d * d + e * e + f * f)) / 6);
    double inverse = p != 0 ? 1 / p : 0;
    a *= inverse, b *= inverse, c *= inverse;
    d *= inverse, e *= inverse, f *= inverse;
    double r = (a * (b * c - f * f) - d * (d * c - f * e) + e * (d * f - b * e)) / 2;
    double t = fabs(r);
    if (t > 1) t = 1;
    double x = 0.866025 + t * (0.160693 - t * 0.026718);
    for (int step = 0; step < 3; ++step) x = (8 * x * x * x + t) / (12 * x * x - 3);
    double rest = 1 - x * x;
    double y = sqrt(3 * (rest < 0 ? 0 : rest));
    double large = 2 * x, small = -x - y;
    values[0] = q + p * (r < 0 ? -small : large);
    values[1] = q + p * (r < 0 ? x - y : y - x);
    values[2] = q + p * (r < 0 ? -large : small);
}

__device__ inline double frangi(
    const double* values, int axes, double alpha, double beta, double gamma
) {
    double large = values[0], last = values[axes - 1], middle = axes == 3 ? values[1] : large;
    if (middle <= 0 || fabs(last) > middle) return 0;
    double squares = large * large + last * last;
    double blob = last / sqrt(middle * large);
    double shape = exp(-(blob * blob) / (2 * beta * beta));
    if (axes == 3) {
        squares += middle * middle;
        double plate = middle / large;
        shape *= 1 - exp(-(plate * plate) / (2 * alpha * alpha));
    }
    return shape * (1 - exp(-squares / (2 * gamma * gamma)));
}

__device__ inline double sato(const double* values, int axes, double factor) {
    double one = values[0] < 0 ? 0 : values[0];
    if (axes == 2) return factor * one;
    double two = values[1] < 0 ? 0 : values[1];
    return factor * sqrt(one * two);
}

__device__ inline double meijering(const double* values, int axes, double factor, double alpha) {
    double one = values[0], last = values[axes - 1], middle = axes == 3 ? values[1] : 0;
    double total = one + last + middle;
    double high = one + alpha * (total - one), low = last + alpha * (total - last);
    double chosen = fabs(low) > fabs(high) ? low : high;
    return factor * (chosen < 0 ? 0 : chosen);
}

extern "C" __global__ void ridges(
    Target* h00, Index count, const Target* h01, const Target* h02, const Target* h11,
    const Target* h12, const Target* h22, int axes, double sign, int measure, double first,
    double second, double third
) {
    Index n = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= count) return;
    double values[3];
    double a = sign * h00[n], b = sign * h11[n], d = sign * h01[n];
    if (axes == 2)
        eigenvalues_of_two(a, b, d, values);
    else
        eigenvalues_of_three(a, b, sign * h22[n], d, sign * h02[n], sign * h12[n], values);
    double result;
    if (measure == EIGENVALUE) result = values[(int)first];
    else if (measure == FRANGI) result = frangi(values, axes, first, second, third);
    else if (measure == SATO) result = sato(values, axes, first);
    else result = meijering(values, axes, first, second);
    h00[n] = (Target)result;
}
