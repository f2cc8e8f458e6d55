"""A run folder belongs to one configuration: the one in its config.yaml."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from selfsight import __version__
from selfsight import config as layers
from selfsight.errors import UserError
from selfsight.files import read_text, write_text
from selfsight.train.config import TrainConfig

BAD_IMAGES = "bad_images.txt"
PACKAGES = ("selfsight", "torch", "torchvision", "timm", "numpy", "scikit-learn")


def claim(folder: Path, config: TrainConfig) -> None:
    """Write config.yaml into a new folder. Raises: UserError, see `is_claimed`."""
    if is_claimed(folder, config):
        return
    versions = " ".join(f"{name} {package_version(name)}" for name in PACKAGES)
    head = f"# python {platform.python_version()} {versions}\n"
    revision = _git_revision()
    if revision:
        head += f"# git {revision}\n"
    write_text(folder / "config.yaml", head + config.to_yaml())


def is_claimed(folder: Path, config: TrainConfig) -> bool:
    """Whether the folder already holds a run of this configuration.

    Raises: UserError if it holds a run of another configuration, or files that are not a run's.
    """
    path = folder / "config.yaml"
    if path.is_file():
        stored = layers.validate(type(config), layers.read_yaml(path))
        lines = layers.differences(stored.identity(), config.identity())
        if lines:
            shown = "\n".join(f"  {line}" for line in lines)
            raise UserError(
                f"'{folder}' holds another configuration (its value -> yours):\n{shown}\n"
                f"Choose another folder with --run, or repeat the command that made this one"
            )
        return True
    # These may be left by a process that crashed before config.yaml was complete.
    begun = (".config.yaml.", BAD_IMAGES)
    if folder.exists() and any(not p.name.startswith(begun) for p in folder.iterdir()):
        raise UserError(f"'{folder}' exists and is not a run folder; choose another with --run")
    return False


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
