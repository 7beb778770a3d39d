"""What filters are computed with: the same voxels from CUDA, Numba, SciPy and NumPy."""
