"""gpublocks: run a function over a volume that does not fit in memory, block by block."""
