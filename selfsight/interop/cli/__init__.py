"""Commands that other systems' files need."""
