"""A run folder belongs to one configuration: the one in its config.yaml."""

import contextlib
import hashlib
import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from selfsight import __version__, agreement
from selfsight import config as layers
from selfsight.data.bad import read_bad
from selfsight.data.identity import changes, identity
from selfsight.data.source import Source
from selfsight.encoders.artifact import DESCRIPTION, FILE, INITIAL
from selfsight.encoders.description import read_description
from selfsight.errors import UserError
from selfsight.files import Damaged, read_json, read_text, write_text
from selfsight.locks import LOCK, locked
from selfsight.logging.log import console
from selfsight.train.config import TrainConfig

CONFIG, BAD_IMAGES, DATA = "config.yaml", "bad_images.txt", "data.json"
LENGTH = ("epochs", "max_steps")  # keys that `extend` may change
PACKAGES = ("selfsight", "torch", "torchvision", "timm", "numpy", "scikit-learn")
C = TypeVar("C", bound=TrainConfig)


@contextlib.contextmanager
def owned(folder: Path, config: TrainConfig, extend: bool = False) -> Iterator[None]:
    """Lock a run's folder on behalf of all ranks, from before its config.yaml is read or written.

    A folder that is made for this and stays empty is removed.
    Raises: UserError if another process has locked it; or see `is_claimed`.
    """
    # First without the lock, which is a file: none is left in a folder of something else.
    agreement.by_first(lambda: is_claimed(folder, config, extend))
    with contextlib.ExitStack() as stack:
        agreement.by_first(lambda: stack.enter_context(_made_and_locked(folder)))
        agreement.by_first(lambda: _forget_failed(folder, config, extend))
        yield


def _forget_failed(folder: Path, config: TrainConfig, extend: bool) -> None:
    """Remove what another version of the user's code left before it learned anything."""
    if not is_claimed(folder, config, extend):
        (folder / INITIAL).unlink(missing_ok=True)


@contextlib.contextmanager
def _made_and_locked(folder: Path) -> Iterator[None]:
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"'{folder}': cannot be made ({error.strerror}); choose another folder with --run"
        ) from None
    with locked(folder):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if new and [p.name for p in folder.iterdir()] == [LOCK]:
                    (folder / LOCK).unlink()
                    for place in new:  # those above it only if nothing else is in them
                        place.rmdir()


def claim(folder: Path, config: TrainConfig) -> None:
    """Write config.yaml into a new folder. The caller has locked it."""
    if not is_claimed(folder, config):
        _write_config(folder, config)


def _write_config(folder: Path, config: TrainConfig) -> None:
    versions = " ".join(f"{name} {package_version(name)}" for name in PACKAGES)
    head = f"# python {platform.python_version()} {versions}\n"
    revision = _git_revision()
    if revision:
        head += f"# git {revision}\n"
    write_text(folder / CONFIG, head + config.to_yaml())


def is_claimed(folder: Path, config: TrainConfig, extend: bool = False) -> bool:
    """Whether the folder already holds a run of this configuration.

    Args:
        extend: the run may have another length, see `extend_run`.
    Raises: UserError if it holds a run of another configuration, or files that are not a run's.
    """
    if (folder / CONFIG).is_file():
        before, now = stored_config(folder, type(config)).identity(), config.identity()
        lines = layers.differences(before, now)
        length_only = {k: v for k, v in before.items() if k not in LENGTH} == {
            k: v for k, v in now.items() if k not in LENGTH
        }
        if lines and not has_trained(folder) and all(x.startswith("code.") for x in lines):
            return False  # it failed in its first step, and its code has been mended
        if lines and not (extend and length_only):
            _refuse(folder, lines, length_only)
        return True
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is a file; choose a folder with --run")
    # These may be left by a process that crashed before config.yaml was complete.
    begun = (f".{CONFIG}.", LOCK, BAD_IMAGES)
    if folder.exists() and any(not p.name.startswith(begun) for p in folder.iterdir()):
        raise UserError(f"'{folder}' exists and is not a run folder; choose another with --run")
    return False


def stored_config(folder: Path, kind: type[C]) -> C:
    """The configuration in a run's folder."""
    return layers.validate(kind, layers.read_yaml(folder / CONFIG))


def _refuse(folder: Path, lines: list[str], length_only: bool) -> None:
    shown = "\n".join(f"  {line}" for line in lines)
    remedy = "Choose another folder with --run, or repeat the command that made this one"
    if length_only:
        remedy = (
            f"To train this run for longer, add extend=true; to go on from it in another folder, "
            f"resume={folder} with another --run"
        )
    raise UserError(
        f"'{folder}' holds another configuration (its value -> yours):\n{shown}\n{remedy}"
    )


def extend_run(folder: Path, config: TrainConfig, per_epoch: int) -> None:
    """Give a run the length of this configuration, which is otherwise the same, from now on: its
    schedules go on as if it had been planned for this length. A finished encoder stays until the
    next one is saved. The caller has locked the folder.

    Args:
        per_epoch: steps of an epoch.
    Raises: UserError for a shorter run.
    """
    before = stored_config(folder, type(config))
    lines = layers.differences(before.identity(), config.identity())
    if not lines:
        return
    old, new = before.steps(per_epoch), config.steps(per_epoch)
    if new < old:
        raise UserError(
            f"extend=true: {', '.join(lines)} makes '{folder}' shorter ({old:,} -> {new:,} steps), "
            f"and a run can only be made longer; choose another folder with --run"
        )
    console.print(
        f"'{folder}' is extended from {old:,} to {new:,} steps ({', '.join(lines)}): its schedules "
        f"go on as if it had been planned for {new:,}",
        soft_wrap=True,
    )
    _write_config(folder, config)


def check_data(folder: Path, config: TrainConfig, source: Source) -> dict[str, Any]:
    """The identity of the images, which is that of the images that the folder's run began with.

    Raises: UserError if they have changed since it saved its first checkpoint. A run of version
        0.1.0 has stored their number alone.
    """
    broken = {line.partition("\t")[0] for line in read_bad(folder / BAD_IMAGES)}
    now = identity(source, broken)
    what = changes(_stored_identity(folder), now, source) if has_trained(folder) else []
    if what:
        where = f"path={config.data.path}" if config.data.path else f"source={config.data.source}"
        raise UserError(
            f"data.{where}: the images are not those that '{folder}' began with "
            f"({'; '.join(what)}). Restore those, or train on these in another folder with --run; "
            f"there, resume={folder} goes on from this run's state"
        )
    return now


def has_trained(folder: Path) -> bool:
    """Whether a run has saved anything that it learned."""
    return (folder / FILE).exists() or any((folder / "checkpoints").glob("step-*.pt"))


def _stored_identity(folder: Path) -> dict[str, Any]:
    """The content of data.json; without one, what a run of version 0.1.0 has."""
    path = folder / DATA
    if not os.path.lexists(path):
        file = folder / DESCRIPTION
        about = read_description(file) if file.is_file() else {}
        images = about.get("pretrained_on", {}).get("images")
        return {"images": images} if images else {}
    try:
        stored = read_json(path)
        if not isinstance(stored.get("images"), int):
            raise Damaged(path, "it holds no number of images")
    except (OSError, Damaged):
        raise UserError(
            f"'{path}' is damaged; if the images are those that the run began with, remove it"
        ) from None
    return stored


def code() -> dict[str, str]:
    """The versions of the packages that make a result, and a hash of the files of this one: what
    must not differ between the machines of a run."""
    root, digest = Path(__file__).parent.parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    versions = {package: package_version(package) for package in PACKAGES}
    return {**versions, "selfsight's code": digest.hexdigest()[:8]}


def package_version(package: str) -> str:
    """Of this package or an installed one, else "unknown"."""
    if package == "selfsight":
        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _git_revision() -> str | None:
    """The commit of the repository that the command runs in; None outside a repository.

    Its files are read here: `git` itself runs programs that the repository's configuration names,
    and the folder may be a stranger's.
    """
    try:
        here = Path.cwd()
        found = next(p / ".git" for p in (here, *here.parents) if os.path.lexists(p / ".git"))
        if found.is_file():  # a worktree or a submodule: the path of its folder
            found = found.parent / _line(found).removeprefix("gitdir: ")
        head = _line(found / "HEAD")
        revision = _resolved(found, head.removeprefix("ref: ")) if "ref: " in head else head
    except (StopIteration, OSError, UserError):
        return None
    return revision if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", revision) else None


def _resolved(git: Path, ref: str) -> str:
    """The commit that a branch is at: in a file of its own, or in packed-refs; "" if in neither."""
    if not re.fullmatch(r"refs/[^\0]+", ref) or ".." in ref:
        return ""
    common = git / _line(git / "commondir") if (git / "commondir").is_file() else git
    for place in (git, common):
        if (place / ref).is_file():
            return _line(place / ref)
    packed = common / "packed-refs"
    lines = read_text(packed, 2**26).splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {ref}")), "")


def _line(file: Path) -> str:
    return read_text(file, 4096).strip()
