"""Packs: images in a few memory-mapped files."""
