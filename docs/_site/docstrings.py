"""The package's docstrings are plain text with `code`, `>>> examples` and Google's sections. Here
they become the reStructuredText that Sphinx and napoleon expect."""

import re
from typing import Any

from selfsight.config import Config

SECTION = re.compile(
    r"(Args|Raises|Returns|Source|Attributes|Class attributes|Example|differs): *(\S.*)?$"
)
PARSED = ("Raises", "Returns")  # by napoleon; the others are paragraphs


def process(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Replace the lines of a docstring; a listener of `autodoc-process-docstring`."""
    lines[:] = with_sections(escaped(lines))


def signature(
    _app: Any, _what: str, _name: str, obj: Any, _options: Any, arguments: str | None, returns: Any
) -> tuple[str, Any] | None:
    """The arguments as they are shown; a listener of `autodoc-process-signature`. A configuration
    class has none, for its keys are in a table."""
    if isinstance(obj, type) and issubclass(obj, Config):
        return "", None
    # Sphinx cannot parse the name that dataclasses give to a default that is made
    return None if arguments is None else (arguments.replace("<factory>", "..."), returns)


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
    indent: str | None = None  # of the lines that go on a section which began on one line
    for line in lines:
        found = SECTION.match(line)
        if found is not None:
            indent = None if found[2] is None else "    " if found[1] in PARSED else ""
            done += ["", *_section(found[1], found[2])]
            continue
        if not line.strip() or line.lstrip().startswith(">>>"):
            indent = None
        done.append(line if indent is None else indent + line.strip())
    return done


def _section(name: str, text: str | None) -> list[str]:
    if text is None:
        return [f"{name}:"]
    if name == "Raises":  # "UserError for ...; Interrupted after ..."
        kinds = re.split(r"; (?=[A-Z]\w+ )", text)
        return ["Raises:", *(re.sub(r"^(\w+):? ?", r"    \1: ", kind) for kind in kinds)]
    return ["Returns:", f"    {text}"] if name == "Returns" else [f"**{name}:** {text}"]
