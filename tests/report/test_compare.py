"""Runs side by side: what differs, and nothing put beside what was measured differently."""

import io
import json
import re

import pytest
from rich.console import Console

from selfsight.errors import UserError
from selfsight.pretraining.config import compose
from selfsight.report.compare import compare, render

DATA = {"source": "digits", "path": None, "train": 1437, "test": 360, "mean": [0.3], "workers": 1}


def record(protocol="knn", evaluated="encoder", data=None, **changes):
    values = {
        "version": 1,
        "metrics": {"k20": 0.9},
        "seed": 0,
        "cost": {},
        "weights_sha256": "a",
        "data": DATA | (data or {}),
    }
    return values | {"protocol": protocol, "evaluated": evaluated} | changes


@pytest.fixture
def make(tmp_path):
    """Writes the folder of a run that was measured."""

    def write(name, overrides=(), records=(), metrics=({"loss": 2.5, "seconds": 120.0},)):
        folder = tmp_path / name
        folder.mkdir()
        config = compose("digits/simclr", list(overrides), run=str(folder)).config
        (folder / "config.yaml").write_text(config.to_yaml())
        (folder / "results.json").write_text(json.dumps(list(records) or [record()]))
        lines = [json.dumps({"step": n, **m}) + "\n" for n, m in enumerate(metrics)]
        (folder / "metrics.jsonl").write_text("".join(lines))
        return folder

    return write


def text_of(comparison, width=110):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(render(comparison))
    return console.file.getvalue()


def line_of(comparison, what):
    (line,) = [line for line in comparison.lines if line.what == what]
    return line


def test_only_keys_that_differ_and_not_run(make):
    runs = [make("a"), make("b", ["method.temperature=0.2", "epochs=3"]), make("c")]
    found = compare(runs)
    assert dict(found.config) == {"epochs": (50, 3, 50), "method.temperature": (0.5, 0.2, 0.5)}
    assert "All runs have the same seed" in found.notes[0]
    text = text_of(found)
    assert re.search(r"method.temperature +0\.5 +0\.2 +0\.5", text)


def test_keys_of_another_method_are_absent_in_the_first(make):
    found = compare([make("a"), make("b", ["method=byol"])])
    assert dict(found.config)["method.name"] == ("simclr", "byol")
    assert dict(found.config)["method.temperature"] == (0.5, "-")


def test_seed_alone_is_named_and_same_configurations_too(make):
    a, b, c = make("a"), make("b", ["seed=1"]), make("c", ["seed=2", "epochs=3"])
    assert compare([a, b]).notes[0].startswith("The runs differ only in their seed")
    assert compare([a, c]).notes[0].startswith("The seed differs too")
    assert compare([a, a]).notes[0].startswith("The configurations differ at most")
    assert compare([a, make("d", ["data.workers=2"])]).notes[0].startswith("The configurations")


def test_results_beside_each_other_with_the_difference_to_the_first(make):
    linear = {"top1": 0.95, "shots1": 0.8, "shots1_std": 0.03, "chosen_c": 0.1}
    other = {"top1": 0.93, "shots1": 0.85, "shots1_std": 0.02, "chosen_c": 1.0}
    untrained = record(evaluated="untrained", metrics={"k20": 0.1})
    a = make("a", records=[record(), untrained, record("linear", metrics=linear)])
    b = make("b", records=[record(metrics={"k20": 0.925}), record("linear", metrics=other)])
    c = make("c", records=[record(metrics={"k20": 0.8, "k200": 0.7})])
    text = text_of(compare([a, b, c]))
    assert re.search(r"knn k20 +90\.0 +92\.5 \(\+2\.5\) +80\.0 \(-10\.0\)", text)
    assert re.search(r"knn k200 +- +- +70\.0 *\n", text)
    assert re.search(r"linear top1 +95\.0 +93\.0 \(-2\.0\) +- *\n", text)
    assert re.search(r"shots1 +80\.0 ± 3\.0 +85\.0 ± 2\.0 \(\+5\.0\) +- *\n", text)
    assert re.search(r"chosen_c +0\.1 +1 +- *\n", text)  # no accuracy: no percent, no difference
    assert "_std" not in text
    assert "10.0 +" not in text  # the untrained encoder is not in it
    assert "Measured on 360 test images." in text


def test_pretraining_from_the_last_line_that_is_whole(make):
    old = {"loss": 9.0, "seconds": 1.0, "probe_top1": 0.1}
    a = make("a", metrics=[old, {"loss": 2.5, "seconds": 120.0, "probe_top1": 0.9}])
    b = make("b", ["seed=1"], metrics=[{"loss": 2.0, "seconds": 180.0, "probe_top1": 0.8}])
    with (b / "metrics.jsonl").open("a") as file:
        file.write('{"loss": 1.0, "sec')
    found = compare([a, b])
    assert line_of(found, "pretraining: last loss").values == (2.5, 2.0)
    assert line_of(found, "pretraining: minutes").values == (2.0, 3.0)
    text = text_of(found)
    assert re.search(r"last loss +2\.5 +2 \(-0\.5\)", text)
    assert re.search(r"online probe top1 +90\.0 +80\.0 \(-10\.0\)", text)


@pytest.mark.parametrize("override", ["method=byol", "views.0.size=24", "batch_size=32"])
def test_losses_of_different_tasks_have_no_difference(make, override):
    text = text_of(compare([make("a"), make("b", [override], metrics=[{"loss": 2.0}])]))
    assert re.search(r"last loss +2\.5 +2 *\n", text)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"version": 2}, "version"),
        ({"data": {"path": "photos"}}, "data.path"),
        ({"data": {"test": 300}}, "data.test"),
        ({"settings": {"fraction": 0.1}}, "fraction"),
    ],
)
def test_what_was_measured_differently_is_not_put_side_by_side(make, changes, named):
    runs = [make("a"), make("b", records=[record(**changes, metrics={"k20": 0.95})])]
    found = compare(runs)
    apart = [line for line in found.lines if line.what.startswith("knn")]
    assert [line.values for line in apart] == [(0.9, None), (None, 0.95)]
    assert all(f"{named}=" in line.what for line in apart)
    assert any(f"under different {named};" in note for note in found.notes)
    assert "(+5.0)" not in text_of(found)


def test_how_images_are_read_does_not_set_results_apart(make):
    reading = {"mean": [0.5], "std": [0.1], "workers": 8, "in_memory": True}
    found = compare([make("a"), make("b", records=[record(data=reading)])])
    assert line_of(found, "knn k20").values == (0.9, 0.9)


def test_settings_that_all_runs_share_are_lines_and_no_warning(make):
    two = [record("finetune", metrics={"top1": f}, settings={"fraction": f}) for f in (0.1, 0.5)]
    found = compare([make("a", records=two), make("b", records=two[::-1])])
    assert line_of(found, "finetune [fraction=0.1] top1").values == (0.1, 0.1)
    assert line_of(found, "finetune [fraction=0.5] top1").values == (0.5, 0.5)
    assert not any("different" in note for note in found.notes)


def test_the_newest_of_two_records_counts(make):
    again = [record(), record(metrics={"k20": 0.7}, weights_sha256="b")]
    assert line_of(compare([make("a", records=again), make("b")]), "knn k20").values == (0.7, 0.9)


def test_shared_images_are_told(make):
    shared = record(overlap={"allowed": True, "paths": 3, "contents": 7})
    found = compare([make("a"), make("b", records=[shared])])
    assert found.notes[-1].endswith("b: knn: 7 test images are also training images.")


def test_mistakes_are_one_line(make, tmp_path):
    a, b = make("a"), make("b", records=[record(evaluated="untrained")])
    (tmp_path / "empty").mkdir()
    bare = make("bare")
    (bare / "results.json").unlink()
    for runs, said in (
        ([a], "needs two runs"),
        ([a, tmp_path / "empty"], "is not a run folder (no config.yaml in it)"),
        ([a, bare], "has no results; measure it with: selfsight knn"),
        ([a, b], "has no results"),
    ):
        with pytest.raises(UserError) as error:
            compare(runs)
        assert said in str(error.value)
        assert "\n" not in str(error.value)


def test_folders_of_one_name_are_told_apart_and_nothing_is_cut(make):
    (make("x").parent / "y").mkdir()
    runs = [make("x/run"), make("y/run", ["data.path=/a/very/long/path/" + "photos/" * 20])]
    text = text_of(compare(runs), width=80)
    assert "…" not in text
    joined = re.sub(r"\s", "", text)
    assert "x/run" in joined
    assert "y/run" in joined
