"""table.json is read as what a stranger may have written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfsight.files import Damaged
from selfsight.report.stored import read_table
from selfsight.report.table import to_json
from tests.conftest import ROOT
from tests.report.test_grid_table import GRID, cell

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
costs = st.none() | st.floats(0, 1e6)
some_cells = st.lists(
    st.builds(
        cell,
        method=text,
        seed=st.integers(0, 3),
        accuracy=st.none() | st.floats(0, 1),
        data=text,
        backbone=text,
        minutes=costs,
        memory_mib=costs,
        images_per_second=costs,
        error=st.none() | text,
    ),
    max_size=6,
    unique_by=lambda c: (c.data, c.method, c.backbone, c.seed),
)


@given(some_cells)
def test_what_is_written_is_read(tmp_path_factory, cells):
    file = tmp_path_factory.getbasetemp() / "table.json"
    about = {"title": "A", "test_images": {"digits": 360}, "versions": {"torch": "2"}}
    file.write_text(to_json(cells, about))
    found, said = read_table(file)
    assert sorted(map(repr, found)) == sorted(map(repr, cells))
    assert said == about


def test_a_table_of_the_first_version_is_read():
    cells, about = read_table(ROOT / "tests/legacy/grid/table.json")
    assert [c.method for c in cells] == ["simclr", "pixels", "untrained"]
    assert about["versions"]["tacit"] == "0.1.0"


def first(**changes):
    tree = json.loads(to_json(GRID[:1], {}))
    return {**tree, "cells": [{**tree["cells"][0], **changes}]}


WRONG = {
    "no object": [],
    "another object": {"loss": 3},
    "cells of another kind": {"about": {}, "cells": ["simclr"]},
    "an unknown key": first(colour="red"),
    "too few keys": {"about": {}, "cells": [{"method": "a"}]},
    "a number as a name": first(method=3),
    "a text as a number": first(minutes="3"),
    "less than no time": first(minutes=-1.0),
    "an endless time": first(minutes=float("inf")),
    "an accuracy above 1": first(metrics={"knn": 1.5}),
    "an accuracy that is no number": first(metrics={"knn": float("nan")}),
    "an unknown column": first(metrics={"beauty": 0.5}),
    "metrics that are a list": first(metrics=[1]),
    "a text as an accuracy": first(metrics={"knn": "0.5"}),
    "a seed that is no number": first(seed="0"),
    "a cell twice": {**first(), "cells": 2 * first()["cells"]},
    "images below none": {**first(), "about": {"test_images": {"digits": -1}}},
    "images that are no number": {**first(), "about": {"test_images": {"digits": "many"}}},
    "versions that are a list": {**first(), "about": {"versions": ["torch"]}},
    "a title that is no text": {**first(), "about": {"title": {"a": 1}}},
}


@pytest.mark.parametrize("name", WRONG)
def test_another_content_is_one_line(name, tmp_path):
    file = tmp_path / "table.json"
    file.write_text(json.dumps(WRONG[name]))
    with pytest.raises(Damaged, match=r"table\.json' is damaged") as error:
        read_table(file)
    assert len(str(error.value).splitlines()) == 1
