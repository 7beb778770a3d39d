"""Zarr and OME-Zarr: boxes of voxels, codecs, metadata, pyramids. Touches files and stores."""
