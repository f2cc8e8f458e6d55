"""Configurations that name parts of the user's own: their keys, and the hashes of their code."""

import functools
from typing import Annotated, Any, Literal, Union

from pydantic import ConfigDict, Field, create_model

from selfsight import blame, own
from selfsight.config import Tree, near
from selfsight.errors import UserError
from selfsight.methods import METHODS
from selfsight.methods.method import Method, MethodConfig


def find_method(name: str) -> type[Method]:
    """The class of a method, of the package or of the user's own.

    Raises: UserError for code that the user has not named, or that is no method.
    """
    found = own_method(name)
    return METHODS[name] if found is None else found


def own_method(name: Any) -> type[Method] | None:
    """The class of a method of the user's own; None for another name. Raises: as `find_method`."""
    if not isinstance(name, str) or name in METHODS:
        return None
    part = own.find("method", name)
    if part is None:
        hint = near(name, own.registered("method"))
        if hint:
            raise UserError(f"method.name={name}: no such method.{hint}")
        return None
    if not (isinstance(part.value, type) and issubclass(part.value, Method)):
        raise UserError(
            f"method.name={name}: {blame.named(part.value)} is not a class that derives from "
            f"selfsight.methods.Method"
        )
    config = part.value.Config
    if not (isinstance(config, type) and issubclass(config, MethodConfig)):
        raise UserError(
            f"method.name={name}: {blame.named(config)} does not derive from "
            f"selfsight.methods.MethodConfig"
        )
    return part.value


@functools.cache
def with_method(base: type, name: str, method: type[Method]) -> type:
    """The configuration class of a run, extended by the keys of a method of the user's own."""
    keys = create_model(
        f"{method.__name__}.Config",
        __base__=method.Config,
        __module__=method.__module__,
        name=(Literal[name], name),
    )
    return _with_keys(base, keys)


@functools.cache
def with_any_keys(base: type, name: str) -> type:
    """The configuration class of a run whose method is not at hand: its keys are not checked."""

    class Unknown(MethodConfig):
        model_config = ConfigDict(extra="allow")

    keys = create_model("Unknown", __base__=Unknown, name=(Literal[name], name))
    return _with_keys(base, keys)


def _with_keys(base: type, keys: type[MethodConfig]) -> type:
    shipped = [method.Config for method in METHODS.values()]
    choice = Annotated[Union[(*shipped, keys)], Field(discriminator="name")]
    return create_model("RunConfig", __base__=base, method=(choice, ...))


def is_own(kind: own.Kind, name: Any) -> bool:
    """Whether a name is one that the package does not define."""
    return isinstance(name, str) and (own.is_code(name) or name in own.registered(kind))


def parts_of(tree: Tree) -> list[own.Part]:
    """The parts of the user's own that a configuration names.

    Raises: UserError for code that the user has not named, or that cannot be imported.
    """
    found = []
    for kind, key in own.KEYS.items():
        section, _, leaf = key.partition(".")
        value = tree.get(section)
        name = value.get(leaf) if isinstance(value, dict) else None
        if is_own(kind, name):
            found.append(own.find(kind, name))
    return [part for part in found if part is not None]


def code_of(parts: list[own.Part], recorded: Any) -> dict[str, str]:
    """The key `code`: SHA-256 of each file of these parts.

    Args:
        recorded: the same key in a configuration that was given.
    Raises: UserError if a file is not the one that the configuration was made with.
    """
    code = {file: sha for part in parts for file, sha in part.code.items()}
    for file, sha in (recorded if isinstance(recorded, dict) else {}).items():
        if code.get(file, sha) != sha:
            raise UserError(
                f"code.{file}={sha:.8}...: this file has changed since the configuration was made "
                f"(now {code[file]:.8}...); restore it, or remove `code` from the configuration"
            )
    return code
