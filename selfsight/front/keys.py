"""Keywords of Python functions as the keys of a configuration, and objects as parts of it."""

import inspect
import json
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

from torch import nn

from selfsight import own
from selfsight.data.sources.dataset import is_dataset
from selfsight.errors import UserError

IMAGES = "python:images"  # the name of images that a caller gives as train= and test=


def read_keys(
    keys: Mapping[str, Any], method: Any = None, backbone: Any = None, data: Any = None
) -> tuple[list[str], list[own.Part]]:
    """('key=value' with dotted keys, parts) of the keywords of a function.

    Args:
        keys: by dotted keys, or nested: `{"optimizer.lr": 0.1}` or `{"optimizer": {"lr": 0.1}}`.
        method, backbone, data: a name or path, keys below it, or an object of the caller's.
    """
    overrides: list[str] = []
    parts: list[own.Part] = []
    given: dict[own.Kind, Any] = {"method": method, "backbone": backbone, "data": data}
    for kind, value in given.items():
        if value is None:
            continue
        if _is_object(kind, value):
            parts.append(own.part_of(kind, value))
            overrides.append(_text(own.KEYS[kind], parts[-1].name))
        elif kind == "data" and not isinstance(value, Mapping):
            overrides.append(_text("data.path", value))
        else:
            overrides.append(_text(kind, value))
    return overrides + [_text(key, value) for key, value in keys.items()], parts


def _is_object(kind: own.Kind, value: Any) -> bool:
    if isinstance(value, (str, PathLike)):
        return False
    if isinstance(value, Mapping):
        return bool(value) and kind == "data" and all(map(is_dataset, value.values()))
    if kind == "data":
        return is_dataset(value) or callable(value)
    if kind == "method" and not inspect.isclass(value):
        raise UserError(f"method={value!r:.60}: give a name, or a class that derives from Method")
    if kind == "backbone" and not (isinstance(value, nn.Module) or callable(value)):
        raise UserError(
            f"backbone={value!r:.60}: give a name, a torch.nn.Module, or a function that makes one"
        )
    return True


def _text(key: str, value: Any) -> str:
    return f"{key}={json.dumps(_plain(value, key), ensure_ascii=False)}"


def _plain(value: Any, key: str) -> Any:
    """A value as YAML can hold it. Raises: UserError for any other object."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, key) for item in value]
    if isinstance(value, PathLike):
        return fspath(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item"):  # a number of NumPy or torch
        return value.item()
    raise UserError(f"{key}={value!r:.60}: a {type(value).__name__} is no value of a key")
