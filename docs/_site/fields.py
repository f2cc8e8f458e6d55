"""The keys of a configuration class: name, type, default, and the comment beside it in the code."""

import ast
import functools
import inspect
import io
import re
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from selfsight.config import Config

BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def table(cls: type[Config], prefix: str = "") -> str:
    """The keys of a class as a Markdown table, those of the sections in it below their own."""
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, field, comment in keys(cls, prefix):
        cells = (f"`{key}`", f"`{_type(field)}`", f"`{_default(field)}`", plain(comment))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def keys(cls: type[Config], prefix: str = "") -> Iterator[tuple[str, FieldInfo, str]]:
    """(dotted key, field, comment) of every key, sections opened."""
    said = comments(cls)
    for name, field in cls.model_fields.items():
        section = section_of(field)
        if section is None or (not field.is_required() and field.default is None):
            yield prefix + name, field, said.get(name, "")
        if section is not None:
            yield from keys(section, f"{prefix}{name}.")


def plain(text: str) -> str:
    """Text of a help or a comment as Markdown: stars and brackets are no markup, an option is code.

    >>> plain("runs/<name>, as `a*b` with --run")
    'runs/\\\\<name>, as `a*b` with `--run`'
    """
    parts = re.split(r"(`[^`]*`|--[\w-]+)", text)
    parts[::2] = [re.sub(r"[*_<\[\]]", r"\\\g<0>", part) for part in parts[::2]]
    parts[1::2] = [part if part.startswith("`") else f"`{part}`" for part in parts[1::2]]
    return "".join(parts)


def section_of(field: FieldInfo) -> type[Config] | None:
    """The configuration class that a key is a section of; None for a key with a value."""
    members = _members(field.annotation)
    found = [kind for kind in members if isinstance(kind, type) and issubclass(kind, Config)]
    return found[0] if len(found) == 1 else None


@functools.cache
def comments(cls: type[Config]) -> dict[str, str]:
    """The comments of a class's keys: in the lines above a key, then at the end of its own."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, Config) and base is not Config:
            said = _comments_in(textwrap.dedent(inspect.getsource(base)))
            found |= {key: text for key, text in said.items() if text}
    return found


def _comments_in(source: str) -> dict[str, str]:
    """
    >>> _comments_in("class C:\\n    # a side\\n    x: int = 1  # in pixels\\n    y: int = 2\\n")
    {'x': 'a side; in pixels', 'y': ''}
    """
    said: dict[int, str] = {}
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.removeprefix("#").strip()
            said[token.start[0]] = text.removeprefix("noqa").strip()
    (body,) = ast.parse(source).body
    found = {}
    for node in body.body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = node.lineno - 1
            while lines[above - 1].lstrip().startswith("#"):
                above -= 1
            first = " ".join(said[n] for n in range(above + 1, node.lineno))
            last = " ".join(said[n] for n in range(node.lineno, node.end_lineno + 1) if n in said)
            found[node.target.id] = "; ".join(filter(None, (first, last)))
    return found


def _members(annotation: Any) -> list[Any]:
    """The types that an annotation is a choice of."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [m for a in typing.get_args(annotation) for m in _members(a)]
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    return [annotation]


def _type(field: FieldInfo) -> str:
    """As `int ≥ 1 or null`, `'sgd' or 'adamw'`, `list of mapping`."""
    members = _members(field.annotation)
    text = " or ".join(_name(kind) for kind in members if kind is not type(None))
    for bound in field.metadata:
        for name, sign in BOUNDS.items():
            value = getattr(bound, name, None)
            text += f" {sign} {value}" if value is not None else ""
    return f"{text} or null" if type(None) in members else text


def _name(kind: Any) -> str:
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if kind is type(None):
        return "null"
    if origin is typing.Literal:
        return " or ".join(map(repr, inside))
    if origin in (list, tuple):
        of = ", ".join(" or ".join(map(_name, _members(x))) for x in inside if x is not Ellipsis)
        return f"[{of}]" if origin is tuple and Ellipsis not in inside else f"list of {of}"
    if origin is dict or (isinstance(kind, type) and issubclass(kind, Config)):
        return "mapping"
    return re.sub(r"^.*\.", "", getattr(kind, "__name__", str(kind)))


def _default(field: FieldInfo) -> str:
    """As YAML would hold it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, tuple):
        return str(list(value))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value.tree() if isinstance(value, Config) else value)
