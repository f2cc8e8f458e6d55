"""A checkpoint with a file for each process, for states of more than 20 GB: each writes the rows
that it holds, and no state is whole anywhere.

It is a folder that is named as a checkpoint's file is, and that one rename makes visible. Each file
in it has its checksum in its name; the checksum in the folder's name is that of these names.
"""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfsight import distributed
from selfsight.agreement import Keys
from selfsight.errors import UserError
from selfsight.files import Damaged, file_hash, rename_durably

_NAME = re.compile(r"process-(\d+)-of-(\d+)\.([0-9a-f]{16})\.pt")
_SPLIT = "split along rows"  # {_SPLIT: key} is in place of a tensor whose rows the files hold


def each_tensor(value: Any, work: Callable[[Keys, Tensor], Any], path: Keys = ()) -> Any:
    """A state with what `work` returns in place of each of its tensors."""
    if isinstance(value, Tensor):
        return work(path, value)
    if isinstance(value, Mapping):
        return {key: each_tensor(item, work, (*path, key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(each_tensor(item, work, (*path, n)) for n, item in enumerate(value))
    return value


def bytes_of(state: dict[str, Any], whole: bool = True) -> int:
    """The size of the tensors in a state, in bytes.

    Args:
        whole: count all; False: what this rank writes by `write_piece`.
    """
    sizes: list[int] = []

    def work(_: Keys, tensor: Tensor) -> None:
        if whole:
            sizes.append(tensor.nbytes)
        elif hasattr(tensor, "to_local"):  # it is split
            sizes.append(tensor.to_local().nbytes)
        elif distributed.rank() == 0:
            sizes.append(tensor.nbytes)

    each_tensor(state, work)
    return sum(sizes)


def write_state(state: dict[str, Any], path: Path) -> None:
    """Raises: OSError if the disk is full, for which torch alone raises a RuntimeError.

    torch takes each write for complete. A buffered file makes it so; the system alone may write a
    part: at most 2 GiB at a time, and what there is room for.
    """
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def read_state(path: Path, checksum: str, device: torch.device) -> dict[str, Any]:
    """The content of a file, of which no code is run. Raises: Damaged; OSError."""
    try:
        if checksum_of(path) != checksum:
            raise Damaged(path, "its checksum is not that in its name")
    except FileNotFoundError:
        raise Damaged(path, "it is a link to nothing, or was removed") from None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception:  # torch and pickle raise anything on bytes that they did not write
        raise Damaged(
            path, "it is not a checkpoint, or holds objects that could run code"
        ) from None
    if not (isinstance(state, dict) and all(isinstance(key, str) for key in state)):
        raise Damaged(path, "it does not hold the state of a training")
    return state


def checksum_of(path: Path) -> str:
    return file_hash(path)[:16]


def has_rows(tensor: Any) -> bool:
    """Whether this process holds some rows alone of a tensor (a DTensor). Importing what it is made
    by takes a second; where nobody has done it, there is none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def write_piece(state: dict[str, Any], folder: Path) -> str:
    """Write what this rank holds of a state: its rows of each tensor that is split, and on rank 0
    all else. Returns: the name of the file. Raises: UserError on a machine that does not see the
    folder, which rank 0 has made."""
    rows: dict[str, Tensor] = {}

    def work(path: Keys, tensor: Tensor) -> Tensor | dict[str, str]:
        if not has_rows(tensor):
            return tensor
        key = "/".join(map(str, path))
        rows[key] = tensor.to_local().detach().to("cpu", copy=True)
        return {_SPLIT: key}

    rank, count = distributed.rank(), distributed.world_size()
    if not folder.is_dir():
        raise UserError(
            f"checkpoint.sharded=true: '{folder.parent}' is not the folder of process 0; put the "
            f"run on a disk that all machines share, or set checkpoint.sharded=false"
        )
    rest = each_tensor(state, work)
    temporary = folder / f"process-{rank}.tmp"
    write_state({"rows": rows, **({"rest": rest} if rank == 0 else {})}, temporary)
    name = f"process-{rank}-of-{count}.{checksum_of(temporary)}.pt"
    rename_durably(temporary, folder / name)
    return name


def checksum_of_names(names: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def read_pieces(folder: Path, checksum: str, device: torch.device) -> dict[str, Any]:
    """The whole state in a folder, whatever the number of processes that wrote it. Raises: Damaged;
    OSError."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        raise Damaged(folder, "it was removed meanwhile") from None
    found = {name: match for name in names if (match := _NAME.fullmatch(name))}
    if checksum_of_names([*found]) != checksum:
        raise Damaged(folder, "files in it are missing or have other names")
    pieces: dict[int, dict[str, Any]] = {}
    for name, match in found.items():
        try:
            pieces[int(match[1])] = read_state(folder / name, match[3], torch.device("cpu"))
        except Damaged as error:
            raise Damaged(folder, f"of {name}, {error.reason}") from None
    try:
        every = [pieces[rank]["rows"] for rank in range(len(pieces))]
        return _joined(pieces[0]["rest"], every, device)
    except (KeyError, TypeError, AttributeError, RuntimeError):
        raise Damaged(folder, "its files are no parts of one state") from None


def _joined(value: Any, every: list[dict[str, Tensor]], device: torch.device) -> Any:
    """The state with whole tensors.

    Args:
        every: of each rank the rows; they are removed from it one after the other.
    """
    if isinstance(value, dict) and value.keys() == {_SPLIT}:
        return torch.cat([rows.pop(value[_SPLIT]) for rows in every]).to(device)
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _joined(item, every, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_joined(item, every, device) for item in value)
    return value
