"""The augmentations: batched, pure, with one parameter per image."""
