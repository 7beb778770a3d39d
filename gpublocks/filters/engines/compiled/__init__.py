"""Filters in machine code, made by Numba. Nothing here is imported where Numba does not work."""
