"""TIFF: pages, strips and tiles, series of planes, what tags and metadata say. Touches files."""
