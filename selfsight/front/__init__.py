"""Selfsight from Python: one's own parts and keywords in, runs and records out."""
