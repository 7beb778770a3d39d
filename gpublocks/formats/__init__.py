"""What the formats of `gpublocks.io` are made of, a folder for each family. Pure."""
