"""Encoders that other libraries pretrained: all of their weights, or a clear refusal."""

from selfsight.encoders.foreign.formats import FORMATS, Format
from selfsight.encoders.foreign.load import Loaded, load_foreign

__all__ = ["FORMATS", "Format", "Loaded", "load_foreign"]
