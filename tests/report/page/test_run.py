"""The page of a run: what it says, what it leaves out and why, and what it never does."""

import html
import html.parser
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from selfsight.embeddings.nearest import project
from selfsight.errors import UserError
from selfsight.evaluate import protocols
from selfsight.evaluate.interval import wilson
from selfsight.evaluate.protocols import read_results
from selfsight.evaluate.protocols.opened import open_features
from selfsight.evaluate.protocols.target import open_target
from selfsight.pretraining.config import compose
from selfsight.pretraining.job import pretrain
from selfsight.report.page import page as pages
from selfsight.report.page import seen as seen_images
from selfsight.report.page.confusion import kept_classes, matrix, worst_classes
from selfsight.report.page.curves import MOST, curves_panel
from selfsight.report.page.nearest import MISTAKES, QUERIES, chosen
from selfsight.report.page.page import LIMIT, Page, assemble
from selfsight.report.page.panel import Panel, fragment
from selfsight.report.page.provenance import provenance_panel
from selfsight.report.page.run import report, run_page
from selfsight.report.page.scatter import _clusters, map_panel, sprite
from selfsight.report.page.subject import read_subject
from selfsight.report.page.verdict import Score, duration, measured, newcombe, sentence
from selfsight.report.page.warn import warnings
from tests.conftest import power_cuts
from tests.report.page.conftest import EVIL, trained, write_images

CPU = ["device=cpu"]


class Elements(html.parser.HTMLParser):
    """The elements of a page, and the texts of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.found, self.scripts, self._inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self._inside = tag == "script"

    def handle_data(self, data):
        if self._inside:
            self.scripts.append(data)
            self._inside = False


@pytest.fixture
def copy(digits, tmp_path):
    """The measured run, to be changed."""
    return shutil.copytree(digits, tmp_path / "run")


# What the page is ---------------------------------------------------------------------------------


def test_the_same_run_gives_the_same_bytes_and_asks_nothing_of_a_network(digits, tmp_path):
    a = report(digits, tmp_path / "a.html", CPU).read_bytes()
    b = report(digits, tmp_path / "b.html", CPU).read_bytes()
    assert a == b
    assert len(a) < LIMIT
    for tag, attributes in Elements(a.decode()).found:
        assert tag not in ("iframe", "object", "embed", "audio", "video")
        for key in ("src", "href"):
            assert attributes.get(key, "#").startswith(("#", "data:")), (tag, attributes[key][:80])
    assert b"@import" not in a
    assert b"default-src 'none'" in a


def test_a_page_that_is_too_large_loses_its_largest_panels_and_says_so(monkeypatch):
    panels = [Panel(f"p{n}", f"Panel {n}", fragment("{{ x }}", x=n * "x")) for n in (10, 900, 400)]
    page = Page("a", "run", (), "Good.", ("One.",), tuple(panels))
    whole = len(assemble(page).encode())
    monkeypatch.setattr(pages, "LIMIT", whole - 500)
    small = assemble(page)
    assert len(small.encode()) <= whole - 500
    assert "&#39;Panel 900&#39; is left out" in small
    assert 'id="p400"' in small
    assert 'id="p900"' not in small


def test_html_in_names_stays_text(hostile, tmp_path):
    text = report(hostile, tmp_path / "page.html", CPU).read_text()
    page = Elements(text)
    assert not [a for tag, a in page.found if tag == "img" and "onerror" in a]
    assert [tag for tag, _ in page.found].count("script") == len(page.scripts)
    charts = [a["id"] for tag, a in page.found if tag == "script" and a.get("class") == "bokeh"]
    assert charts == ["curves-charts", "map-charts", "confusion-charts"]
    stored = [json.loads(script) for script in page.scripts[: len(charts)]]
    assert EVIL[0] in json.dumps(stored[1])
    assert json.dumps(stored[2]).count('"PlainText"') == 2 * len(EVIL)  # no formula
    assert "<script>alert" not in text


def test_pixels_of_many_bands_and_16_bits_without_labels(unlabelled):
    page = run_page(read_subject(unlabelled, CPU))
    names = [panel.name for panel in page.panels]
    assert names == ["curves", "map", "neighbours", "views", "origin"]
    assert page.verdict.startswith("Not measured yet")
    assert "LABELLED_IMAGES" in page.command
    assert any("no labels" in warning for warning in page.warnings)
    assert "first three of the 12" in page.panels[3].note
    seen = read_subject(unlabelled, CPU).seen
    assert seen.predicted is None
    own = torch.arange(len(seen.images))[:, None]
    assert not (seen.place == own).any()  # no image is its own neighbour
    picture = next(seen.pictures(seen.images, np.array([5]), 16))
    assert picture.shape == (16, 16, 3)
    assert picture.max() > 40  # a digit is seen


# What it says -------------------------------------------------------------------------------------


def test_predictions_are_those_of_the_protocol(digits):
    """Neighbour by neighbour, with sums of its own; and the stored accuracy exactly."""
    subject = read_subject(digits, CPU)
    record = next(r for r in subject.results if r["evaluated"] == "encoder")
    assert subject.seen.right.sum() / len(subject.seen.right) == record["metrics"]["k20"]
    with open_features(open_target(digits, [], None), CPU) as (_, found):
        train, test = (x.double() for x in (found.train, found.test))
    train, test = (x / x.norm(dim=1, keepdim=True) for x in (train, test))
    labels = subject.seen.bank.labels
    for row in range(0, 90, 5):
        similarity, place = (test[row] @ train.T).topk(20)
        votes = torch.zeros(10, dtype=torch.double)
        votes.index_add_(0, labels[place], (similarity / 0.07).exp())
        assert int(votes.argmax()) == int(subject.seen.predicted[row])
        assert set(subject.seen.place[row].tolist()) <= set(place.tolist())


def test_the_verdict_holds_what_results_json_holds(digits):
    subject = read_subject(digits, CPU)
    said = sentence(subject).replace("\N{NO-BREAK SPACE}", " ")
    for record in read_results(digits):
        assert f"{100 * record['metrics']['k20']:.1f} %" in said
    assert "of 90 test images" in said
    assert "pretraining on cpu" in said
    low, high = wilson(measured(subject)[0].encoder.value, 90)
    assert f"{100 * low:.1f} to {100 * high:.1f} %" in said


@pytest.mark.parametrize(
    ("encoder", "pixels", "begins"),
    [
        (0.9, 0.5, "kNN (k = 20) on this encoder"),
        (0.52, 0.5, "Not clearly better than raw pixels: kNN"),
        (0.3, 0.5, "Worse than raw pixels: kNN"),
    ],
)
def test_a_bad_comparison_comes_first(copy, encoder, pixels, begins):
    records = read_results(copy)
    values = {"encoder": encoder, "pixels": pixels, "untrained": 0.1}
    for record in records:
        record["metrics"]["k20"] = values[record["evaluated"]]
    (copy / "results.json").write_text(json.dumps(records))
    subject = read_subject(copy, CPU)
    assert sentence(subject).startswith(begins)
    assert any("raw pixels" in line for line in warnings(subject)) == (encoder != 0.9)


@pytest.mark.parametrize(
    ("low", "high", "begins"),
    [
        (0.01, 0.09, "kNN (k = 20) on this encoder"),
        (-0.02, 0.03, "Not clearly better than what it started from"),
        (-0.2, -0.1, "Worse than what it started from"),
    ],
)
def test_the_encoder_that_it_started_from_is_compared_image_by_image(copy, low, high, begins):
    records = [r for r in read_results(copy) if r["evaluated"] in ("encoder", "untrained")]
    (encoder, untrained) = records
    encoder |= {"metrics": {"k20": 0.9}, "gain": {"mean": 0.0, "low": low, "high": high}}
    untrained |= {"metrics": {"k20": 0.1}}
    start = {**untrained, "evaluated": "start", "metrics": {"k20": 0.88}}
    (copy / "results.json").write_text(json.dumps([encoder, start, untrained]))
    said = sentence(read_subject(copy, CPU)).replace("\N{NO-BREAK SPACE}", " ")
    assert said.startswith(begins)
    assert "against 88.0 % at the start and 10.0 % untrained" in said


def test_results_of_other_weights_are_not_claimed(copy):
    records = read_results(copy)
    for record in records:
        if record["evaluated"] == "encoder":
            record["weights_sha256"] = "0" * 64
    (copy / "results.json").write_text(json.dumps(records))
    subject = read_subject(copy, CPU)
    assert sentence(subject).startswith("Not measured yet")
    assert any("of other weights" in line for line in warnings(subject))


def test_overlap_and_broken_images_are_warned_of(copy):
    records = read_results(copy)
    for record in records:
        record["overlap"] = {"paths": 0, "contents": 7, "allowed": True}
    (copy / "results.json").write_text(json.dumps(records))
    (copy / "bad_images.txt").write_text("a<b>.png\tis torn\n")
    lines = warnings(read_subject(copy, CPU))
    assert any(line.startswith("7 test images of knn are also training images") for line in lines)
    assert any(
        "1 broken image was replaced" in line and "a<b>.png: is torn" in line for line in lines
    )


def test_a_collapse_is_judged_as_the_training_judges_it(copy):
    def record(step, std):
        return {"step": step, "epoch": float(step), "embedding_std": std, "embedding_rank": 9.0}

    def collapsed(*deviations):
        lines = [json.dumps(record(n, std)) for n, std in enumerate(deviations, 1)]
        (copy / "metrics.jsonl").write_text("\n".join(lines))
        return [x for x in warnings(read_subject(copy, CPU)) if x.startswith("Collapse")]

    assert collapsed(0.9, 0.05, 0.05, 0.9, 0.05) == []
    (line,) = collapsed(0.9, 0.05, None, 0.05, 0.04, 0.03)
    assert "standard deviation 0.040" in line
    assert "epoch 5.0" in line


def test_curves_keep_the_last_record_of_many(copy):
    records = [
        {"step": n, "epoch": n / 10, "loss": 1 / n, "lr": None, "seconds": 0.1 * n}
        for n in range(1, 5000)
    ]
    (copy / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    text = str(curves_panel(read_subject(copy, CPU)).html)
    assert 'id="curves-chart-0"' in text
    assert 'id="curves-chart-1"' not in text  # the rate was never known
    entries = json.loads(re.search(r">(\{.*\})</script>", text)[1])
    columns = re.findall(r'\["x",(\[[^\]]*\])\]', json.dumps(entries, separators=(",", ":")))
    points = json.loads(columns[0])
    assert len(points) <= MOST
    assert points[-1] == 499.9


@given(st.integers(1, 400), st.integers(0, 400))
def test_the_interval_holds_the_accuracy_and_shrinks_with_more_images(images, right):
    value = min(right, images) / images
    low, high = wilson(value, images)
    assert 0 <= low <= value + 1e-12
    assert value - 1e-12 <= high <= 1
    more = wilson(value, 100 * images)
    assert more[1] - more[0] < high - low


def test_wilson_against_the_formula():
    n, p, z = 360, 346 / 360, 1.959963984540054
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert wilson(p, n) == pytest.approx((middle - half, middle + half), abs=1e-9)


def test_the_difference_of_few_images_proves_nothing():
    def score(right, images):
        return Score("encoder", right / images, *wilson(right / images, images), images)

    # Newcombe 1998, table II, method 10: 56/70 - 48/80, 9/10 - 3/10, 10/10 - 0/10.
    for a, b, expected in (
        (score(56, 70), score(48, 80), (0.0524, 0.3339)),
        (score(9, 10), score(3, 10), (0.1705, 0.8090)),
        (score(10, 10), score(0, 10), (0.6075, 1.0)),
    ):
        assert newcombe(a, b) == pytest.approx(expected, abs=5e-5)
    assert newcombe(score(1, 1), score(0, 1))[0] < 0
    assert newcombe(score(40, 40), score(36, 40))[0] < 0  # Fisher's exact p is 0.12


def test_confusion_counts_and_the_worst_classes():
    truth, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([1, 1, 2, 1, 0, 2])
    counts = matrix(truth, predicted, 4)
    assert counts.tolist() == [[0, 2, 1, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    worst = worst_classes(counts, ["a", "b", "c", "d"])
    assert [(x.name, x.right, x.images, x.taken_for, x.times) for x in worst] == [
        ("a", 0, 3, "b", 2),
        ("b", 1, 2, "a", 1),
    ]


def test_of_many_classes_the_matrix_has_the_worst():
    truth = np.repeat(np.arange(200), 5)
    predicted = truth.copy()
    predicted[truth % 5 == 2] = 7  # 40 classes are always wrong
    classes = [f"class {n} with a long name" for n in range(200)]
    counts = matrix(truth, predicted, 200)
    kept = kept_classes(counts)
    assert len(kept) == 30
    assert (np.diff(kept) > 0).all()
    assert set(kept % 5) == {2}
    assert all(x.taken_for == classes[7] for x in worst_classes(counts, classes))


def test_queries_are_mistakes_first(digits):
    seen = read_subject(digits, CPU).seen
    rows = chosen(seen)
    assert len(set(rows.tolist())) == QUERIES
    wrong = ~seen.right[rows]
    assert wrong.tolist() == sorted(wrong.tolist(), reverse=True)
    assert wrong.sum() == min(MISTAKES, (~seen.right).sum())


def test_results_on_other_images_of_older_versions_and_seeds_are_told_apart(copy):
    """The verdict is about the run's own images, whatever is higher elsewhere."""
    encoder = next(r for r in read_results(copy) if r["evaluated"] == "encoder")

    def record(accuracy, **other):
        return {**encoder, "metrics": {"k20": accuracy}, **other}

    others = {**encoder["data"], "path": "easy.npz"}
    changed = {"changed": {"epochs": 1, "views.0.flip": 0.2}}
    trained_by = {"protocol": "finetune", "kind": "finetune", "metrics": {"top1": 0.2}}
    records = [
        record(0.5),
        record(0.9, data=others, overlap={"paths": 3, "contents": 0, "allowed": True}),
        record(0.8, version=1),
        record(0.4, seed=3, settings={"resize": "squash"}),
        record(0.2, **trained_by, version=1, settings=changed, seed=4),
    ]
    (copy / "results.json").write_text(json.dumps(records))
    subject = read_subject(copy, CPU)
    assert [m.title for m in measured(subject)] == [
        "kNN (k = 20)",
        "kNN (k = 20), resize=squash, seed=3",
        "fine-tuning, epochs=1, seed=4, views.0.flip=0.2",
        "kNN (k = 20), version 1 of the protocol",
        "kNN (k = 20), data.path=easy.npz",
    ]
    assert sentence(subject).startswith("kNN (k = 20) on this encoder gets 50.0")
    page = html.unescape(str(provenance_panel(subject).html))
    assert set(re.findall(f"<code>(selfsight (?:knn|finetune) .*){copy}(.*)</code>", page)) == {
        ("selfsight knn ", ""),
        ("selfsight knn ", " data.path=easy.npz allow_overlap=true"),
        ("selfsight knn ", " resize=squash seed=3"),
        ("selfsight finetune ", " epochs=1 seed=4 views.0.flip=0.2"),
    }


def test_images_are_resized_as_by_the_newest_knn(copy):
    protocols.knn(copy, [*CPU, "resize=squash", "image_size=16"])
    assert read_subject(copy, CPU).seen.resize == "squash"


@pytest.mark.parametrize("epoch", [(0.0123, "0.0123"), (12.5, "12.5"), (1000.0, "1,000")])
def test_the_length_of_a_long_run_is_written_out(copy, epoch):
    record = {"step": 10, "epoch": epoch[0], "loss": 1.0, "seconds": 1.0}
    (copy / "metrics.jsonl").write_text(json.dumps(record))
    facts = dict(run_page(replace(read_subject(copy, CPU), seen=None)).facts)
    assert facts["length"] == f"{epoch[1]} epochs, 10 steps"


def test_equal_features_have_a_map():
    """Those of a collapsed run: t-SNE divides by their variance."""
    features = np.full((30, 16), 0.25, np.float32)
    assert (project(features, "tsne", 0) == 0).all()
    assert (_clusters(features, 10) == 0).all()


def test_thumbnails_that_are_not_square_are_where_the_sheet_has_them(digits):
    """The sheet is enlarged to whole thumbnails in both directions."""
    subject = read_subject(digits, CPU)
    subject = replace(subject, seen=replace(subject.seen, size=(16, 9)))
    text = html.unescape(str(map_panel(subject).html))
    _, columns, (width, height) = sprite(subject.seen, subject.seen.sample())
    assert width < height
    lines = -(-len(subject.seen.images) // columns)
    size = f"background-size:{columns * width}px {lines * height}px"
    assert text.count(size) == 2  # of the tooltip, and of the image that was picked


def test_durations():
    assert [duration(x) for x in (3.21, 44.6, 119, 7000, 90_000)] == [
        "3.2 seconds", "45 seconds", "119 seconds", "117 minutes", "25.0 hours"
    ]  # fmt: skip


# Runs that lack something -------------------------------------------------------------------------


def test_a_run_that_was_stopped_shows_its_checkpoint(digits, tmp_path, monkeypatch):
    power_cuts(monkeypatch, 9)
    images = f"data.path={digits.parent / 'digits.npz'}"
    with pytest.raises(RuntimeError, match="power cut"):
        trained(tmp_path / "run", images, "checkpoint.every_steps=4")
    page = run_page(read_subject(tmp_path / "run", CPU))
    assert any("not finished" in line and "step 8 is shown" in line for line in page.warnings)
    assert "neighbours" in [panel.name for panel in page.panels]
    assert {path.name for path in tmp_path.iterdir()} <= {"run", ".cache"}  # no run-step-8


def test_a_run_without_any_encoder_shows_what_there_is(copy):
    for name in ("encoder.safetensors", "encoder.json"):
        (copy / name).unlink()
    shutil.rmtree(copy / "checkpoints")
    page = run_page(read_subject(copy, CPU))
    assert page.verdict.startswith("No encoder is saved yet")
    assert [panel.name for panel in page.panels] == ["curves", "views", "origin"]
    assert any("left out" in line for line in page.warnings)


def test_images_that_were_moved_are_named(hostile, tmp_path):
    home = shutil.copytree(hostile.parent, tmp_path / "home")
    run = home / hostile.name
    config = (run / "config.yaml").read_text()
    data = re.search(r"path: (.*list.csv)", config)[1].strip("'\"").replace("''", "'")
    moved = hostile.parent / "gone"
    (hostile.parent / "a'<i>").rename(moved)
    try:
        page = run_page(read_subject(run, CPU))
        assert [panel.name for panel in page.panels] == ["results", "curves", "origin"]
        (line,) = [x for x in page.warnings if x.startswith("The map, the neighbours")]
        assert data in line
        assert "data.path=FOLDER" in line
        assert page.verdict.count("36 test images")
        keys = [*CPU, f"data.path={moved / 'list.csv'}"]
        found = run_page(read_subject(run, keys))
        assert {"neighbours", "views"} <= {panel.name for panel in found.panels}
        assert any(f"data.path={moved / 'list.csv'}" in line for line in found.warnings)
    finally:
        moved.rename(hostile.parent / "a'<i>")


def test_a_broken_image_is_replaced_among_the_views_and_not_recorded(tmp_path):
    listed = write_images(tmp_path / "images", 0, 60)
    files = sorted(listed.parent.glob("*.png"))
    for file in files[::2]:
        file.write_bytes(b"no image")
    keys = [f"data.path={listed}", "data.max_bad=0.6", "batch_size=20", "views.0.size=16"]
    run = trained(tmp_path / "run", *keys, steps=3)
    recorded = (run / "bad_images.txt").read_bytes()
    page = run_page(read_subject(run, CPU))
    assert "views" in [panel.name for panel in page.panels]
    assert (run / "bad_images.txt").read_bytes() == recorded


def test_of_many_training_images_the_page_says_how_many_are_shown(unlabelled, monkeypatch):
    monkeypatch.setattr(seen_images, "MOST", 30)
    page = run_page(read_subject(unlabelled, CPU))
    assert any("are 30 of the 80 of the training split" in line for line in page.warnings)
    assert page.panels[1].note.startswith("30 of 80 training images")


# The command --------------------------------------------------------------------------------------


def test_the_command_writes_into_the_run_and_again_over_its_own_page(copy, command):
    for _ in range(2):
        done = command("report", "run", "device=cpu", cwd=copy.parent)
        assert (done.returncode, done.stdout) == (0, "Wrote run/report.html\n")


def test_files_of_others_are_not_replaced(copy, command):
    (copy.parent / "notes.html").write_text("<p>mine</p>")
    for target, reason in (("notes.html", "is no report"), ("run", "is a folder")):
        done = command("report", "run", "device=cpu", "-o", target, cwd=copy.parent)
        assert done.returncode == 2
        assert reason in done.stderr
        assert len(done.stderr.splitlines()[-1:]) == 1
    assert (copy.parent / "notes.html").read_text() == "<p>mine</p>"


def test_what_is_no_run_is_refused(copy, command, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.copy(copy / "encoder.safetensors", moved)
    for what, reason in (
        ("nowhere", "no such"),
        (str(moved), "is neither a run"),
        (str(moved / "encoder.safetensors"), "a report is made of a run's whole folder"),
    ):
        done = command("report", what, cwd=tmp_path)
        assert done.returncode == 2
        assert reason in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("missing", ["bokeh", "jinja2"])
def test_a_missing_library_names_the_extra(copy, missing):
    code = (
        "import importlib.util, sys; find = importlib.util.find_spec;"
        f"importlib.util.find_spec = lambda name: None if name == '{missing}' else find(name);"
        "sys.argv = ['selfsight', 'report', 'run'];"
        "from selfsight import cli; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copy.parent, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "pip install 'selfsight[report]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_shown_command_makes_the_same_configuration(tmp_path):
    keys = ["epochs=3", "max_steps=1", "device=cpu", "optimizer.lr=0.005"]
    config = compose("digits/simclr", keys, run=str(tmp_path / "it's")).config
    pretrain(config, quiet=True)
    panel = provenance_panel(read_subject(tmp_path / "it's", CPU))
    commands = [html.unescape(x) for x in re.findall("<code>(selfsight .*)</code>", panel.html)]
    words = shlex.split(commands[0])
    assert words[:3] == ["selfsight", "pretrain", "digits/simclr"]
    assert sorted(words[3:-2]) == sorted(keys)
    assert words[-2:] == ["--run", f"{tmp_path / 'it'}'s-again"]
    again = compose(words[2], words[3:-2], run=config.run).config
    assert again.identity() == config.identity()
    assert shlex.split(commands[-1]) == ["selfsight", "report", f"{tmp_path / 'it'}'s"]
    rows = re.findall("<tr><td>(.*)</td><td>(.*)</td><td>(.*)</td></tr>", panel.html)
    by_key = {key: (value, origin) for key, value, origin in rows}
    assert by_key["optimizer.lr"] == ("0.005", "this run")
    assert by_key["batch_size"] == ("64", "recipe digits/simclr")
    assert by_key["accumulate"] == ("1", "default")


def test_a_configuration_far_from_every_recipe_is_made_from_its_own_file(unlabelled):
    panel = provenance_panel(read_subject(unlabelled, CPU))
    assert f"selfsight pretrain {unlabelled}/config.yaml --run {unlabelled}-again" in panel.html


def test_no_text_of_a_user_leaves_a_traceback(copy, command):
    with pytest.raises(UserError, match=r"data\.nonsense"):
        read_subject(copy, ["data.nonsense=1"])
    with pytest.raises(UserError, match="cuda:99"):
        read_subject(copy, ["device=cuda:99"])
    with pytest.raises(UserError, match="nowhere"):
        read_subject(copy, ["data.path=nowhere"])
    (copy / "results.json").write_text("{")
    done = command("report", "run", cwd=copy.parent)
    assert done.returncode == 2
    assert "is damaged" in done.stderr


def test_knn_on_other_images_than_the_runs_own_shows_those(copy):
    found = load_digits()
    pixels = (found.images[400:700, ..., None] * 15).astype(np.uint8)
    train = {"train_images": pixels[50:], "train_labels": found.target[450:700]}
    test = {"test_images": pixels[:50], "test_labels": found.target[400:450]}
    np.savez(copy.parent / "others.npz", **train, **test)
    protocols.knn(copy, [*CPU, f"data.path={copy.parent / 'others.npz'}"])
    subject = read_subject(copy, CPU)
    newest = [r for r in subject.results if r["evaluated"] == "encoder"][-1]
    assert newest["data"]["test"] == 50
    assert subject.seen.right.mean() == pytest.approx(newest["metrics"]["k20"], abs=1e-12)
    assert len(subject.seen.images) == 50
