"""The package's docstrings are plain text with `code`, `>>> examples` and Google's sections. Here
they become the reStructuredText that Sphinx and napoleon expect."""

import re
from typing import Any

from selfsight.config import Config

SECTION = re.compile(r"(Args|Raises|Returns|Source|Attributes|Class attributes): *(\S.*)?$")


def process(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Replace the lines of a docstring; a listener of `autodoc-process-docstring`."""
    lines[:] = with_sections(escaped(lines))


def without_keys(
    _app: Any, _what: str, _name: str, obj: Any, _options: Any, arguments: str, returns: str
) -> tuple[str, str] | None:
    """A configuration class is shown without its arguments, which are in a table of keys."""
    return ("", "") if isinstance(obj, type) and issubclass(obj, Config) else None


def escaped(lines: list[str]) -> list[str]:
    """What stands in formulas (`|z|`, `a * b`, `x_`) is text, and no markup.

    >>> escaped(["|z|^2 of `a|b`", ">>> 2 * 3", "6"])
    ['\\\\|z\\\\|^2 of `a|b`', '>>> 2 * 3', '6']
    """
    done, example = [], False
    for line in lines:
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        parts = [line] if example else re.split(r"(`[^`]*`)", line)
        parts[::2] = parts[::2] if example else [_escape(part) for part in parts[::2]]
        done.append("".join(parts))
    return done


def _escape(text: str) -> str:
    return re.sub(r"[|*]|(?<=\w)_(?!\w)", r"\\\g<0>", text)


def with_sections(lines: list[str]) -> list[str]:
    """A section on one line ("Raises: UserError for ...") as a heading and its content; every
    section after an empty line.

    >>> with_sections(["What it is. Raises: UserError if not.", "Args:", "    x: a number"])
    ['What it is.', '', 'Raises:', '    UserError: if not.', '', 'Args:', '    x: a number']
    """
    done: list[str] = []
    lines = [part for line in lines for part in re.split(r"(?<=[.:;)]) (?=Raises: )", line)]
    inline = False
    for line in lines:
        found = SECTION.match(line)
        if found is None:
            # a line that goes on below a section on one line belongs to it
            inline = inline and bool(line.strip()) and not line.lstrip().startswith(">>>")
            done.append(f"    {line.strip()}" if inline else line)
            continue
        name, text = found[1], found[2]
        inline = text is not None
        done += ["", *_section(name, text)]
    return done


def _section(name: str, text: str | None) -> list[str]:
    if text is None:
        return [f"{name}:"]
    if name == "Raises":
        return ["Raises:", "    " + re.sub(r"^(\w+)[,;]?:? ?", r"\1: ", text, count=1)]
    if name == "Returns":
        return ["Returns:", f"    {text}"]
    return [f"**{name}:** {text}"]
