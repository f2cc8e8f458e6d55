"""The typed INI language: `key = value@type` lines, flat ones first, then sections.

Types are int, float, str, bool, list and dict; the last two are Python literals. `#` starts a
comment: a line of its own, or after a type. An empty bool is false. A string that would be read
otherwise (with spaces at its ends, a line break, or `@type #` in it) stands in quotes.
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
NO_LITERAL = (ValueError, SyntaxError, MemoryError, RecursionError)


@dataclass
class Ini:
    """A parsed file.

    Attributes:
        tree: keys and values; a section is a mapping.
        lines: dotted key -> number of its line.
    """

    tree: Tree = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)


def is_typed(line: str) -> bool:
    """Whether a line is of this language and of no other."""
    key, equals, value = line.strip().partition("=")
    return bool(equals and _KEY.fullmatch(key.strip()) and _TYPED.search(value))


def parse(text: str, name: str) -> Ini:
    """All keys of a file.

    Raises: UserError for the lines that are wrong, each with the file's name, its number, and why.
    """
    ini, problems, section = Ini(), [], ""
    here = ini.tree
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff")), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            if line.startswith("["):
                section, here = "", ini.tree
                key, value = _parse_section(line), {}
            else:
                key, value = _parse_line(line)
            if f"{section}{key}" in ini.lines:
                first = ini.lines[f"{section}{key}"]
                raise ValueError(f"'{key}' is given twice, first in line {first}")
        except ValueError as error:
            problems.append(f"{name}:{number}: {error}")
            continue
        here[key] = value
        ini.lines[f"{section}{key}"] = number
        if line.startswith("["):
            section, here = f"{key}.", value
    if problems:
        raise UserError("\n".join(problems))
    return ini


def _parse_section(line: str) -> str:
    found = _SECTION.fullmatch(line)
    if not found:
        raise ValueError(f"'{line}' is no section; write [name]")
    return found[1]


def _parse_line(line: str) -> tuple[str, Any]:
    key, equals, rest = line.partition("=")
    key = key.strip()
    if not equals:
        raise ValueError(f"'{line}' is neither key = value@type, nor [section], nor # a comment")
    if not _KEY.fullmatch(key):
        raise ValueError(f"'{key}' is no name of a key")
    return key, parse_value(key, rest.strip())


def parse_value(key: str, text: str) -> Any:
    """The value of `value@type`. Raises: ValueError that says what is wrong with it."""
    problem = _untyped(key, text)
    quoted = text[:1] in ("'", '"')
    plain = []
    for found in _TYPED.finditer(text):
        raw, kind = text[: found.start()].strip(), found[1]
        try:
            value = _convert(raw, kind)
        except ValueError as error:
            problem = problem if plain else f"{key} = {raw}@{kind}: {error}"
            continue
        if not quoted or (kind == "str" and _literal(raw) is not None):
            return value
        plain.append(value)
    if plain:  # a string that begins with a quotation mark and is no literal
        return plain[0]
    raise ValueError(problem)


def _untyped(key: str, text: str) -> str:
    named = _ANY_TYPE.search(text)
    if named and named[1] not in TYPES:
        hint = near(named[1], TYPES) or f" Known: {', '.join(TYPES)}"
        return f"{key} = {text}: no such type '{named[1]}'.{hint}"
    return f"{key} = {text}: has no type; write {key} = value@type, such as {key} = 100@int"


def _convert(raw: str, kind: str) -> Any:
    """Raises: ValueError if the text is no such value."""
    if kind == "str":
        literal = _literal(raw)
        return raw if literal is None else literal
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
    try:
        value = ast.literal_eval(raw) if raw else TYPES[kind]()
    except NO_LITERAL:
        raise ValueError(f"is no Python {kind}") from None
    if not isinstance(value, TYPES[kind]):
        raise ValueError(f"is a Python {type(value).__name__}, no {kind}")
    return value


def _literal(raw: str) -> str | None:
    """The string in quotes, if that is what the text is."""
    if len(raw) < 2 or raw[0] not in "'\"" or raw[0] != raw[-1]:
        return None
    try:
        value = ast.literal_eval(raw)
    except NO_LITERAL:
        return None
    return value if isinstance(value, str) else None


def override(ini: Ini, arguments: list[str]) -> None:
    """Lay `key=value` or `section.key=value@type` over a file's keys.

    Without a type the value has that of the key in the file; a list or a mapping is one in any
    case, and a new key's type is guessed.
    Raises: UserError for what is no override, or for a value that is not of its type.
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
                raise UserError(f"'{argument}': '{parent}' holds no keys")
        try:
            node[leaf] = _given(leaf, text.strip(), node.get(leaf))
        except ValueError as error:
            raise UserError(f"'{argument}': {error}") from None
        ini.lines.pop(key, None)


def _given(key: str, text: str, old: Any) -> Any:
    if _TYPED.search(text):
        return parse_value(key, text)
    guess = _guess(text)
    if old is None or isinstance(guess, (list, dict)):  # a path may become a mapping
        return guess
    return _convert(text, type(old).__name__)


def _guess(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except NO_LITERAL:
        return text
    return value if type(value) in TYPES.values() else text
