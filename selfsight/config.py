"""Typed configuration: layers of YAML and key=value, merged, then validated once.

A configuration class derives from `Config` and sits beside the code that reads it. Instances are
frozen, and an unknown key is an error. `pretraining.config` composes a whole run from them.
"""

import difflib
import functools
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from selfsight.errors import UserError
from selfsight.yaml_text import Tree, parse_overrides, parse_yaml, read_yaml

C = typing.TypeVar("C", bound="Config")
__all__ = ["Config", "Tree", "may_change", "parse_overrides", "parse_yaml", "read_yaml", "validate"]
_ADDED = {"identifies": "unless it has its default"}
_MAY_CHANGE = {"on_resume": "may change"}


def may_change(default: Any, **constraints: Any) -> Any:
    """A field whose value may differ when a run is continued: it moves no result by more than
    rounding. Every other key must keep its value."""
    return Field(default, json_schema_extra=_MAY_CHANGE, **constraints)


def added(default: Any, **constraints: Any) -> Any:
    """A field that earlier versions did not have: while it has its default, it is no part of what
    identifies a run, so that their runs keep their identity."""
    return Field(default, json_schema_extra=_ADDED, **constraints)


def _share(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= bounds[0] <= bounds[1] <= 1:
        raise ValueError("give the lowest, then the highest fraction, from 0 to 1")
    return bounds


def _ratio(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 < bounds[0] <= bounds[1]:
        raise ValueError("give the lowest, then the highest value, above 0")
    return bounds


Share = typing.Annotated[tuple[float, float], AfterValidator(_share)]  # between these fractions
Ratio = typing.Annotated[tuple[float, float], AfterValidator(_ratio)]  # between these ratios


class Config(BaseModel):
    """Base of all configuration classes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def tree(self) -> Tree:
        """As plain data, as YAML and JSON hold it."""
        return self.model_dump(mode="json")

    def identity(self) -> Tree:
        """As plain data without the fields that `may_change`: what identifies the run."""
        return _identity(self, self.tree())

    @classmethod
    def key_may_change(cls, key: str) -> bool:
        """Whether this dotted key, or a section that it is in, `may_change`."""
        free = [path for path, field in _fields(cls) if field.json_schema_extra == _MAY_CHANGE]
        return any(is_inside(key, path) for path in free)


def _identity(value: Any, plain: Any) -> Any:
    """The plain data of a value without the fields that `may_change`, at any depth."""
    if isinstance(value, Config):
        fields = type(value).model_fields
        kept = [
            k
            for k in plain
            if fields[k].json_schema_extra != _MAY_CHANGE
            and (fields[k].json_schema_extra != _ADDED or getattr(value, k) != fields[k].default)
        ]
        return {k: _identity(getattr(value, k), plain[k]) for k in kept}
    if isinstance(value, (list, tuple)):
        return [_identity(*both) for both in zip(value, plain, strict=True)]
    return plain


def merge(below: Tree, above: Tree) -> Tree:
    """`above` over `below`: mappings merge, all other values are replaced. A mapping with numbers
    as keys changes items of a list, as in 'views.0.size'."""
    return {**below, **{key: _merged(below.get(key), above[key], key) for key in above}}


def _merged(old: Any, new: Any, key: str) -> Any:
    if isinstance(new, dict) and isinstance(old, dict):
        return merge(old, new)
    if not isinstance(new, dict) or not isinstance(old, list):
        return new
    result = list(old)
    for number, value in new.items():
        if not str(number).isdigit() or int(number) >= len(old):
            raise UserError(
                f"'{key}.{number}': the items of the list '{key}' are 0 to {len(old) - 1}"
            )
        result[int(number)] = _merged(old[int(number)], value, f"{key}.{number}")
    return result


def fold(tree: Tree, overrides: Iterable[str], lay: Callable[[Tree, Tree], Tree] = merge) -> Tree:
    """The tree with 'key=value' overrides merged into it, layer by layer.

    Args:
        lay: merges one layer into the tree, for keys that need more than `merge`.
    """
    return functools.reduce(lay, parse_overrides(overrides), tree)


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; an empty mapping or list is a leaf, too."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        path = f"{prefix}{key}"
        nested = isinstance(value, dict) or (
            isinstance(value, (list, tuple)) and any(isinstance(v, dict) for v in value)
        )
        if nested and value:
            yield from flatten(value, path + ".")
        else:
            yield path, value


def is_inside(key: str, section: str) -> bool:
    """Whether a dotted key is the section or one of the keys in it."""
    return f"{key}.".startswith(f"{section}.")


def differences(old: Tree, new: Tree) -> list[str]:
    """One line for each leaf that differs: 'key: old -> new'."""
    a, b = dict(flatten(old)), dict(flatten(new))
    lines = []
    for key in dict.fromkeys([*a, *b]):
        before, after = a.get(key, "(absent)"), b.get(key, "(absent)")
        if before != after:
            lines.append(f"{key}: {before} -> {after}")
    return lines


# Validation ---------------------------------------------------------------------------------------


def validate(cls: type[C], tree: Tree) -> C:
    """The typed configuration. Raises: UserError that lists every problem, one a line."""
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        problems = dict.fromkeys(_describe(cls, problem) for problem in error.errors())
        raise UserError("\n".join(problems)) from None


def _describe(cls: type[Config], problem: Any) -> str:
    path, model = _walk(cls, problem["loc"])
    key = ".".join(path)
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return f"Unknown key '{key}'.{_suggest(cls, model, path[-1])}"
    if kind == "missing":
        return f"Missing key '{key}'."
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        names = re.findall(r"'([\w-]+)'", problem["ctx"].get("expected_tags", ""))
        given = value.get("name") if isinstance(value, dict) else value
        return (
            f"{key}.name={given}: no such {key}.{near(str(given), names)} Known: {', '.join(names)}"
        )
    if kind == "string_type" and not isinstance(value, (dict, list, tuple)) and value is not None:
        return (
            f"{key}={_short(value)}: YAML reads this as a {type(value).__name__}; put it in quotes"
        )
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return f"{key}={_short(value)}: {message[0].lower() + message[1:]}" if key else message


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def near(name: str, known: Iterable[str]) -> str:
    """ " Did you mean ...?" with the most similar names; empty if none is similar."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {', '.join(repr(c) for c in close)}?" if close else ""


def _suggest(root: type[Config], model: type[Config] | None, name: str) -> str:
    if model is None:
        return ""
    elsewhere = [path for path, _ in _fields(root) if path.rpartition(".")[2] == name]
    other = f" Did you mean '{elsewhere[0]}'?" if elsewhere else ""
    return (
        near(name, model.model_fields) or other or f" Known keys: {', '.join(model.model_fields)}."
    )


def _fields(model: type[Config], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, field) of a class and of the classes in it, except those in lists."""
    for name, field in model.model_fields.items():
        yield prefix + name, field
        for member in _models(field.annotation):
            yield from _fields(member, f"{prefix}{name}.")


def _models(annotation: Any) -> list[type[Config]]:
    """The configuration classes that an annotation names, except those in lists."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [m for a in typing.get_args(annotation) for m in _models(a)]
    return []


def _walk(cls: type[Config], location: tuple) -> tuple[list[str], type[Config] | None]:
    """The dotted path of an error, without union tags, and the class that its last key is in."""
    path: list[str] = []
    candidates, owner = [cls], cls
    for part in location:
        tagged = [m for m in candidates if _tag(m) == part]
        if len(candidates) > 1 and tagged:
            candidates = tagged
            continue
        path.append(str(part))
        owner = candidates[0] if len(candidates) == 1 else None
        if isinstance(part, int):
            continue
        field = owner.model_fields.get(part) if owner else None
        annotation = field.annotation if field else None
        if typing.get_origin(annotation) in (list, tuple):
            annotation = typing.get_args(annotation)[0]
        candidates = _models(annotation)
    if path and isinstance(location[-1], int):
        owner = None
    return path, owner


def _tag(model: type[Config]) -> str | None:
    field = model.model_fields.get("name")
    values = typing.get_args(field.annotation) if field else ()
    return values[0] if values else None
