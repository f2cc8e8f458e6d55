"""A run folder belongs to one configuration, which its config.yaml says."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from selfsight import __version__
from selfsight import config as layers
from selfsight.errors import UserError
from selfsight.files import write_text
from selfsight.pretraining.config import to_yaml
from selfsight.train.engine import TrainConfig

BAD_IMAGES = "bad_images.txt"
PACKAGES = ("selfsight", "torch", "torchvision", "timm", "numpy", "scikit-learn")


def claim(folder: Path, config: TrainConfig) -> None:
    """Take a folder for this configuration, or make sure that it is already this one's."""
    if is_claimed(folder, config):
        return
    versions = " ".join(f"{name} {package_version(name)}" for name in PACKAGES)
    head = f"# python {platform.python_version()} {versions}\n"
    revision = _git_revision()
    if revision:
        head += f"# git {revision}\n"
    write_text(folder / "config.yaml", head + to_yaml(config))


def is_claimed(folder: Path, config: TrainConfig) -> bool:
    """Whether the folder is already this configuration's.

    Raises: UserError if it is another's, or if what it holds is not a run.
    """
    path = folder / "config.yaml"
    if path.is_file():
        there = layers.validate(type(config), layers.read_yaml(path))
        lines = layers.differences(there.identity(), config.identity())
        if lines:
            shown = "\n".join(f"  {line}" for line in lines)
            raise UserError(
                f"'{folder}' holds another configuration (there -> asked for):\n{shown}\n"
                f"Choose another folder with --run, or repeat the command that made it"
            )
        return True
    # What a crash before the end of the very first write may have left.
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
    """HEAD of the repository that the command runs in, marked where files differ from it."""
    try:
        text = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return text.strip() or None
