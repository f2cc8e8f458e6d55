"""Tests for methods of your own."""

from selfsight.testing.contract import BrokenContract, check_method
from selfsight.testing.encoders import TinyEncoder, tiny_teacher, tiny_vit

__all__ = ["BrokenContract", "TinyEncoder", "check_method", "tiny_teacher", "tiny_vit"]
