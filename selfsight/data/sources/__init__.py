"""The kinds of sources that images are read from."""
