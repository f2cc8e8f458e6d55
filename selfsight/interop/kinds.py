"""Kinds of values: their names in messages, and the tests that values must pass."""

import builtins
import math
from collections.abc import Callable
from typing import Any


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def _are_numbers(x: Any) -> bool:
    return isinstance(x, list) and all(map(_is_number, x))


# name -> name in messages, test
KINDS = {
    "number": ("a number", _is_number),
    "positive": ("a number above 0", lambda x: _is_number(x) and x > 0),
    "whole": ("a whole number, 0 or more", lambda x: _is_number(x) and x == int(x) and x >= 0),
    "flag": ("true or false", lambda x: isinstance(x, bool)),
    "text": ("a string", lambda x: isinstance(x, str)),
    "numbers": ("a list of numbers", _are_numbers),
    "pair": ("[a, b], two numbers", lambda x: _are_numbers(x) and len(x) == 2),
    "triple": ("[a, b, c], three numbers", lambda x: _are_numbers(x) and len(x) == 3),
}


def find_kind(name: str) -> tuple[str, Callable[[Any], bool]]:
    """A kind of the table, or the types that a name lists, as '@int or @list' in INI files."""
    if name in KINDS:
        return KINDS[name]
    types = [getattr(builtins, word) for word in name.replace("@", "").split(" or ")]
    also = {int: float, tuple: list}
    return name, lambda x: type(x) in types or also.get(type(x)) in types
