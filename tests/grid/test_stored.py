"""A grid's folder as it is read: by its table, and by its cells where these say more."""

import json
import os
import shutil
from pathlib import Path

import pytest

from selfsight.errors import UserError
from selfsight.files import sealed
from selfsight.grid.stored import is_grid, read_stored
from selfsight.report.stored import place
from tests.conftest import ROOT

LEGACY = ROOT / "tests/legacy/grid"
SIMCLR = "digits-simclr-tiny-0-834719"


@pytest.fixture
def grid(tmp_path) -> Path:
    """One method and the untrained encoder, finished."""
    return shutil.copytree(LEGACY, tmp_path / "grid")


def cells(folder: Path) -> dict:
    return {place(cell): cell for cell in read_stored(folder).cells}


def change(file: Path, **changes) -> None:
    tree = {key: value for key, value in json.loads(file.read_text()).items() if key != "checksum"}
    file.write_text(json.dumps({**tree, **changes}))


def test_a_table_and_the_cells_alone_say_the_same(grid):
    with_table = read_stored(grid)
    assert with_table.notes == ()
    assert with_table.about["test_images"] == {"digits": 360}
    at = {method: ("digits", method, "tiny", 0) for method in ("simclr", "untrained")}
    assert with_table.runs[at["simclr"]] == grid / "cells" / SIMCLR / "run"
    (grid / "table.json").unlink()
    without = read_stored(grid)
    assert {place(c): c for c in without.cells} == {place(c): c for c in with_table.cells}
    assert without.about["test_images"] == with_table.about["test_images"]
    assert without.about["hardware"] == with_table.about["hardware"]
    assert without.runs == with_table.runs
    assert "has not come to its end" in without.notes[0]


def test_pixels_of_several_backbones_are_one_row(grid):
    (grid / "table.json").unlink()
    (home,) = (grid / "cells").glob("digits-untrained-*")
    other = shutil.copytree(home, home.with_name("digits-untrained-other-0-834719"))
    job = json.loads((home / "job.json").read_text())["job"]
    change(other / "job.json", job={**job, "backbone": "other", "folder": other.name})
    assert len(read_stored(grid).cells) == 4
    assert cells(grid).keys() == {
        ("digits", "simclr", "tiny", 0),
        ("digits", "untrained", "tiny", 0),
        ("digits", "untrained", "other", 0),
        ("digits", "pixels", "", 0),
    }


def test_nothing_is_changed_by_reading(grid):
    (grid / "table.json").unlink()
    (grid / "cells" / SIMCLR / "outcome.json").write_text("{")
    before = {path: path.stat().st_mtime_ns for path in grid.rglob("*")}
    read_stored(grid)
    assert {path: path.stat().st_mtime_ns for path in grid.rglob("*")} == before


def test_results_that_are_newer_than_the_table_are_read_and_said(grid):
    file = grid / "cells" / SIMCLR / "outcome.json"
    done = json.loads(file.read_text())["done"]
    (key,) = done
    done[key]["encoder"]["k20"] = 0.5
    change(file, done=done)
    table = (grid / "table.json").stat().st_mtime_ns
    os.utime(file, ns=(table - 10**9, table - 10**9))  # an earlier form of the grid
    assert cells(grid)["digits", "simclr", "tiny", 0].metrics["knn"] != 0.5
    os.utime(file, ns=(table + 10**9, table + 10**9))
    assert cells(grid)["digits", "simclr", "tiny", 0].metrics["knn"] == 0.5
    assert "1 cells have results that table.json does not have yet" in read_stored(grid).notes[0]


def test_files_of_any_age_with_the_same_results_are_no_news(grid):
    late = (grid / "table.json").stat().st_mtime_ns + 10**9
    for file in (grid / "cells").rglob("outcome.json"):
        os.utime(file, ns=(late, late))
    assert read_stored(grid).notes == ()


def test_unfinished_cells_say_why_as_far_as_it_is_known(grid):
    (grid / "table.json").unlink()
    home = grid / "cells" / SIMCLR
    (home / "outcome.json").unlink()
    at = ("digits", "simclr", "tiny", 0)
    assert cells(grid)[at].error == "not finished"
    (home / "log.txt").write_text("step 1\nselfsight: the disk is full\n\n")
    assert cells(grid)[at].error == "the disk is full"
    assert cells(grid)[at].metrics == {}


def test_of_two_cells_for_one_place_the_later_counts(grid):
    (grid / "table.json").unlink()
    home = grid / "cells" / SIMCLR
    later = shutil.copytree(home, home.with_name("digits-simclr-tiny-0-ffffff"))
    (later / "outcome.json").unlink()
    stamp = (home / "job.json").stat().st_mtime_ns
    for folder, moved in ((later, 10**9), (home, 0)):
        os.utime(folder / "job.json", ns=(stamp + moved, stamp + moved))
    assert cells(grid)["digits", "simclr", "tiny", 0].error == "not finished"
    assert "1 cells of earlier forms of the grid are left out." in read_stored(grid).notes
    os.utime(later / "job.json", ns=(stamp - 10**9, stamp - 10**9))
    assert cells(grid)["digits", "simclr", "tiny", 0].error is None


@pytest.mark.parametrize(
    "damage",
    [
        {"done": 3},
        {"cost": {"seconds": "long"}},
        {"done": {"PROTOCOL": {"encoder": {"k20": 3.0}}}},  # no accuracy
        {"done": {"PROTOCOL": {"someone": {"k20": 0.5}}}},
        {"done": {"PROTOCOL": {"encoder": {"k20": "high"}}}},
    ],
)
def test_damaged_results_of_a_cell_are_left_out_and_said(grid, damage):
    (grid / "table.json").unlink()
    file = grid / "cells" / SIMCLR / "outcome.json"
    (key,) = json.loads(file.read_text())["done"]
    change(file, **json.loads(json.dumps(damage).replace('"PROTOCOL"', json.dumps(key))))
    stored = read_stored(grid)
    assert {place(c): c for c in stored.cells}["digits", "simclr", "tiny", 0].metrics == {}
    (said,) = [note for note in stored.notes if "counts as unfinished" in note]
    assert "outcome.json' is damaged" in said


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"job": {}, "protocols": []}',
        '{"job": 3, "protocols": []}',
        json.dumps({"job": {"data": 3}, "protocols": []}),
    ],
)
def test_a_cell_that_does_not_say_what_it_is_is_left_out(grid, content):
    (grid / "table.json").unlink()
    (grid / "cells" / SIMCLR / "job.json").write_text(content)
    stored = read_stored(grid)
    assert {c.method for c in stored.cells} == {"untrained", "pixels"}
    assert any("A cell is left out" in note for note in stored.notes)


def test_protocols_without_a_column_are_no_traceback(grid):
    (grid / "table.json").unlink()
    file = grid / "cells" / SIMCLR / "job.json"
    change(file, protocols=[{"kind": "finetune", "keys": {"fraction": 0.37}}])
    assert any("A cell is left out" in note for note in read_stored(grid).notes)


def test_a_folder_without_a_grid(tmp_path):
    assert not is_grid(tmp_path)
    assert not is_grid(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no grid"):
        read_stored(tmp_path)


def test_a_sealed_outcome_that_was_changed_is_damaged(grid):
    (grid / "table.json").unlink()
    file = grid / "cells" / SIMCLR / "outcome.json"
    tree = sealed({k: v for k, v in json.loads(file.read_text()).items() if k != "checksum"})
    file.write_text(json.dumps({**tree, "online": 0.99}))
    assert any("does not agree with its checksum" in note for note in read_stored(grid).notes)
