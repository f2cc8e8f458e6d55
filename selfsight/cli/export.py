"""Commands that hand an encoder to other libraries."""
