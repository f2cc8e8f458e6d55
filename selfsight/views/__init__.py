"""Recipes of views and the batched views that they make."""
