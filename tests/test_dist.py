"""What is published, a wheel, works without the repository: it is built, installed, and trains."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import selfsight
from selfsight.evaluate.protocols.config import protocols
from selfsight.grid.plan import grids
from selfsight.pretraining.recipes import recipes
from tests.conftest import ROOT, TINY, heads

BUILD = "from setuptools import build_meta; build_meta.build_wheel({!r})"
KEYS = [*TINY, *heads("simclr"), "max_steps=2"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, since a build writes into its folder."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    shutil.copytree(
        ROOT / "selfsight", source / "selfsight", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    _run(source, sys.executable, "-c", BUILD.format(str(target)))
    (path,) = target.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel. It sees the libraries of this one, which are large, but not
    the package that is installed here: of a folder that a .pth file names, Python reads no .pth."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = ("-m", "pip", "--python", str(python), "--disable-pip-version-check")
    _run(folder, sys.executable, *pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    packages = Path(
        sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
    )
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "libraries.pth").write_text("\n".join(sorted(here)) + "\n")
    return folder / "bin"


def _run(cwd: Path, *command: str | Path) -> str:
    """What a command prints, without a trace of the repository in its environment."""
    unset = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PWD")
    environ = {key: value for key, value in os.environ.items() if key not in unset}
    done = subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_has_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("selfsight/")}
    files = (path for path in (ROOT / "selfsight").rglob("*") if path.is_file())
    there = {p.relative_to(ROOT).as_posix() for p in files if p.suffix != ".pyc"}
    assert packed == there
    yamls = {name for name in packed if name.endswith(".yaml")}
    assert len(yamls) == len(recipes()) + len(protocols()) + len(grids())


def test_the_wheel_has_the_version_of_the_package(wheel):
    assert wheel.name == f"selfsight-{selfsight.__version__}-py3-none-any.whl"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    for name in ("CITATION.cff", "CHANGELOG.md"):
        found = re.search(r"^(?:version: |## \[)([\d.]+)", (ROOT / name).read_text(), re.MULTILINE)
        assert found[1] == selfsight.__version__, name


def test_the_installed_package_is_the_wheels(installed, tmp_path):
    where = _run(
        tmp_path, installed / "python", "-c", "import selfsight; print(selfsight.__file__)"
    )
    assert Path(where.strip()).is_relative_to(installed.parent)


def test_the_installed_command_knows_its_version(installed, tmp_path):
    assert selfsight.__version__ in _run(tmp_path, installed / "selfsight", "--version")


def test_the_installed_command_knows_its_recipes(installed, tmp_path):
    listed = _run(tmp_path, installed / "selfsight", "recipes")
    assert [line.split()[0] for line in listed.splitlines()] == recipes()


def test_the_installed_command_trains(installed, tmp_path):
    _run(tmp_path, installed / "selfsight", "pretrain", "digits/simclr", *KEYS, "--run", "r")
    assert (tmp_path / "r" / "encoder.safetensors").exists()
    assert f"selfsight {selfsight.__version__} " in (tmp_path / "r" / "config.yaml").read_text()
