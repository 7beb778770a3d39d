"""Voxels behind a small header: NRRD, MetaImage, NIfTI. Touches local files."""
