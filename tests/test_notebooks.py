"""The notebooks, kept as text, run from top to bottom with one epoch."""

import re

import pytest

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    jupytext = pytest.importorskip("jupytext")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names: dict = {"__name__": "__main__"}
    cells = jupytext.read(path, fmt="py:percent").cells
    assert [cell.cell_type for cell in cells[:2]] == ["markdown", "code"]
    for cell in cells:
        if cell.cell_type == "code":
            code = re.sub(r"^epochs = \d+", "epochs = 1", cell.source, flags=re.MULTILINE)
            code = code.replace('"byol", "vicreg"), (0, 1, 2)', '"byol"), (0, 1)')
            exec(compile(code, str(path), "exec"), names)


def test_there_are_five():
    assert len(NOTEBOOKS) == 5
