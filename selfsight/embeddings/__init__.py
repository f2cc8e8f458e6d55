"""Features of images as a table that other tools read: written, searched, grouped."""
