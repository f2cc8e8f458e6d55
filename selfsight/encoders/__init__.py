"""Encoders: built by name, stored as a file, read from other libraries' weights."""
