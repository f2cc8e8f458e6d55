"""The folder of an export: complete or not there, and never in place of something else."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfsight.errors import UserError, some
from selfsight.files import Damaged, file_hash, read_json, rename_durably, sealed

RECORD = "export.json"


def check_place(folder: Path, layout: str, sha256: str) -> None:
    """Whether an export may have this name.

    Args:
        layout: of the files that will be written; sha256: of the encoder's weights.
    Raises: UserError for a file, for a folder that cannot be exchanged for a new one, and for one
        with anything but an earlier export of the same encoder in this layout, as it was written.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UserError(f"'{folder}': is a file; name a folder that does not exist yet")
    kept = "the folder of this process" if folder.samefile(".") else "a mounted folder"
    if folder.samefile(".") or os.path.ismount(folder.resolve()):
        raise UserError(f"'{folder}': is {kept}, which cannot be replaced; name a folder inside it")
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return
    other = "choose another folder, or remove it"
    try:
        record = read_json(folder / RECORD)
        files = {str(name): str(about["sha256"]) for name, about in record["files"].items()}
    except (OSError, Damaged, KeyError, TypeError, AttributeError):
        reason = f"holds other files than an export ({some(names)})"
        raise UserError(f"'{folder}': {reason}; {other}") from None
    if record.get("weights_sha256") != sha256:
        raise UserError(f"'{folder}': holds the export of another encoder; {other}")
    if record.get("layout") != layout:
        raise UserError(f"'{folder}': holds an export to {record.get('layout')}; {other}")
    changed = [name for name in names if name != RECORD and _changed(folder / name, files)]
    if changed:
        raise UserError(
            f"'{folder}': {some(changed)} was added or changed after the export; move it, or "
            f"choose another folder"
        )


def _changed(path: Path, files: dict[str, str]) -> bool:
    try:
        return files.get(path.name) != file_hash(path)
    except (OSError, Damaged):
        return True


@contextlib.contextmanager
def complete(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, which gets its name at the end if nothing was raised; then an
    older export of this name is removed.

    Raises: OSError that names the path, if the disk is full; nothing is left of it.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary = folder.with_name(f".{folder.name}.{mark}.tmp")
    aside = folder.with_name(f".{folder.name}.{mark}.old")
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            _to_disk(path)
        if folder.exists():
            os.replace(folder, aside)
        try:
            rename_durably(temporary, folder)
        except OSError:
            if aside.exists():
                os.replace(aside, folder)
            raise
    finally:
        for path in (temporary, aside):
            shutil.rmtree(path, ignore_errors=True)


def _to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_record(folder: Path, record: dict[str, Any]) -> dict[str, int]:
    """Write export.json, with the hash and the size of every file of the folder.

    Returns: the bytes of each file, export.json among them.
    """
    paths = sorted(path for path in folder.iterdir() if path.name != RECORD)
    files = {p.name: {"bytes": p.stat().st_size, "sha256": file_hash(p)} for p in paths}
    text = json.dumps(sealed({**record, "files": files}), indent=2) + "\n"
    (folder / RECORD).write_text(text, encoding="utf-8")
    sizes = {path.name: path.stat().st_size for path in paths}
    return {**sizes, RECORD: len(text.encode())}
