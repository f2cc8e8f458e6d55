"""The text of a recipe: keys with the reason for each in a comment."""

import math
import shlex
import textwrap
from collections.abc import Iterable
from typing import Any

import yaml

from selfsight.data.config import PATHS
from selfsight.errors import UserError
from selfsight.suggest.choose import Choice
from selfsight.yaml_text import parse_yaml

WIDTH = 100  # of a line of prose


def flow(value: Any) -> str:
    """A value as YAML on one line.

    >>> flow({"size": 96, "crop_scale": (0.2, 1.0)})
    '{size: 96, crop_scale: [0.2, 1.0]}'
    """
    options = {"default_flow_style": True, "sort_keys": False, "width": math.inf}
    text = yaml.safe_dump([_plain(value)], allow_unicode=True, **options).strip()
    if not text.isprintable():  # PyYAML would not read back a next-line character, for one
        text = yaml.safe_dump([_plain(value)], **options).strip()
    return text[1:-1]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def argument(key: str, value: Any) -> str:
    """A key as an argument of a command in a shell.

    >>> argument("data.path", "my photos")
    "'data.path=my photos'"
    """
    return shlex.quote(key_value(key, value))


def key_value(key: str, value: Any) -> str:
    """A key and its value as a command reads them.

    >>> key_value("run", "8")
    "run='8'"
    """
    plain = isinstance(value, str) and (key in PATHS or _is_itself(value))
    return f"{key}={value if plain else flow(value)}"


def _is_itself(text: str) -> bool:
    """Whether YAML reads the text as this text, without quotes."""
    try:
        return parse_yaml(text, "") == text
    except UserError:
        return False


def comment(text: str) -> str:
    """One line that YAML reads as a comment, whatever names of files are in it."""
    return _escaped(" ".join(text.split()))


def _escaped(text: str) -> str:
    """Characters that break a line, or that no text file holds, as a programmer writes them."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )


def prose(lines: Iterable[str]) -> list[str]:
    """Comments of several lines each; those that begin with two spaces are commands, kept whole."""
    found = []
    for line in lines:
        if line.startswith("  "):
            found.append(f"# {_escaped(line)}")
            continue
        found += _wrapped(line, "# ", "#   " if line.startswith("- ") else "# ")
    return found


def _wrapped(text: str, first: str, later: str) -> list[str]:
    """Lines of at most WIDTH characters, but for longer words: paths are kept whole."""
    whole = {"break_long_words": False, "break_on_hyphens": False}
    indents = {"initial_indent": first, "subsequent_indent": later}
    return textwrap.wrap(comment(text), WIDTH, **indents, **whole)


def recipe_text(
    title: str, about: Iterable[str], base: tuple[str, str], choices: Iterable[Choice], end: Any
) -> str:
    """The whole recipe.

    Args:
        title: its first line; about, end: prose before and after the keys.
        base: the shipped recipe and why it is the one.
        choices: the keys that differ from it; those of a section are put together.
    """
    lines = [f"# {comment(title)}", *prose(about), *_lines("base", *base)]
    sections: dict[str, list[Choice]] = {}
    for choice in choices:
        sections.setdefault(choice.key.partition(".")[0], []).append(choice)
    for name, inside in sections.items():
        if inside[0].key == name:
            lines += _lines(name, inside[0].value, inside[0].why)
            continue
        lines.append(f"{name}:")
        for choice in inside:
            lines += _lines(choice.key.partition(".")[2], choice.value, choice.why, "  ")
    return "\n".join([*lines, *prose(end)]) + "\n"


def _lines(key: str, value: Any, why: str, indent: str = "") -> list[str]:
    """The key with the reason beside it, or above it where that would be too long a line."""
    line, beside = f"{indent}{key}: {flow(value)}", f"  # {comment(why)}"
    if len(line + beside) <= WIDTH:
        return [line + beside if why else line]
    return [*_wrapped(why, f"{indent}# ", f"{indent}# "), line]
