"""The typed INI format: lines `key = value@type`, first without a section, then in sections.

Types are int, float, str, bool, list and dict; the last two are Python literals. `#` starts a
comment, on its own line or after a type. An empty bool is false. A string with spaces at its ends,
a line break, or a part that looks like `@type` must be in quotes.
"""

import ast
import re
from dataclasses import dataclass, field
from typing import Any

from selfsight.config import Tree, near
from selfsight.errors import UserError

TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}
_BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}
_TYPED = re.compile(rf"@({'|'.join(TYPES)})\s*(?=#|$)")
_ANY_TYPE = re.compile(r"@(\w+)\s*(?:#.*)?$")
_SECTION = re.compile(r"\[\s*([A-Za-z_][\w-]*)\s*\]\s*(?:#.*)?")
_KEY = re.compile(r"[A-Za-z_][\w-]*")


@dataclass
class Ini:
    """A parsed file."""

    tree: Tree = field(default_factory=dict)  # a section is a mapping
    lines: dict[str, int] = field(default_factory=dict)  # dotted key -> its line number


def is_typed(line: str) -> bool:
    """Whether a line has the form `key = value@type`."""
    key, equals, value = line.strip().partition("=")
    return bool(equals and _KEY.fullmatch(key.strip()) and _TYPED.search(value))


def parse(text: str, name: str) -> Ini:
    """Parse a file; `name` is its path, for messages.

    Raises: UserError that lists each wrong line with the file, its number, and the reason.
    """
    ini, problems, prefix = Ini(), [], ""
    node = ini.tree
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff")), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            if line.startswith("["):
                prefix, node = "", ini.tree
            key, value = _parse_line(line)
            if f"{prefix}{key}" in ini.lines:
                first = ini.lines[f"{prefix}{key}"]
                raise ValueError(f"'{key}' is given twice, first in line {first}")
        except ValueError as error:
            problems.append(f"{name}:{number}: {error}")
            continue
        node[key] = value
        ini.lines[f"{prefix}{key}"] = number
        if line.startswith("["):
            prefix, node = f"{key}.", value
    if problems:
        raise UserError("\n".join(problems))
    return ini


def _parse_line(line: str) -> tuple[str, Any]:
    """Key and value; the name of a section and an empty mapping."""
    if line.startswith("["):
        if found := _SECTION.fullmatch(line):
            return found[1], {}
        raise ValueError(f"'{line}' is not a section; write [name]")
    key, equals, rest = line.partition("=")
    key = key.strip()
    if not equals:
        raise ValueError(f"'{line}': write key = value@type, [section], or # and a comment")
    if not _KEY.fullmatch(key):
        raise ValueError(f"'{key}' is not a key; use letters, digits, _ and -, first a letter or _")
    return key, parse_value(key, rest.strip())


def parse_value(key: str, text: str) -> Any:
    """The value of `value@type`. Raises: ValueError with the reason if it is wrong."""
    problem, fallback = "", []
    for found in _TYPED.finditer(text):
        raw, kind = text[: found.start()].strip(), found[1]
        try:
            value = _convert(raw, kind)
        except ValueError as error:
            problem = f"{key} = {raw}@{kind}: {error}"
            continue
        if text[:1] not in ("'", '"') or (kind == "str" and _quoted(raw) is not None):
            return value
        fallback.append(value)  # the type may be inside the quotes: look for a later one
    if fallback:  # a string that starts with a quotation mark and does not end with it
        return fallback[0]
    raise ValueError(problem or _type_problem(key, text))


def _type_problem(key: str, text: str) -> str:
    named = _ANY_TYPE.search(text)
    if named and named[1] not in TYPES:
        hint = near(named[1], TYPES) or f" Known: {', '.join(TYPES)}"
        return f"{key} = {text}: no such type '{named[1]}'.{hint}"
    return f"{key} = {text}: has no type; write {key} = value@type, such as {key} = 100@int"


def _convert(raw: str, kind: str) -> Any:
    """Raises: ValueError if the text is not a value of the type."""
    if kind == "str":
        quoted = _quoted(raw)
        return raw if quoted is None else quoted
    if kind == "bool":
        if raw.lower() not in _BOOLS:
            raise ValueError("is neither True nor False")
        return _BOOLS[raw.lower()]
    if kind in ("int", "float"):
        try:
            return TYPES[kind](raw)
        except ValueError:
            what = "a whole number" if kind == "int" else "a number"
            raise ValueError(f"is not {what}") from None
    value = _literal(raw) if raw else TYPES[kind]()
    if isinstance(value, TYPES[kind]):
        return value
    found = f": found a {type(value).__name__}" if value is not None else ""
    raise ValueError(f"is not a Python {kind}{found}")


def _literal(text: str) -> Any:
    """A Python literal; None if the text is not one."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _quoted(raw: str) -> str | None:
    """The string inside quotes; None if the text is not a quoted string."""
    if len(raw) < 2 or raw[0] not in "'\"" or raw[0] != raw[-1]:
        return None
    value = _literal(raw)
    return value if isinstance(value, str) else None


def override(ini: Ini, arguments: list[str]) -> None:
    """Replace keys by `key=value` or `section.key=value@type`.

    A value without a type gets the type of the key in the file, except that a list or dict stays
    one; the type of a new key is guessed.
    Raises: UserError for an argument that is not an override, or whose value has another type.
    """
    for argument in arguments:
        key, equals, text = argument.partition("=")
        *parents, leaf = key.strip().split(".")
        if not equals or not all(map(_KEY.fullmatch, [*parents, leaf])):
            raise UserError(f"'{argument}' is not key=value (for example ssl_args.lr=0.3)")
        node = ini.tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"'{argument}': '{parent}' has no keys below it")
        try:
            node[leaf] = _override_value(leaf, text.strip(), node.get(leaf))
        except ValueError as error:
            raise UserError(f"'{argument}': {error}") from None
        ini.lines.pop(key, None)


def _override_value(key: str, text: str, old: Any) -> Any:
    if _TYPED.search(text):
        return parse_value(key, text)
    guess = _literal(text)
    if text.lower() in ("true", "false"):
        guess = text.lower() == "true"
    guess = guess if type(guess) in TYPES.values() else text
    # a list or dict may replace a value of another type: data_dir is a path or a dict
    return (
        guess
        if old is None or isinstance(guess, (list, dict))
        else _convert(text, type(old).__name__)
    )
