"""HDF5: datasets that are mapped, inflated or read by its library. Touches local files."""
