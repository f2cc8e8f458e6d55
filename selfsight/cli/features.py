"""Commands that write features."""
