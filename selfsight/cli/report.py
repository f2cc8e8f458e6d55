"""Commands that show what a run learned."""
