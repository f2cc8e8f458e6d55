"""Frozen features and what can be read from them."""
