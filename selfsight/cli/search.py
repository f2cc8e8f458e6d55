"""Commands that search and group features."""
