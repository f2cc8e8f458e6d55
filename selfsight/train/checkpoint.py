"""Checkpoints that survive a crash at any moment: each is written to a temporary file, flushed to
the disk, then renamed; its checksum is tested when it is read.

The checksum is part of the name, so one rename makes content and checksum visible together.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from selfsight.config import Config
from selfsight.errors import UserError
from selfsight.files import check_folder, naming, removed_at_the_end, rename_durably

_NAME = re.compile(r"step-(\d+)\.([0-9a-f]{16})\.pt")


class CheckpointConfig(Config):
    """When to save; the last step is always saved."""

    every_epochs: int = Field(1, ge=0)  # 0: epochs do not matter
    every_steps: int = Field(0, ge=0)  # 0: steps do not matter
    keep: int = Field(2, ge=1)  # files; older ones are removed after a new one is on the disk


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
        return int(name[1]) if name and path.is_file() else None

    def files(self) -> list[tuple[int, Path]]:
        """(step, file) of every checkpoint, oldest first."""
        found = [(m, p) for p in self.folder.glob("step-*.pt") if (m := _NAME.fullmatch(p.name))]
        return sorted((int(m[1]), p) for m, p in found)

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after `step` steps, then remove all but the newest `keep` files.

        Raises: OSError that names the folder if the disk is full: no half file is left. UserError
            if the run's folder was deleted or renamed.
        """
        check_folder(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".step-*.tmp"):
            leftover.unlink()
        temporary = self.folder / f".step-{step}.{os.getpid()}.tmp"
        with naming(self.folder), removed_at_the_end(temporary):
            _write(state, temporary)
            path = self.folder / f"step-{step:08d}.{_checksum(temporary)}.pt"
            rename_durably(temporary, path)
        others = [old for _, old in self.files() if old != path]
        for old in others[: max(0, len(others) + 1 - self._keep)]:
            old.unlink()
        return path

    def load(self, device: torch.device) -> tuple[int, dict[str, Any]] | None:
        """(step, state) of the newest file whose checksum is right; None if there is none.

        A damaged file is renamed, the user is told, and the file before it is tried.
        """
        for step, path in reversed(self.files()):
            try:
                if _checksum(path) == _NAME.fullmatch(path.name)[2]:
                    return step, torch.load(path, map_location=device, weights_only=True)
                aside = path.with_suffix(".damaged")
                os.replace(path, aside)
            except FileNotFoundError:  # another rank has just renamed it
                continue
            self._say(
                f"Checkpoint of step {step} is damaged (kept as {aside}); using the one before."
            )
        return None


def load_from(where: str, device: torch.device) -> tuple[int, dict[str, Any]]:
    """(step, state) of a checkpoint file, or of the newest one in a run's folder.

    Raises: UserError if the path is neither of them, or if the file is damaged.
    """
    path = Path(where)
    if path.is_dir():
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
    if _checksum(path) != _NAME.fullmatch(path.name)[2]:
        raise UserError(f"{key}: this file is damaged; take an earlier one")
    return Checkpoints.step_of(path), torch.load(path, map_location=device, weights_only=True)


def _write(state: dict[str, Any], path: Path) -> None:
    """Raises: OSError if the disk is full, for which torch alone raises a RuntimeError."""
    try:
        with path.open("wb", buffering=0) as file:
            torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
