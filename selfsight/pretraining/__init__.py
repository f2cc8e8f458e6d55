"""Pretraining as a typed function: its configuration, its parts, its job."""
