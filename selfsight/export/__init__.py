"""An encoder in another library's own format, verified there."""
