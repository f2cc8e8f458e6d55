"""The commands search, duplicates and cluster, of real photographs and an encoder that has hardly
learned anything."""

import csv
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import selfsight
from selfsight.data.config import DataConfig
from selfsight.data.sources.open import open_source
from selfsight.embeddings.embed import Options, embed
from selfsight.embeddings.table import Table, read_table, write_table
from selfsight.report import found as found_module
from selfsight.report import tiles
from tests.conftest import ROOT, TINY, shared_data

COPY = "copy of the tench.jpg"  # in the training images, of a test image


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with photographs of two classes in two splits, a copy of one in the other split, a
    run, and tables of their features."""
    root = tmp_path_factory.mktemp("search")
    found = sorted(shared_data("imagenet-sample").glob("*.JPEG"))[:41]
    for n, path in enumerate(found[:40]):
        place = root / "photos" / ("test" if n % 4 == 0 else "train") / "ab"[n % 2]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    (root / "photos/test/b").mkdir()  # the splits must have the same classes
    shutil.copy(found[40], root / "photos/test/b")
    with Image.open(found[0]) as image:
        image.save(root / "photos/train/b" / COPY, quality=60)
    selfsight.pretrain(
        selfsight.compose("digits/simclr", [*TINY, f"run={root / 'run'}", "max_steps=1"]).config,
        quiet=True,
    )
    embed(root / "run", root / "photos.npz", [f"data.path={root / 'photos'}"], quiet=True)
    embed(root / "run", root / "digits.parquet", options=Options(split="test"), quiet=True)
    return root


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """The same for a test that writes files of its own."""
    for name in ("photos", "run", "photos.npz", "digits.parquet"):
        (tmp_path / name).symlink_to(made / name)
    return tmp_path


# Search -------------------------------------------------------------------------------------------


def neighbours_of(found: dict) -> list[str]:
    return [Path(item["path"]).name for item in found["neighbours"]]


def test_a_copy_in_another_quality_is_the_nearest(folder, command):
    table = read_table(folder / "photos.npz")
    row = next(n for n, path in enumerate(table.paths) if path.endswith(COPY))
    file = next((folder / "photos/test/a").glob("n01440764*"))
    shutil.copy(file, folder / "elsewhere.jpg")
    queries = [str(row), "elsewhere.jpg", str(file), f"photos/train/b/{COPY}"]
    done = command("search", "run", *queries, "--in", "photos.npz", "-k", "3", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    tench = table.paths.index(str(file.resolve()))
    # a number, another file with the same bytes, the file itself by a link, the copy by its path
    assert [a["row"] for a in answers] == [row, tench, tench, row]
    assert [neighbours_of(a)[0] for a in answers] == [file.name, COPY, COPY, file.name]
    for answer in answers:
        assert [item["row"] for item in answer["neighbours"]].count(answer["row"]) == 0
        similar = [item["similarity"] for item in answer["neighbours"]]
        assert similar == sorted(similar, reverse=True)
        assert similar[0] > 0.99
    x = table.features.astype(np.float64)
    cosine = x @ x[row] / np.linalg.norm(x, axis=1) / np.linalg.norm(x[row])
    order = [n for n in np.argsort(-cosine).tolist() if n != row][:3]
    assert [item["row"] for item in answers[0]["neighbours"]] == order


def test_features_of_a_file_are_those_of_the_table(folder, command):
    """A row's own file under another name, with other bytes that decode to the same pixels."""
    table = read_table(folder / "photos.npz")
    content = Path(table.paths[5]).read_bytes()
    (folder / "same.jpg").write_bytes(content + b"\0")
    done = command("search", "run", "same.jpg", "--in", "photos.npz", "--json", cwd=folder)
    (answer,) = json.loads(done.stdout)
    assert answer["row"] is None
    assert answer["neighbours"][0]["row"] == 5
    assert answer["neighbours"][0]["similarity"] == pytest.approx(1, abs=2e-6)


def test_json_is_alone_on_stdout(folder, command):
    more = ["--in", "photos.npz", "--json", "-o", "sheet.png", "--index", "faiss-ivf"]
    done = command("search", "run", "0", *more, cwd=folder)
    assert [answer["row"] for answer in json.loads(done.stdout)] == [0]
    assert done.stderr.splitlines()[0].startswith("The index finds ")
    assert done.stderr.splitlines()[-1] == "Wrote sheet.png"


def test_another_librarys_checkpoint_searches_its_own_table(folder, command):
    options = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "num_classes": 0}
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet18", **options).state_dict(), folder / "net.pt")
    keys = [
        "backbone.name=resnet18",
        f"backbone.options={options}".replace("'", ""),
        "image_size=32",
    ]
    keys[1] = keys[1].replace(", num_classes: 0", "")
    embed(
        folder / "net.pt", folder / "n.npz", [*keys, f"data.path={folder / 'photos'}"], quiet=True
    )
    (folder / "same.jpg").write_bytes(
        Path(read_table(folder / "n.npz").paths[3]).read_bytes() + b"\0"
    )
    call = ["search", "net.pt", *keys, "same.jpg", "--in", "n.npz", "-k", "1", "--json"]
    done = command(*call, cwd=folder)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)[0]["neighbours"]
    assert (found["row"], found["similarity"]) == (3, pytest.approx(1, abs=1e-5))


def test_search_prints_a_table_and_draws_a_sheet(folder, command):
    more = ["--in", "photos.npz", "-k", "4", "-o", "sheet.png", "--index", "faiss-hnsw"]
    done = command("search", "run", "0", "7", *more, cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "0 (row 0 of the table, not counted)"
    assert lines[1].split() == ["similarity", "row", "label", "split", "path"]
    assert len(lines) == 2 * 6 + 2
    assert lines[-2].startswith("The index finds ")
    assert lines[-1] == "Wrote sheet.png"
    with Image.open(folder / "sheet.png") as sheet:
        assert (sheet.format, sheet.size[0]) == ("PNG", 5 * 116 + 16)
        first = np.asarray(sheet)[4:116, 4:116]
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 1000  # a photograph


def test_queries_are_prepared_as_the_table_says_with_its_layers_and_colours(folder, command):
    keys = [f"data.path={folder / 'photos'}", "precision=fp32", "data.mean=[0.9, 0.5, 0.1]"]
    embed(folder / "run", folder / "l.npz", keys, Options(layers=[2]), quiet=True)
    table = read_table(folder / "l.npz")
    (folder / "same.jpg").write_bytes(Path(table.paths[3]).read_bytes() + b"\0")
    done = command("search", "run", "same.jpg", "--in", "l.npz", "-k", "1", "--json", cwd=folder)
    (found,) = json.loads(done.stdout)[0]["neighbours"]
    assert (found["row"], found["similarity"]) == (3, pytest.approx(1, abs=2e-6))


def test_images_that_are_no_files_are_drawn_if_they_can_be_opened(folder, command):
    search = ["search", "run", "3", "digits test 5", "-k", "2", "-o", "s.png"]
    done = command(*search, "--in", "digits.parquet", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "gray" not in done.stdout
    sheet = np.asarray(Image.open(folder / "s.png").convert("L"))
    side = slice(4, 116)
    source = open_source(DataConfig(source="digits"), "test")
    np.testing.assert_array_equal(
        sheet[side, side], source.read(3)[:, :, 0].repeat(14, 0).repeat(14, 1)
    )
    table = read_table(folder / "digits.parquet")
    about = {**table.description, "data": {"path": str(folder / "gone.npz")}}
    write_table(folder / "far.npz", Table(table.paths, table.features, description=about))
    done = command(*search, "--in", "far.npz", cwd=folder)
    assert "6 images on 's.png' are gray: their files cannot be opened from here" in done.stdout
    assert set(np.unique(np.asarray(Image.open(folder / "s.png"))[side, side])) == {200}


def test_a_strangers_table_runs_no_code_and_downloads_nothing(folder, command, monkeypatch):
    def opened(data, split):
        raise AssertionError(data)

    monkeypatch.setattr(tiles, "open_source", opened)
    table = read_table(folder / "digits.parquet")
    keys = "source", "source", "path", "test_path", "path"
    values = "evil.py:make", "torchvision:CIFAR10", "https://localhost:1/a.tar", "http://a/b.tar", 3
    for key, value in zip(keys, values, strict=True):
        about = {**table.description, "data": {key: value}}
        write_table(folder / "odd.npz", Table(table.paths, table.features, description=about))
        done = command("cluster", "odd.npz", "-k", "1", "-o", "clusters", cwd=folder)
        assert "24 images on 'clusters' are gray" in done.stdout
    done = command("search", "run", "photos/test/b", "--in", "odd.npz", cwd=folder)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    about["image_size"] = 10**9
    write_table(folder / "odd.npz", Table(table.paths, table.features, description=about))
    (folder / "a.jpg").write_bytes(b"")
    done = command("search", "run", "a.jpg", "--in", "odd.npz", cwd=folder)
    assert "'odd.npz': its description does not fit" in done.stderr
    assert done.returncode == 2


# Near-duplicates ----------------------------------------------------------------------------------


def test_a_planted_leak_is_found_first(folder, command):
    files = ["-o", "groups.csv", "--sheet", "sheet.png", "--keep", "keep.jsonl"]
    done = command("duplicates", "photos.npz", "--threshold", "0.9995", *files, cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "1 group with leaks: 2 images like one of another split" in lines
    assert f"/{COPY} (b train)" in done.stdout
    with (folder / "groups.csv").open() as file:
        rows = list(csv.DictReader(file))
    first = [row for row in rows if row["group"] == "0"]
    assert [(Path(r["path"]).name, r["split"], r["leak"]) for r in first] == [
        (COPY, "train", "1"),
        ("n01440764_tench.JPEG", "test", "1"),
    ]
    assert {row["different_labels"] for row in first} == {"1"}  # a and b
    assert float(first[0]["lowest"]) > 0.9995
    kept = open_source(DataConfig(path=str(folder / "keep.jsonl"), test_fraction=0.01), "train")
    names = {Path(kept.name(i)).name for i in range(len(kept))}
    train = {path.name for path in (folder / "photos/train").rglob("*") if path.is_file()}
    assert COPY not in names
    assert names < train
    assert kept.classes == ["a", "b"]
    again = command("duplicates", "photos.npz", "-o", "groups.csv", cwd=folder)
    assert again.returncode == 0, again.stderr  # its own file is replaced


def test_groups_as_json_and_none_at_all(folder, command):
    call = ["duplicates", "photos.npz", "--threshold", "0.9995"]
    done = command(*call, "-o", "groups.json", cwd=folder)
    found = json.loads((folder / "groups.json").read_text())
    assert found["near_duplicates"]["threshold"] == 0.9995
    assert found["near_duplicates"]["groups"] == len(found["groups"])
    assert [item["leak"] for item in found["groups"][0]["images"]] == [True, True]
    table = Table(["a", "b"], np.eye(2, dtype=np.float32))
    write_table(folder / "two.npz", table)
    done = command("duplicates", "two.npz", "--sheet", "none.png", cwd=folder)
    assert done.stdout.splitlines() == [
        "0 groups of near-duplicates, 0 of 2 images in them",
        "No near-duplicates: 'none.png' is not written",
    ]
    assert not (folder / "none.png").exists()


def test_names_are_harmless_in_csv_and_on_the_terminal(folder, command):
    paths = ["=1+1.jpg", "a\nb\x1b[31m.jpg", '@c,"d".jpg']
    labels = ["-x", "+y", "z"]
    write_table(folder / "odd.npz", Table(paths, np.ones((3, 2), np.float32), labels=labels))
    done = command("duplicates", "odd.npz", "-o", "odd.csv", "--sheet", "odd.png", cwd=folder)
    assert "\x1b" not in done.stdout
    assert "3 images on 'odd.png' are gray" in done.stdout
    with (folder / "odd.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["./=1+1.jpg", paths[1], "./" + paths[2]]
    assert [row["label"] for row in rows] == ["'-x", "'+y", "z"]
    done = command("cluster", "odd.npz", "-k", "1", "-o", "odd", cwd=folder)
    assert "\x1b" not in done.stdout
    with (folder / "odd/clusters.csv").open(newline="") as file:
        assert next(row["path"] for row in csv.DictReader(file)) == "./=1+1.jpg"


CALLS = {
    "print_answers": ["search", "run", "0", "--in", "photos.npz", "-o", "new/a.png"],
    "print_groups": [
        *("duplicates", "photos.npz", "-o", "new/g.csv"),
        *("--keep", "new/k.jsonl", "--sheet", "new/s.png"),
    ],
    "print_clusters": ["cluster", "photos.npz", "-k", "1", "-o", "new"],
}


@pytest.mark.parametrize("prints", CALLS)
def test_files_are_written_before_a_closed_pipe_ends_the_command(
    folder, command, monkeypatch, prints
):
    there = list[str]()
    monkeypatch.setattr(
        found_module, prints, lambda *_: there.extend(p.name for p in (folder / "new").iterdir())
    )
    done = command(*CALLS[prints], cwd=folder)
    assert done.returncode == 0, done.stderr
    files = [Path(word).name for word in CALLS[prints] if word.startswith("new/")]
    assert sorted(there) == sorted(files or ["clusters.csv", "clusters.json", "cluster-0000.png"])


def test_a_name_with_a_carriage_return_is_one_cell(folder, command):
    paths = ["a\rb.jpg", "c.jpg"]
    write_table(folder / "odd.npz", Table(paths, np.ones((2, 2), np.float32)))
    command("duplicates", "odd.npz", "-o", "odd.csv", cwd=folder)
    command("cluster", "odd.npz", "-k", "1", "-o", "odd", cwd=folder)
    for name in ("odd.csv", "odd/clusters.csv"):
        with (folder / name).open(newline="") as file:
            assert [row["path"] for row in csv.DictReader(file)] == paths


def test_a_name_that_is_no_text_is_printed(folder, command):
    paths = [os.fsdecode(b"caf\xe9.jpg"), "c.jpg"]
    write_table(folder / "odd.npz", Table(paths, np.ones((2, 2), np.float32)))
    done = command("duplicates", "odd.npz", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "caf\\udce9.jpg" in done.stdout


def test_a_list_without_images_is_not_recommended(folder, command):
    both = Table(["a", "b"], np.ones((2, 2), np.float32), ["train", "test"])
    for name in both.paths:
        (folder / name).touch()
    write_table(folder / "both.npz", both)
    done = command("duplicates", "both.npz", "--keep", "k.jsonl", cwd=folder)
    assert "Wrote k.jsonl: 0 images; a higher --threshold keeps more" in done.stdout


# Clusters -----------------------------------------------------------------------------------------


def test_clusters_of_digits_agree_with_their_labels(folder, command):
    done = command("cluster", "digits.parquet", "-k", "10", "-o", "clusters", cwd=folder)
    assert done.returncode == 0, done.stderr
    table = read_table(folder / "digits.parquet")
    with (folder / "clusters/clusters.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == list(table.paths)
    summary = json.loads((folder / "clusters/clusters.json").read_text())
    assert summary["method"] == "k-means"
    assert f"purity {summary['purity']:.1%}, NMI {summary['nmi']:.3f}" in done.stdout
    sizes = [sum(row["cluster"] == str(n) for row in rows) for n in range(10)]
    assert [c["images"] for c in summary["clusters"]] == sizes
    sheets = sorted(path.name for path in (folder / "clusters").glob("*.png"))
    assert sheets == [f"cluster-{n:04}.png" for n in range(10)]
    done = command("cluster", "digits.parquet", "--hdbscan", "5", "-o", "clusters", cwd=folder)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "clusters/clusters.json").read_text())
    sheets = sorted(path.name for path in (folder / "clusters").glob("*.png"))
    numbers = [c["cluster"] for c in summary["clusters"]]
    assert sheets == sorted(
        f"cluster-{n:04}.png" if n >= 0 else "cluster-noise.png" for n in numbers
    )


@pytest.mark.parametrize("name", ["clusters.csv", "clusters.json", "cluster-0000.png"])
def test_the_users_own_clusters_are_not_replaced(folder, command, name):
    mine = folder / "mine" / name
    mine.parent.mkdir()
    mine.write_text("path,mine\n")
    done = command("cluster", "photos.npz", "-k", "1", "-o", "mine", cwd=folder)
    assert (done.returncode, mine.read_text()) == (2, "path,mine\n")
    assert f"'mine': holds other files ({name})" in done.stderr
    done = command("cluster", "photos.npz", "-k", "1", "-o", f"mine/{name}", cwd=folder)
    assert f"'mine/{name}': is a file" in done.stderr


def test_without_labels_nothing_is_compared(folder, command):
    rng = np.random.default_rng(0)
    plain = Table(list("abcd"), rng.standard_normal((4, 3)).astype(np.float32))
    write_table(folder / "plain.npz", plain)
    done = command("cluster", "plain.npz", "-k", "2", cwd=folder)
    assert "have no labels, so purity, NMI and ARI are not known" in done.stdout
    done = command("duplicates", "plain.npz", "--threshold", "-0.99", cwd=folder)
    assert "leak" not in done.stdout
    assert "label" not in done.stdout


# Mistakes -----------------------------------------------------------------------------------------

SEARCH = ["search", "run", "0", "--in", "photos.npz"]
FOREIGN = ["search", "run", "-k", "1", "--in", "foreign.csv"]


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ([*SEARCH, "-k", "0"], "k=0: the table has 42 rows; use a k from 1 to 42"),
        ([*SEARCH, "-k", "43"], "k=43: the table has 42 rows"),
        ([*SEARCH, "--index", "annoy"], "index=annoy: unknown"),
        ([*SEARCH, "-o", "sheet.gif"], "'sheet.gif': a sheet is written as PNG"),
        ([*SEARCH, "gone.jpg"], "'gone.jpg': is no path in the table and no image file"),
        ([*SEARCH, "text.txt"], "Cannot decode text.txt"),
        (["search", "run", "42", "--in", "photos.npz"], "the table has rows 0 to 41"),
        ([*SEARCH, "data.channels=1"], "'data.channels=1': the table says how"),
        (["search", "none", "0", "--in", "photos.npz"], "'none': no such run folder"),
        (["search", "run", "0", "--in", "text.txt"], "the ending of a table of features must be"),
        (["search", "run", "0", "--in", "broken.npz"], "'broken.npz': not a table of features"),
        (["search", "run", "0", "--in", "empty.npz"], "'empty.npz': the table has no rows"),
        ([*FOREIGN, "text.txt"], "does not say which encoder made"),
        (["search", "run", "0", "--in", "other.npz"], "another encoder than 'run' made these"),
        (
            ["search", "run", "text.txt", "--in", "short.npz"],
            "are 3 wide, and those of the encoder",
        ),
        (["search", "run", "a.png", "--in", "photos.npz", "-o", "a.png"], "is one of the images"),
        (["duplicates", "photos.npz", "--threshold", "1.5"], "threshold=1.5"),
        (["duplicates", "photos.npz", "--threshold", "-1"], "threshold=-1"),
        (["duplicates", "photos.npz", "--threshold", "nan"], "threshold=nan"),
        (["duplicates", "run"], "'run': is an encoder and no table of features"),
        (["duplicates", "broken.npz"], "'broken.npz': not a table of features"),
        (["duplicates", "photos.npz", "-o", "a.txt"], "must end with .csv or .json"),
        (["duplicates", "foreign.csv", "-o", "foreign.csv"], "exists and is something else"),
        (["duplicates", "photos.npz", "--keep", "mine.jsonl"], "exists and is something else"),
        (["duplicates", "digits.parquet", "--keep", "k.jsonl"], "--keep: lists image files"),
        (["cluster", "photos.npz", "-k", "0"], "k=0: the table has 42 rows"),
        (["cluster", "photos.npz", "--hdbscan", "1"], "hdbscan=1"),
        (["cluster", "photos.npz", "-k", "2", "--hdbscan", "3"], "choose one of them"),
        (["cluster", "photos.npz", "-o", "photos"], "'photos': holds other files (test, train)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(folder, command, call, line):
    table = read_table(folder / "photos.npz")
    about = table.description
    (folder / "text.txt").write_text("no image")
    (folder / "broken.npz").write_bytes((folder / "photos.npz").read_bytes()[:1000])
    write_table(folder / "empty.npz", Table([], np.empty((0, 2), np.float32)))
    (folder / "foreign.csv").write_text("path,e0\na.jpg,1\nb.jpg,2\n")
    (folder / "mine.jsonl").write_text('{"path": "a.jpg"}\n')
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    other = Table(table.paths, table.features, description={**about, "weights_sha256": "0" * 64})
    write_table(folder / "other.npz", other)
    few = table.features[:, :3].copy()
    write_table(
        folder / "short.npz", Table(table.paths, few, description={**about, "num_features": 3})
    )
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    done = command(*call, cwd=folder)
    assert done.returncode == 2
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


# The page -----------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")


def test_the_commands_and_the_code_of_the_page_run(tmp_path, command):
    lines = re.findall(r"^selfsight (.*)$", PAGE, re.MULTILINE)
    assert len(lines) == 5
    for line in lines:
        less = [*TINY, "max_steps=1"] if line.startswith("pretrain") else []
        done = command(*shlex.split(line), *less, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    for name in ("neighbours.png", "duplicates.csv", "duplicates.png", "clusters/clusters.csv"):
        assert (tmp_path / name).is_file()
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "search.md", "exec"), {"__name__": "__main__"})
