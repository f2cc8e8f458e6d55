"""A run folder belongs to one configuration: the one in its config.yaml."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from selfsight import __version__
from selfsight import config as layers
from selfsight.errors import UserError
from selfsight.files import write_text
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
    """The commit of the repository that the command runs in, with -dirty if files were changed;
    None outside a repository."""
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
