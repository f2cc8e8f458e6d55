"""Commands that come before a pretraining."""
