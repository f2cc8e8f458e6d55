"""Checkpoints that survive a crash at any moment: each is written to a temporary file, flushed to
the disk, then renamed; its checksum is tested when it is read.

The checksum is part of the name, so one rename makes content and checksum visible together.
"""

import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from selfsight import agreement, distributed
from selfsight.config import Config, differences, flatten, is_inside
from selfsight.errors import UserError
from selfsight.files import (
    Damaged,
    naming,
    removed_at_the_end,
    rename_durably,
    set_aside,
    temporary_of,
)
from selfsight.locks import check_folder
from selfsight.train.pieces import (
    bytes_of,
    checksum_of,
    checksum_of_names,
    read_pieces,
    read_state,
    write_piece,
    write_state,
)

_NAME = re.compile(r"step-(\d+)\.([0-9a-f]{16})\.pt")
# Keys that may differ between a checkpoint and the run that continues it: a run may be made longer,
# its data may be moved, and a batch may be cut to what the labelled images and processes allow.
_MAY_DIFFER = ("run", "resume", "weights", "data", "epochs", "max_steps", "batch_size")
Part = nn.Module | torch.optim.Optimizer


class CheckpointConfig(Config):
    """When to save; the last step is always saved."""

    every_epochs: int = Field(1, ge=0)  # 0: epochs do not matter
    every_steps: int = Field(0, ge=0)  # 0: steps do not matter
    every_minutes: float = Field(10.0, ge=0)  # since the last one; 0: time does not matter
    keep: int = Field(2, ge=1)  # files; older ones are removed after a new one is on the disk
    # a file for each process in a folder, with what it holds of a split state (shard=true), instead
    # of one file that the first process writes: for states of more than 20 GB
    sharded: bool = False


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Args:
        say: prints a line for the user.
    """

    def __init__(self, folder: Path, keep: int = 1, say: Any = print) -> None:
        self.folder, self._keep, self._say = folder, keep, say

    @staticmethod
    def step_of(path: Path) -> int | None:
        """The step of a checkpoint file, by its name; None for any other file."""
        name = _NAME.fullmatch(path.name)
        return int(name[1]) if name and (path.is_file() or path.is_dir()) else None

    def files(self) -> list[tuple[int, Path]]:
        """(step, file) of every checkpoint, oldest first."""
        found = [(m, p) for p in self.folder.glob("step-*.pt") if (m := _NAME.fullmatch(p.name))]
        return sorted((int(m[1]), p) for m, p in found)

    def kept(self) -> str:
        """What remains if nothing more is saved, in words."""
        saved = self.files()
        return f"the checkpoint of step {saved[-1][0]} is kept" if saved else "no checkpoint yet"

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after `step` steps, then remove all but the newest `keep` files.

        Raises: OSError that names the folder if the disk is full: no half file is left. UserError
            if the run's folder was deleted or renamed.
        """
        self._begin()
        temporary = temporary_of(self.folder / f"step-{step}")
        with naming(self.folder, bytes_of(state), temporary), removed_at_the_end(temporary):
            write_state(state, temporary)
            return self._finish(step, temporary, checksum_of(temporary))

    def save_pieces(self, step: int, state: dict[str, Any]) -> None:
        """The same with a file for each rank, of what it holds. All ranks call it."""
        temporary = agreement.by_first(lambda: self._new_folder(step))
        try:
            name = agreement.by_all(lambda: self._write_piece(state, temporary))
            names = agreement.gather_objects(name)
            checksum = checksum_of_names(names)
            agreement.by_first(lambda: self._finish(step, temporary, checksum))
        finally:
            if distributed.rank() == 0:
                shutil.rmtree(temporary, ignore_errors=True)

    def _write_piece(self, state: dict[str, Any], temporary: Path) -> str:
        with naming(self.folder, bytes_of(state, whole=False), temporary):
            return write_piece(state, temporary)

    def _begin(self) -> None:
        check_folder(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".step-*.tmp"):  # of a process that was killed: only the
            _remove(leftover)  # holder of the folder's lock saves here

    def _new_folder(self, step: int) -> Path:
        self._begin()
        temporary = temporary_of(self.folder / f"step-{step}")
        temporary.mkdir()
        return temporary

    def _finish(self, step: int, temporary: Path, checksum: str) -> Path:
        """Make a complete checkpoint visible, then remove the oldest ones."""
        path = self.folder / f"step-{step:08d}.{checksum}.pt"
        if path.is_dir():  # the same content; a folder can only be replaced by nothing
            _remove(path)
        rename_durably(temporary, path)
        others = [old for number, old in self.files() if old != path and number <= step]
        for old in others[: max(0, len(others) + 1 - self._keep)]:
            _remove(old)
        return path

    def load(
        self, device: torch.device, misfit: Callable[[dict[str, Any]], str | None] | None = None
    ) -> tuple[int, dict[str, Any]] | None:
        """(step, state) of the newest file that is whole and of this run; None if there is none.

        Any other file is renamed, the user is told why, and the file before it is tried.

        Args:
            misfit: why a state is not one of this run; None for one that is.
        """
        for step, path in reversed(self.files()):
            try:
                state = _read(path, device)
                reason = misfit(state) if misfit else None
            except Damaged as error:
                reason = error.reason
            if reason is None:
                return step, state
            try:
                aside = set_aside(path)
            except FileNotFoundError:  # another rank has just renamed it
                continue
            except OSError as error:
                aside = f"'{path}', which cannot be renamed: {error.strerror}"
            self._say(
                f"Checkpoint of step {step} is damaged: {reason} (kept as {aside}); using the one "
                f"before."
            )
        return None


def load_from(where: str, device: torch.device) -> tuple[int, dict[str, Any]]:
    """(step, state) of a checkpoint file, or of the newest one in a run's folder.

    Raises: UserError if the path is neither of them, or if the file is damaged.
    """
    path = Path(where)
    if path.is_dir() and Checkpoints.step_of(path) is None:
        found = Checkpoints(path / "checkpoints", 1).load(device)
        if found is None:
            raise UserError(f"resume={where}: this folder is no run with checkpoints")
        return found
    if Checkpoints.step_of(path) is None:
        raise UserError(
            f"resume={where}: not a checkpoint of Selfsight; give a run's folder or a step-*.pt "
            f"file in it, or start from an encoder's weights alone with weights=..."
        )
    return read_checkpoint(path, device, f"resume={where}")


def read_checkpoint(path: Path, device: torch.device, key: str) -> tuple[int, dict[str, Any]]:
    """Step and state of one checkpoint file. Raises: UserError, beginning with `key`, if its
    checksum does not agree."""
    try:
        return Checkpoints.step_of(path), _read(path, device)
    except Damaged as error:
        reason = f"this file is damaged; take an earlier one ({error.reason})"
        raise UserError(f"{key}: {reason}") from None


def _remove(path: Path) -> None:
    """Remove a checkpoint, or what is left of one; a folder is hidden first, so that no part of it
    can be taken for the whole."""
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    hidden = path.with_name(f".step-{secrets.token_hex(4)}.tmp")
    path.replace(hidden)
    shutil.rmtree(hidden)


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    """The state in a checkpoint, of which no code is run. Raises: Damaged."""
    step, checksum = _NAME.fullmatch(path.name).groups()
    read = read_pieces if path.is_dir() else read_state
    state = read(path, checksum, device)
    if not _by_name(state):
        raise Damaged(path, "it does not hold the state of a training")
    if state.get("step", int(step)) != int(step):
        raise Damaged(path, f"it is of step {state['step']}")
    return state


def _by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def misfit(
    state: dict[str, Any], parts: Mapping[str, Part], identity: dict[str, Any]
) -> str | None:
    """Why a state is not one of this run, in a few words; None if it is.

    A state that does not fit must not be loaded even in part: what begins anew would then not
    begin with its own weights.

    Args:
        parts: what is loaded from it, by name.
        identity: of the run's configuration, see `Config.identity`.
    """
    seconds = state.get("seconds")
    if not isinstance(seconds, (int, float)) or not 0 <= seconds < float("inf"):
        return "it does not say how long the training took"
    for name, part in parts.items():
        fits = _same_parameters if isinstance(part, torch.optim.Optimizer) else _same_tensors
        if not fits(part, state.get(name)):
            return f"its {name.replace('_', ' ')} is of another run"
    stored = state.get("config")
    if _by_name(stored):  # earlier versions stored none
        before, now = _held(stored), _held(identity)
        known = before.keys() & now.keys()
        lines = differences(*({k: tree[k] for k in sorted(known)} for tree in (before, now)))
        if lines:
            return f"it is of another run ({'; '.join(lines)[:200]})"
    return None


def _held(identity: dict[str, Any]) -> dict[str, Any]:
    """The keys that a checkpoint and the run that continues it share, dotted."""
    leaves = flatten(identity)
    return {k: v for k, v in leaves if not any(is_inside(k, other) for other in _MAY_DIFFER)}


def _same_tensors(module: nn.Module, state: Any) -> bool:
    if not _by_name(state):
        return False
    shapes, found = (
        {name: getattr(value, "shape", None) for name, value in tree.items()}
        for tree in (module.state_dict(), state)
    )
    return shapes == found


def _same_parameters(optimizer: torch.optim.Optimizer, state: Any) -> bool:
    """The same groups of parameters, and momenta of their shapes."""
    try:
        if [len(g["params"]) for g in state["param_groups"]] != [
            len(g["params"]) for g in optimizer.param_groups
        ]:
            return False
        numbers = [n for group in state["param_groups"] for n in group["params"]]
        every = [p for group in optimizer.param_groups for p in group["params"]]
        shape = dict(zip(numbers, (p.shape for p in every), strict=True))
        kept = ((shape[n], v) for n, v in state["state"].items())
        return all(v.shape in (s, ()) for s, values in kept for v in _tensors(values))
    except (KeyError, TypeError, AttributeError):
        return False


def _tensors(values: dict[str, Any]) -> Iterator[Tensor]:
    return (value for value in values.values() if isinstance(value, Tensor))
