"""The page about features: its commands and its Python run as they stand."""

import importlib.util
import re
import shlex

import numpy as np
import pytest
from PIL import Image

import selfsight
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, and a few files of images."""
    folder = tmp_path_factory.mktemp("page")
    selfsight.pretrain("digits/simclr", run=folder / "runs/digits", max_steps=2, quiet=True)
    (folder / "photos").mkdir()
    for n in range(6):
        image = np.random.default_rng(n).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(image).save(folder / "photos" / f"{n}.png")
    return folder


def test_the_commands_and_the_code_of_the_page_run(folder, command, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    pytest.importorskip("pandas")
    commands = [
        shlex.split(line, comments=True)[1:]
        for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
        for line in block.splitlines()
    ]
    assert [words[0] for words in commands] == ["embed"] * 4
    for words in commands:
        done = command(*words, "device=cpu", cwd=folder)
        assert done.returncode == 0, (words, done.stderr)
    names: dict = {"__name__": "__main__"}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(folder)
    skipped = [code for code in blocks if "fiftyone" in code and not _has("fiftyone")]
    assert len(skipped) <= 1
    for code in blocks:
        compiled = compile(code, "features.md", "exec")
        if code not in skipped:
            exec(compiled, names)
    accuracy = float(capsys.readouterr().out.splitlines()[1])
    assert accuracy > 0.5  # ten classes, two steps of training
    assert names["features"].shape == (2, 128)
    assert names["done"].rows == 100


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def test_the_page_says_the_limits_that_hold():
    from selfsight.embeddings.nearest import KEPT, MOST

    assert f"at most {MOST:,} images" in PAGE
    assert f"first {KEPT} principal" in PAGE.replace("\n", " ")
