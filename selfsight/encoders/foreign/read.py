"""The tensors of a checkpoint, read without running any code from it."""

import argparse
import hashlib
import json
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from selfsight.errors import UserError, some
from selfsight.files import file_hash

INDEX = ".index.json"  # end of the name of a file that names those with the tensors
_WHOLE = ("model.safetensors", "pytorch_model.bin")
FILES = tuple(f"{name}{end}" for name in _WHOLE for end in ("", INDEX))  # a folder's first counts


def file_in(path: Path) -> Path:
    """The file with the weights of a folder, as the Hugging Face hub has them; of a file itself."""
    if not path.is_dir():
        return path
    return next((path / name for name in FILES if (path / name).is_file()), path / FILES[0])


def read(path: Path) -> Mapping[Any, Any]:
    """What a checkpoint holds, by name: a state dict, or a training's state with one inside.

    Args:
        path: what torch.save wrote (.pt, .pth, .pth.tar, .ckpt, ...), or .safetensors.
    Raises: UserError if there is no such file, if it is damaged, if it holds no tensors by name,
        or if it could be read only by unpickling objects, which can run code.
    """
    if not path.is_file():
        raise UserError(f"'{path}': no such file; give the path of a checkpoint")
    if path.name.endswith(INDEX):
        return _read_shards(path)
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


def shards(index: Path) -> dict[str, list[str]]:
    """Name of a file beside an index -> names of the tensors in it. Raises: UserError."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        named: dict[str, list[str]] = {str(file): [] for file in sorted(set(places.values()))}
        for tensor, file in places.items():
            named[str(file)].append(tensor)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"'{index}': no list of files with weights (weight_map)") from None
    for file in named:
        if file != Path(file).name or file.endswith(INDEX):
            raise UserError(f"'{index}': names '{file}', which is no file of weights beside it")
    return named


def _read_shards(index: Path) -> Mapping[Any, Any]:
    whole: dict[Any, Any] = {}
    for file, names in shards(index).items():
        part = read(_shard(index, file))
        wrong = part.keys() ^ set(names)
        if wrong:
            raise UserError(
                f"'{index.parent / file}': its tensors are not those that '{index.name}' says: "
                f"{some(sorted(map(str, wrong)))}; fetch both again"
            )
        whole |= part
    return whole


def _shard(index: Path, file: str) -> Path:
    path = index.parent / file
    if not path.is_file():
        raise UserError(f"'{index}': '{file}' is not beside it; fetch all parts of the weights")
    return path


def weights_file_hash(path: Path) -> str:
    """SHA-256 of a file of weights; of an index, of all files that it names. Raises: UserError,
    files.Damaged, OSError."""
    if not path.name.endswith(INDEX):
        return file_hash(path)
    lines = [f"{file} {file_hash(_shard(path, file))}" for file in shards(path)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


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
