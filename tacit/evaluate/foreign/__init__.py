"""Encoders that other libraries pretrained: all of their weights, or a clear refusal."""

from tacit.evaluate.foreign.formats import FORMATS, Format
from tacit.evaluate.foreign.load import Loaded, load_foreign

__all__ = ["FORMATS", "Format", "Loaded", "load_foreign"]
