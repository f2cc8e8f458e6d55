"""What the documentation shows is taken from it and run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from selfsight import cli
from selfsight.cli.app import app
from selfsight.pretraining.config import compose
from tests.conftest import ROOT
from tests.losses.test_losses import compare as equal_losses
from tests.processes import environment

PAGE = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A copy of the package to which the page's method was added as the page says."""
    folder = tmp_path_factory.mktemp("copy")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "selfsight", folder / "selfsight", ignore=ignore)
    file, line, _ = blocks("python")
    (recipe,) = blocks("yaml")
    paths = re.findall(r"^`(selfsight/[\w/.]+)`$", PAGE, re.MULTILINE)
    for path, text in zip(paths, (file, recipe), strict=True):
        (folder / path).write_text(text)
    imported, entry = line.splitlines()
    listing = folder / "selfsight" / "methods" / "__init__.py"
    text = listing.read_text().replace('    "simclr": ', f'{entry}\n    "simclr": ', 1)
    first = "from selfsight.methods.barlow_twins"
    listing.write_text(text.replace(first, f"{imported}\n{first}", 1))
    return folder


def selfsight(package: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "selfsight", *arguments],
        cwd=package,
        env={**environment(), "PYTHONPATH": str(package), "PWD": os.fspath(package)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_pages_method_trains(package):
    assert "2005.10242" in selfsight(package, "methods")
    selfsight(package, "pretrain", "digits/align_uniform", "max_steps=3", "--run", "runs/added")
    assert (package / "runs/added/encoder.safetensors").exists()


def test_the_pages_loss_equals_the_pages_oracle():
    file, _, oracle = blocks("python")
    names: dict = {"__name__": "page"}
    exec(file, names)
    exec(oracle, names)
    torch.manual_seed(0)
    z1, z2 = (torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    unit = [F.normalize(z, dim=1).detach().requires_grad_() for z in (z1, z2)]
    naive = names["naive_align_uniform"]
    equal_losses(
        lambda a, b: names["align_uniform"](a, b, 0.7),
        lambda a, b: naive(F.normalize(a, dim=1), F.normalize(b, dim=1), 0.7),
        *unit,
    )


# All pages ----------------------------------------------------------------------------------------

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@every_page
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


@every_page
def test_the_files_that_a_page_names_exist(page):
    """Of the package, the tests and the benchmarks; the page about a new method adds two."""
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:selfsight|tests|benchmarks)/[\w./-]*)`", text))
    named |= {m.replace(".", "/") + ".py" for m in re.findall(r"-m (benchmarks\.\w+)", text)}
    missing = {name for name in named if not (ROOT / name).exists()}
    assert missing == (
        set(re.findall(r"^`([\w/.]+)`$", PAGE, re.MULTILINE)) if text == PAGE else set()
    )


def test_the_readme_lists_every_command():
    cli.register_all()
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    listed = set(re.findall(r"^\|.*?`selfsight ([\w-]+)", README, re.MULTILINE))
    listed |= set(re.findall(r"`selfsight ([\w-]+)`", README))
    assert listed == {name.replace("_", "-") for name in known}


def test_the_readmes_configuration_is_valid(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(text)
    config = compose(str(tmp_path / "mine.yaml")).config
    assert (config.epochs, config.method.temperature) == (100, 0.2)


def test_the_readmes_method_is_the_packages():
    (_, forward) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    source = (ROOT / "selfsight/methods/simclr.py").read_text()
    assert forward[forward.index("    def forward") :].rstrip() in source
