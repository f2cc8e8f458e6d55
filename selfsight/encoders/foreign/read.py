"""The tensors of a checkpoint, read without running any code from it."""

import argparse
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from selfsight.errors import UserError


def read(path: Path) -> Mapping[Any, Any]:
    """What a checkpoint holds, by name: a state dict, or a training's state with one inside.

    Args:
        path: what torch.save wrote (.pt, .pth, .pth.tar, .ckpt, ...), or .safetensors.
    Raises: UserError if there is no such file, if it is damaged, if it holds no tensors by name,
        or if it could be read only by unpickling objects, which can run code.
    """
    if not path.is_file():
        raise UserError(f"'{path}': no such file; give the path of a checkpoint")
    try:
        file = load_file(path) if path.suffix == ".safetensors" else _load(path)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))  # torch names the object only in its text
        if wanted:
            raise UserError(
                f"'{path}': holds a Python object of type {wanted[1]}; to unpickle it could run "
                f"any code; where you trust the file, load it and re-save only the state dict"
            ) from None
        raise UserError(f"'{path}': not a readable checkpoint of torch.save") from None
    except Exception as error:  # the readers raise anything on damaged bytes, KeyError for one
        kind = type(error).__name__
        raise UserError(f"'{path}': not a readable checkpoint, or damaged ({kind})") from None
    if not isinstance(file, Mapping):
        raise UserError(
            f"'{path}': holds a {type(file).__name__}, not tensors by name; save a state dict"
        )
    if next(tensors(file), None) is None:
        raise UserError(f"'{path}': holds no tensors; give a checkpoint with an encoder's weights")
    return file


def _load(path: Path) -> Any:
    # MAE, DINO and torchvision save their arguments beside the weights.
    namespace = torch.serialization.safe_globals([argparse.Namespace])
    with namespace, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old pickles; real faults raise errors
        return torch.load(path, map_location="cpu", weights_only=True)


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors inside what `read` may return, however deep."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, argparse.Namespace):
        yield from tensors(vars(value))
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors(inner)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            yield from tensors(inner)
