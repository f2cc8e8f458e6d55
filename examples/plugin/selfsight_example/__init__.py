"""A method, an encoder and a source of images for Selfsight; pyproject.toml registers them."""
