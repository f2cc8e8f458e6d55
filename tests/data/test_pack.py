"""Packs: what they hold, that they are whole or not there, and the command that makes them."""

import filecmp
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import selfsight
from selfsight.data.bad import BadImages
from selfsight.data.check import check
from selfsight.data.config import DataConfig
from selfsight.data.decode import decode
from selfsight.data.images import Images, center_box, cut
from selfsight.data.pack import journal
from selfsight.data.pack import plan as plans
from selfsight.data.pack import write as packing
from selfsight.data.pack.journal import RECORD
from selfsight.data.pack.read import BLOB, Pack, verify
from selfsight.data.pack.write import PackConfig, pack
from selfsight.data.source import BadImage, ChangedImage
from selfsight.data.sources.open import open_source
from selfsight.errors import UserError
from selfsight.evaluate.overlap import compare, fingerprints
from selfsight.files import file_hash, read_json, sealed, write_json
from tests.conftest import ROOT, TINY, heads, in_process
from tests.processes import environment

CPU = torch.device("cpu")
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Smooth as a photograph, so that JPEG keeps it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **how) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def pngs(root: Path, count: int = 12, side: int = 20, classes: str = "ab") -> Path:
    """A labelled folder with a test split of its own, of a quarter as many images."""
    files = {}
    for split, n in (("train", count), ("val", count // 4)):
        for i in range(n):
            name = f"{split}/{classes[i % len(classes)]}/{i:03}.png"
            files[name] = encoded(picture(i + 1000 * len(split), side + i % 5, side - i % 3))
    return write(root, files)


def packed(path: Path, to: Path, how: PackConfig | None = None, **keys) -> Path:
    pack(DataConfig(path=str(path), **keys), how or PackConfig(), to, lambda *_: None)
    return to


def opened(path: Path, split: str = "train", **keys):
    return open_source(DataConfig(path=str(path), **keys), split)


def same_files(a: Path, b: Path) -> None:
    names = [{p.name for p in folder.iterdir()} for folder in (a, b)]
    assert names[0] == names[1]
    _, different, errors = filecmp.cmpfiles(a, b, names[0], shallow=False)
    assert (different, errors) == ([], [])


# What a pack holds --------------------------------------------------------------------------------

sizes = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6)


@given(sizes, st.integers(1, 24))
@settings(max_examples=10)
def test_raw_is_the_central_square(tmp_path_factory, sizes, size):
    root = tmp_path_factory.mktemp("raw")
    files = {f"{i}.png": encoded(picture(i, *shape)) for i, shape in enumerate(sizes)}
    source = opened(write(root / "in", files))
    got = opened(packed(root / "in", root / "out", PackConfig(raw=True, size=size)))
    assert len(got) == len(source)
    assert got.classes is None
    for i in range(len(source)):
        pixels = decode(source, i)
        expected = cut(pixels, center_box(*pixels.shape[:2], 1.0), size).permute(1, 2, 0).numpy()
        assert np.array_equal(decode(got, i), expected)
        assert not got.read(i).flags.writeable


@pytest.mark.parametrize("raw", [True, False])
def test_names_labels_order_and_splits_are_the_sources(tmp_path, raw):
    write(
        tmp_path / "in",
        {f"{c}/{i}.png": encoded(picture(i, 9, 9)) for c in "xyz" for i in (1, 2, 3)},
    )
    packed(tmp_path / "in", tmp_path / "out", PackConfig(raw=raw, size=8), test_fraction=0.4)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {".lock", "train", "test"}
    for split, count in (("train", 6), ("test", 3)):
        source = opened(tmp_path / "in", split, test_fraction=0.4)
        for place in (tmp_path / "out", tmp_path / "out" / split):
            got = Pack(place) if place.name == split else opened(place, split)
            assert len(got) == count
            assert got.classes == source.classes == ["x", "y", "z"]
            assert np.array_equal(got.labels, source.labels)
            assert [got.name(i) for i in range(count)] == [source.name(i) for i in range(count)]
    unlabelled = opened(tmp_path / "out", labels=False)
    assert unlabelled.classes is None
    assert unlabelled.labels is None


def test_a_set_without_labels_has_no_test_split(tmp_path):
    write(tmp_path / "in", {f"{i}.png": encoded(picture(i, 9, 9)) for i in range(3)})
    packed(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out" / "test").exists()
    assert opened(tmp_path / "out", "test") is None


def test_small_upright_jpeg_files_are_kept_others_encoded(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    small, large = picture(0, 30, 24), picture(1, 90, 60)
    files = {
        "kept-colour.jpg": encoded(small, "JPEG", quality=50),
        "kept-gray.jpg": encoded(small.convert("L"), "JPEG"),
        "kept-progressive.jpg": encoded(small, "JPEG", progressive=True),
        "kept-wide.jpg": encoded(picture(2, 90, 24), "JPEG"),
        "turned.jpg": encoded(small, "JPEG", exif=exif),
        "cmyk.jpg": encoded(small.convert("CMYK"), "JPEG"),
        "large.jpg": encoded(large, "JPEG"),
        "small.png": encoded(small),
        "large.png": encoded(large),
    }
    source = opened(write(tmp_path / "in", files))
    got = opened(packed(tmp_path / "in", tmp_path / "out", PackConfig(size=24)))
    shapes = {"turned.jpg": (30, 24), "large.jpg": (24, 36), "large.png": (24, 36)}
    for i in range(len(source)):
        name = Path(source.name(i)).name
        same = got.read(i) == source.read(i)
        assert same == name.startswith("kept"), name
        pixels = decode(source, i)
        assert decode(got, i).shape[:2] == shapes.get(name, pixels.shape[:2])
        height, width = decode(got, i).shape[:2]
        chw = torch.from_numpy(pixels).permute(2, 0, 1)
        expected = F.resize(chw, [height, width], antialias=True).permute(1, 2, 0).numpy()
        error = ((decode(got, i).astype(float) - expected) ** 2).mean()
        assert 10 * np.log10(255**2 / max(error, 1e-9)) > 33, name


def test_quality_costs_bytes(tmp_path):
    write(tmp_path / "in", {"a.png": encoded(picture(0, 60, 60))})
    sizes = []
    for quality in (30, 90):
        to = packed(tmp_path / "in", tmp_path / f"out{quality}", PackConfig(quality=quality))
        sizes.append(len(opened(to).read(0)))
    assert sizes[0] < sizes[1]


def test_threads_change_nothing(tmp_path):
    pngs(tmp_path / "in", 40)
    for workers in (1, 5):
        packed(tmp_path / "in", tmp_path / f"out{workers}", PackConfig(size=8), workers=workers)
    same_files(tmp_path / "out1" / "train", tmp_path / "out5" / "train")


def test_a_pack_of_a_pack_knows_the_first_images(tmp_path):
    pngs(tmp_path / "in")
    packed(tmp_path / "in", tmp_path / "one", PackConfig(size=16))
    packed(tmp_path / "one", tmp_path / "two", PackConfig(size=8))
    one, two = opened(tmp_path / "one"), opened(tmp_path / "two")
    assert decode(two, 3).shape[0] == 8
    assert two.name(3) == one.name(3)
    assert np.array_equal(two.origins, one.origins)
    assert not np.array_equal(two.hashes, one.hashes)
    part = opened(tmp_path / "one" / "train", "test")  # divided off here
    rows = [[one.name(i) for i in range(12)].index(part.name(n)) for n in range(len(part))]
    assert rows != list(range(len(rows)))
    assert np.array_equal(part.origins, one.origins[rows])


def test_an_image_is_found_again_in_a_pack_that_changed_it(tmp_path):
    pngs(tmp_path / "in")
    to = packed(tmp_path / "in", tmp_path / "out", PackConfig(size=8))
    shutil.move(tmp_path / "in", tmp_path / "moved")

    def printed(path: Path, split: str):
        config = DataConfig(path=str(path), in_memory=False, workers=1)
        return fingerprints(Images(open_source(config, split), config, CPU))

    found = compare(printed(to, "train"), printed(tmp_path / "moved", "train"))
    assert (found.paths, found.contents) == (0, 12)
    assert compare(printed(to, "train"), printed(tmp_path / "moved", "test")).contents == 0
    assert printed(to, "test").digest != printed(tmp_path / "moved", "test").digest


@pytest.mark.parametrize("raw", [True, False])
def test_the_page_reads_a_pack_without_selfsight(tmp_path, raw, monkeypatch):
    pngs(tmp_path / "in")
    packed(tmp_path / "in", tmp_path / "packed", PackConfig(raw=raw, size=8))
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in snippet.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    source = opened(Path("packed"))
    for i in (0, 7):
        names: dict = {}
        exec(snippet.replace('i = "packed/train", 0', f'i = "packed/train", {i}'), names)
        assert names["i"] == i
        assert np.array_equal(names["pixels"], decode(source, i))
        assert names["label"] == source.labels[i]


def test_the_page_names_every_file_and_key(tmp_path):
    pngs(tmp_path / "in")
    for raw in (True, False):
        folder = packed(tmp_path / "in", tmp_path / str(raw), PackConfig(raw=raw)) / "train"
        words = {p.name for p in folder.iterdir()} | json.loads(
            (folder / "pack.json").read_text()
        ).keys()
        assert not [word for word in words if f"`{word}`" not in PAGE]


# Broken images ------------------------------------------------------------------------------------


def test_broken_images_are_left_out_and_listed(tmp_path):
    root = pngs(tmp_path / "in")
    (root / "train" / "a" / "004.png").write_bytes(b"")
    (root / "train" / "b" / "007.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"data\.max_bad=0\.1: 2 of 12 images") as error:
        packed(root, tmp_path / "out", PackConfig(size=8), max_bad=0.1)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "train").exists()
    packed(root, tmp_path / "out", PackConfig(size=8), max_bad=0.2)  # goes on from there
    got = opened(tmp_path / "out")
    source = opened(root)
    names = [source.name(i) for i in range(12)]
    whole = [i for i in range(12) if not names[i].endswith(("004.png", "007.png"))]
    assert [got.name(n) for n in range(len(got))] == [names[i] for i in whole]
    assert got.labels.tolist() == source.labels[whole].tolist()
    for n, i in enumerate(whole):
        assert abs(decode(got, n).mean() - decode(source, i).mean()) < 2
    lines = (tmp_path / "out" / "train" / "bad_images.txt").read_text().splitlines()
    assert [line.split("\t")[0][-7:] for line in lines] == ["004.png", "007.png"]
    assert "empty" in lines[0]
    assert json.loads((tmp_path / "out" / "train" / "pack.json").read_text())["bad_images"] == 2
    assert not (tmp_path / "out" / "test" / "bad_images.txt").exists()


def test_a_source_of_broken_images_makes_no_pack(tmp_path):
    write(tmp_path / "in", {"1.png": b"", "2.png": b"nothing"})
    with pytest.raises(UserError, match="none of the 2 images"):
        packed(tmp_path / "in", tmp_path / "out", max_bad=1)
    with pytest.raises(UserError, match="contains no"):
        opened(tmp_path / "out")


def test_sides_that_jpeg_cannot_hold(tmp_path):
    long = Image.new("RGB", (66_000, 1))
    write(tmp_path / "in", {"long.png": encoded(long), "other.png": encoded(picture(0, 9, 9))})
    to = packed(tmp_path / "in", tmp_path / "out", max_bad=0.5)
    assert len(opened(to)) == 1
    assert "cannot be stored as JPEG" in (to / "train" / "bad_images.txt").read_text()


# Interrupted --------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def stop_after(images: int):
    def watch(what: str, done: int, total: int) -> None:
        if what == "packing train" and done == images:
            raise Stop

    return watch


@pytest.mark.parametrize("images", [1, 3, 4, 14])
def test_one_split_without_the_other_does_not_open(tmp_path, images):
    """Or its training images would be divided into other splits than the source has."""
    root = pngs(tmp_path / "in")  # 3 images to test on, 12 to train on
    calls = []

    def stop(*now):
        calls.append(now)
        if len(calls) == images:
            raise Stop

    with pytest.raises(Stop):
        pack(DataConfig(path=str(root)), PackConfig(size=8), tmp_path / "out", stop)
    for split in ("train", "test"):
        with pytest.raises(UserError):
            opened(tmp_path / "out", split)


@pytest.mark.parametrize("raw", [True, False])
def test_whatever_a_crash_leaves_the_end_is_the_same(tmp_path, monkeypatch, raw):
    """Some records, the last of them torn, and images of which the last bytes were not written."""
    root = pngs(tmp_path / "in", 24)
    (root / "train" / "a" / "004.png").write_bytes(b"")
    how, keys = PackConfig(raw=raw, size=8), {"path": str(root), "max_bad": 1}
    whole = packed(root, tmp_path / "whole", how, max_bad=1) / "train"
    config = DataConfig(**keys)
    with pytest.raises(Stop):
        pack(config, how, tmp_path / "left", stop_after(17))
    work = tmp_path / "left" / ".train.packing"
    for place in (tmp_path / "left", work):
        with pytest.raises(UserError):
            opened(place)
    records = (work / "records.bin").read_bytes()
    assert len(records) == 17 * RECORD.itemsize
    blob = work / "images.part"
    images = blob.read_bytes()
    ends = np.frombuffer(records, RECORD)["end"].tolist()

    @given(st.integers(0, 17), st.integers(0, RECORD.itemsize), st.integers(0, 60))
    @example(9, 30, 0)
    @example(9, 0, 5)
    @settings(max_examples=12)
    def check(count, more, lost):
        """`count` records, so many bytes of the next one, and images that lack some bytes."""
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(tmp_path / "left", tmp_path / "out")
        there = tmp_path / "out" / ".train.packing"
        cut_at = count * RECORD.itemsize
        torn = records[cut_at : cut_at + more].ljust(RECORD.itemsize, b"\0")
        (there / "records.bin").write_bytes(records[:cut_at] + torn)
        end = ends[count - 1] if count else 0
        (there / blob.name).write_bytes(images[: max(0, end - lost)].ljust(end, b"\0") + b"more")
        pack(config, how, tmp_path / "out", lambda *_: None)
        same_files(tmp_path / "out" / "train", whole)

    check()


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(
    ("step", "call"),
    [  # write_json also writes the plan; the renamed are the images, then the folder
        ("_save", 1),
        ("file_hash", 1),
        ("write_json", 2),
        ("rename_durably", 1),
        ("rename_durably", 2),
    ],
)
def test_a_crash_while_finishing(tmp_path, monkeypatch, step, call, raw):
    root = pngs(tmp_path / "in")
    how, config = PackConfig(raw=raw, size=8), DataConfig(path=str(root))
    whole = packed(root, tmp_path / "whole", how) / "train"
    packed(root, tmp_path / "out", how)
    shutil.rmtree(tmp_path / "out" / "train")
    real, calls = getattr(packing, step), []

    def crash(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise Stop
        return real(*arguments)

    monkeypatch.setattr(packing, step, crash)
    with pytest.raises(Stop):
        pack(config, how, tmp_path / "out", lambda *_: None)
    monkeypatch.setattr(packing, step, real)
    work = tmp_path / "out" / ".train.packing"
    (work / ".hashes.npy.1.tmp").write_bytes(b"left by a crash")
    with pytest.raises(UserError):
        opened(tmp_path / "out")
    if call == 1:  # before the last step the folder is whole, and only its name is missing
        with pytest.raises(UserError):
            opened(work)
    pack(config, how, tmp_path / "out", lambda *_: None)
    same_files(tmp_path / "out" / "train", whole)
    assert not work.exists()


def test_kill_9(tmp_path):
    """The real command, which here writes its records after every image."""
    files = {f"{i:03}.png": encoded(picture(i % 7, 500, 300 + i % 7)) for i in range(7)}
    files = {f"{i:03}.png": files[f"{i % 7:03}.png"] for i in range(150)}
    write(tmp_path / "in", files)
    whole = packed(tmp_path / "in", tmp_path / "whole", PackConfig(size=64)) / "train"
    code = "from selfsight import cli; from selfsight.data.pack import journal; "
    code += "journal.FLUSH = 0; cli.main()"
    arguments = ["pack", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--size", "64"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    records = tmp_path / "out" / ".train.packing" / "records.bin"
    while not records.exists() or records.stat().st_size < 20 * RECORD.itemsize:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert not (tmp_path / "out" / "train").exists()
    packed(tmp_path / "in", tmp_path / "out", PackConfig(size=64))
    same_files(tmp_path / "out" / "train", whole)


def test_a_pattern_of_absolute_paths(tmp_path, monkeypatch):
    """It is not one of the folder where the command runs; what it names has absolute names."""
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        with tarfile.open(tmp_path / name / "0.tar", "w") as tar:
            for file in write(tmp_path / "in", {"1.png": encoded(picture(0, 9, 9))}).iterdir():
                tar.add(file, file.name)
    monkeypatch.chdir(tmp_path)
    for n, path in enumerate((f"{{{tmp_path}/train,{tmp_path}/val}}/0.tar", "{train,val}/0.tar")):
        packed(Path(path), tmp_path / f"out{n}")
        assert opened(tmp_path / f"out{n}", "test").name(0) == f"{tmp_path}/val/0.tar 1"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_tells_how_to_go_on(tmp_path, monkeypatch, capfd, number):
    root = pngs(tmp_path / "in", 90)
    make, made = packing._make, []

    def signalled(source, i, *how):
        made.append(i)
        if len(made) == 70:
            os.kill(os.getpid(), number)
        return make(source, i, *how)

    monkeypatch.setattr(packing, "_make", signalled)
    arguments = [str(root), "-o", str(tmp_path / "out"), "--size", "8"]
    code, out, said = in_process(monkeypatch, capfd, "pack", *arguments)
    assert (code, out) == (128 + number, "")
    assert said.splitlines()[-1].endswith(f"Resume with: selfsight pack {' '.join(arguments)}")
    assert "Traceback" not in said
    assert len(made) < 112, "all were made"
    assert in_process(monkeypatch, capfd, "pack", *arguments)[0] == 0
    assert len(made) < 112 + 30, "what was packed was made again"
    whole = packed(root, tmp_path / "whole", PackConfig(size=8))
    same_files(tmp_path / "out" / "train", whole / "train")


def test_a_full_disk_is_one_line_and_the_work_goes_on(tmp_path, monkeypatch):
    root, how = pngs(tmp_path / "in", 40), PackConfig(raw=True, size=16)
    monkeypatch.setattr(journal, "FLUSH", 0.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"File too large\. What is packed so far stays"):
            packed(root, tmp_path / "out", how)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    seen = []
    pack(DataConfig(path=str(root)), how, tmp_path / "out", lambda *now: seen.append(now))
    assert seen[0][0] == "packing train"
    assert 20 < seen[0][1] < 40
    same_files(tmp_path / "out" / "train", packed(root, tmp_path / "whole", how) / "train")


# Refused ------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path) -> Path:
    return packed(pngs(tmp_path / "in"), tmp_path / "out", PackConfig(size=8))


def test_what_is_finished_is_not_done_again(tmp_path, finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.name != ".lock"}
    packed(tmp_path / "in", finished, PackConfig(size=8))
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.name != ".lock"}


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize(
    ("how", "keys", "message"),
    [
        ({"size": 9}, {}, "size: 8 -> 9"),
        ({"quality": 80}, {}, "quality: 90 -> 80"),
        ({"raw": True}, {}, "kind: jpeg -> raw"),
        ({}, {"labels": False}, "source.labels"),
        ({}, {"limit": 5}, "source_images: 12 -> 5"),
    ],
)
def test_other_options_are_refused(tmp_path, finished, begun, how, keys, message):
    if begun:
        shutil.rmtree(finished / "train")
        shutil.rmtree(finished / "test")
        config = DataConfig(path=str(tmp_path / "in"))
        with pytest.raises(Stop):
            pack(config, PackConfig(size=8), finished, stop_after(3))
        shutil.rmtree(finished / "test")
    else:
        shutil.rmtree(finished / "test")
    with pytest.raises(UserError, match=message):
        packed(tmp_path / "in", finished, PackConfig(**{"size": 8, **how}), **keys)


def test_another_source_is_refused(tmp_path, finished):
    shutil.copy(tmp_path / "in/train/a/000.png", tmp_path / "in/train/b/new.png")
    with pytest.raises(UserError, match="source_images: 12 -> 13"):
        packed(tmp_path / "in", finished, PackConfig(size=8))
    (tmp_path / "in/train/b/new.png").unlink()
    (tmp_path / "in/train/a/000.png").rename(tmp_path / "in/train/b/000.png")
    with pytest.raises(UserError, match="source_hash: "):
        packed(tmp_path / "in", finished, PackConfig(size=8))
    with pytest.raises(UserError, match="no test split"):
        packed(tmp_path / "in" / "train", finished, PackConfig(size=8), labels=False)


def test_other_labels_are_refused(tmp_path):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    for labels, message in (([0, 1, 0, 1], None), ([0, 1, 1, 1], "source_hash")):
        np.savez(tmp_path / "in.npz", images=images, labels=labels)
        expected = pytest.raises(UserError, match=message) if message else nullcontext()
        with expected:
            packed(tmp_path / "in.npz", tmp_path / "out", PackConfig(raw=True, size=8))


CHANGED = r"images have changed since they were packed, such as .*{}; remove it.*--output"


def age(root: Path) -> None:
    """Files written this second may change again without another time, so their state says
    nothing: these are an hour old."""
    for path in root.rglob("*.png"):
        os.utime(path, (time.time() - 3600,) * 2)


def change_pixels(path: Path) -> None:
    path.write_bytes(encoded(picture(99, 20, 20)))


def change_pixels_at_the_same_size_and_time(path: Path) -> None:
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 255
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def exchange(path: Path) -> None:
    other = path.with_name("002.png")
    path.rename(path.with_name("x"))
    other.rename(path)
    path.with_name("x").rename(other)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(
    "change", [change_pixels, change_pixels_at_the_same_size_and_time, exchange]
)
@pytest.mark.parametrize("old", [True, False])
def test_a_pack_of_images_that_changed_is_not_said_to_be_done(tmp_path, raw, change, old):
    root, how = pngs(tmp_path / "in"), PackConfig(raw=raw, size=8)
    if old:
        age(root)
    packed(root, tmp_path / "out", how)
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    change(root / "train/a/000.png")
    for _ in range(2):
        with pytest.raises(UserError, match=CHANGED.format(r"00[02]\.png")):
            packed(root, tmp_path / "out", how)
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}


def test_a_pack_is_compared_with_its_images_only_if_their_files_changed(tmp_path, monkeypatch):
    root = pngs(tmp_path / "in")
    age(root)
    packed(root, tmp_path / "out")
    (root / "train/a/000.png").write_bytes((root / "train/a/000.png").read_bytes())
    age(root)
    reads = []
    monkeypatch.setattr(plans, "read", lambda source, i: reads.append(i) or source.read(i))
    packed(root, tmp_path / "out")
    assert reads, "the time is another, the content is not"
    reads.clear()
    packed(root, tmp_path / "out")
    assert not reads
    caches = sorted((tmp_path / ".cache").glob("pack-*.json"))
    assert len(caches) == 2
    for damage in (b"{", b"[" * 100_000, b"\xff"):
        for cache in caches:
            cache.write_bytes(damage)
        packed(root, tmp_path / "out")
        assert len(reads) == 15, "a damaged cache: both splits are compared"
        reads.clear()


def test_a_pack_does_not_go_on_with_changed_images(tmp_path):
    root, out = pngs(tmp_path / "in"), tmp_path / "out"
    with pytest.raises(Stop):
        pack(DataConfig(path=str(root)), PackConfig(), out, stop_after(8))
    change_pixels(root / "train/a/002.png")
    with pytest.raises(UserError, match=CHANGED.format(r"002\.png")):
        packed(root, out)
    (root / "train/a/002.png").write_bytes(encoded(picture(2 + 5000, 22, 18)))
    packed(root, out)
    same_files(out / "train", packed(root, tmp_path / "whole") / "train")


def test_a_repaired_image_is_missing_in_the_pack(tmp_path):
    root = pngs(tmp_path / "in")
    whole = (root / "train/a/004.png").read_bytes()
    (root / "train/a/004.png").write_bytes(whole[:50])
    packed(root, tmp_path / "out", max_bad=0.5)
    packed(root, tmp_path / "out", max_bad=0.5)
    (root / "train/a/004.png").write_bytes(whole)
    with pytest.raises(UserError, match=CHANGED.format(r"004\.png")):
        packed(root, tmp_path / "out", max_bad=0.5)


def test_arrays_that_changed(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "in.npz", images=images)
    for _ in range(2):
        packed(tmp_path / "in.npz", tmp_path / "out", PackConfig(raw=True, size=8))
    images[5] ^= 1
    np.savez(tmp_path / "in.npz", images=images)
    with pytest.raises(UserError, match=CHANGED.format("5")):
        packed(tmp_path / "in.npz", tmp_path / "out", PackConfig(raw=True, size=8))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    pngs(tmp_path / "in")
    with pytest.raises(UserError, match=r"'.*in/train' exists and is not a pack"):
        packed(tmp_path / "in", tmp_path / "in")
    assert opened(tmp_path / "in").name(0).endswith("000.png")
    assert not (tmp_path / "in" / ".train.packing").exists()


def test_two_commands_at_a_time_are_refused(tmp_path):
    root = pngs(tmp_path / "in")

    def again(*_):
        packed(root, tmp_path / "out")

    with pytest.raises(UserError, match="another process"):
        pack(DataConfig(path=str(root)), PackConfig(), tmp_path / "out", again)


def test_half_a_pack_does_not_open(tmp_path, finished):
    os.rename(finished / "train", finished / ".train.packing")
    with pytest.raises(UserError, match="contains no finished pack"):
        opened(finished)
    shutil.rmtree(finished / "test")
    (finished / ".train.packing" / "pack.json").unlink()
    for place in (finished, finished / ".train.packing"):
        with pytest.raises(UserError):
            opened(place)


FILES = ["images.bin", "offsets.npy", "labels.npy", "names.bin", "name_offsets.npy", "hashes.npy"]


@pytest.mark.parametrize("file", [*FILES, "source_hashes.npy", "pack.json"])
@pytest.mark.parametrize("damage", ["gone", "empty", "short", "long"])
def test_a_pack_with_a_wrong_file_is_refused(finished, file, damage):
    path = finished / "train" / file
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage != "long":
        path.write_bytes(content[: 0 if damage == "empty" else -2])
    elif file.endswith(".npy"):
        np.save(path, np.concatenate([np.load(path), np.load(path)[-1:]]))
    elif file == "pack.json":
        path.write_bytes(content + b"}")
    else:
        path.write_bytes(content + b"\0")
    with pytest.raises(UserError, match=r"data\.path=.*(damaged|pack)") as error:
        opened(finished)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "a pack of version 3"),
        ({"kind": "png"}, "kind png"),
        ({"format": "zip"}, "not the description of a pack"),
        ({"count": "12"}, "damaged"),
        ({"count": None}, "damaged"),
        ({"kind": "raw"}, "damaged"),
    ],
)
def test_other_descriptions_are_refused(finished, change, message):
    path = finished / "train" / "pack.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        opened(finished)


BAD = {
    "count": [-1, 0, 10**18, 1.5, "12", None, True],
    "kind": [["jpeg"], {}, None],
    "size": [-5, 0, "x", None],
    "classes": ["abc", 5, [], [1, 2], {"a": 1}, ["a"], ["a", "a"]],
    "version": ["1", None, [1]],
    "checksums": [None, {}, {"/etc/passwd": "x"}, {"../../../../etc/passwd": "x"}, [1]],
    "bad_images": ["many", None, -1],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in BAD.items() for v in values])
def test_a_description_that_means_harm_is_one_line(finished, key, value):
    """With a checksum that is right again."""
    path = finished / "train" / "pack.json"
    about = read_json(path)
    write_json(path, sealed({**about, key: value}))
    with pytest.raises(UserError, match="pack") as error:
        opened(finished)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("labels.npy", lambda x: x + 10**6),
        ("labels.npy", lambda x: -x - 1),
        ("offsets.npy", lambda x: np.concatenate([x[:1], x[1:-1][::-1], x[-1:]])),
        ("offsets.npy", lambda x: np.concatenate([x[:1], x[1:-1] * 0 + 2**62, x[-1:]])),
        ("offsets.npy", lambda x: x + 1),
        ("name_offsets.npy", lambda x: np.concatenate([x[:1], x[1:-1][::-1], x[-1:]])),
    ],
)
@pytest.mark.parametrize("harm", [True, False])
def test_altered_labels_and_offsets_are_refused(finished, file, change, harm):
    path, description = finished / "train" / file, finished / "train" / "pack.json"
    np.save(path, change(np.load(path)))
    if harm:  # then their checksums are right, too
        about = read_json(description)
        sums = about["checksums"] | {file: file_hash(path)}
        write_json(description, sealed({**about, "checksums": sums}))
    with pytest.raises(UserError, match=r"this pack is damaged \(.*" + file):
        opened(finished)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("what", ["a folder", "a pipe"])
def test_what_is_no_file_is_not_waited_for(finished, file, what):
    path = finished / "train" / file
    path.unlink()
    path.mkdir() if what == "a folder" else os.mkfifo(path)
    with pytest.raises(UserError):
        opened(finished)


@pytest.mark.parametrize("raw", [True, False])
def test_an_image_that_changed_on_the_disk_ends_the_command(tmp_path, raw):
    """It would decode to other pixels, in silence."""
    root = pngs(tmp_path / "in")
    folder = packed(root, tmp_path / "out", PackConfig(raw=raw, size=8)) / "train"
    whole = Pack(folder)
    images = [bytes(whole.read(i)) for i in range(len(whole))]
    blob = folder / ("images.npy" if raw else "images.bin")
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    pack_of = Pack(folder)
    assert [bytes(pack_of.read(i)) for i in range(len(images) - 1)] == images[:-1]
    for _ in range(2):
        with pytest.raises(ChangedImage, match=r"its bytes in the pack .* have changed") as error:
            pack_of.read(len(images) - 1)
    with pytest.raises(ChangedImage):  # replaced by another image it would be another result
        BadImages(None, 100, 0.5).note(error.value)
    report = check(DataConfig(path=str(folder.parent)), lambda *_: None)
    assert [len(split.broken) for split in report.splits] == [1, 0]
    assert len(report.damaged) == 1


def test_an_unfinished_pack_without_its_plan_is_not_continued(tmp_path):
    work = tmp_path / "out/.train.packing"
    work.mkdir(parents=True)
    root = pngs(tmp_path / "in")
    (work / "records.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"plan\.json is lost or damaged; remove this folder"):
        packed(root, tmp_path / "out")
    (work / "plan.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"plan\.json is lost or damaged; remove this folder"):
        packed(root, tmp_path / "out")


@pytest.mark.parametrize("raw", [True, False])
def test_verify_finds_every_changed_byte(tmp_path, raw):
    root = pngs(tmp_path / "in")
    folder = packed(root, tmp_path / "out", PackConfig(raw=raw, size=8)) / "train"
    pool = ThreadPoolExecutor(2)
    assert verify(folder, pool) == []
    for path in sorted(folder.iterdir()):
        if path.name == "pack.json":
            continue
        whole = bytearray(path.read_bytes())
        for at in {len(whole) - 1, len(whole) * 3 // 4}:
            changed = whole.copy()
            changed[at] ^= 1
            path.write_bytes(changed)
            try:
                problems = verify(folder, pool)
            except UserError:
                problems = ["does not open"]
            assert problems, (path.name, at)
            if path.name.startswith("images"):
                (line,) = problems
                assert re.search(r"train image \d+ \(.*\.png\): damaged", line)
        path.write_bytes(whole)
    assert verify(folder, pool) == []


@pytest.mark.parametrize("raw", [False, True])
def test_a_pack_that_is_cut_short_while_it_is_open_is_one_line(tmp_path, raw):
    """Not a SIGBUS, which ends the process without a word, and not a broken image."""
    root = pngs(tmp_path / "in")
    folder = packed(root, tmp_path / "out", PackConfig(raw=raw, size=8)) / "train"
    last = len(Pack(folder)) - 1
    for name, use in {
        BLOB["raw" if raw else "jpeg"]: lambda source: decode(source, last),
        "names.bin": lambda source: source.name(last),
        "name_offsets.npy": lambda source: source.name(last),
        "hashes.npy": lambda source: source.hashes,
        "source_hashes.npy": lambda source: source.origins,
    }.items():
        source, whole = Pack(folder), (folder / name).read_bytes()
        os.truncate(folder / name, len(whole) // 2)
        with pytest.raises(UserError, match=r"this pack is damaged \(") as error:
            use(source)
        assert not isinstance(error.value, BadImage)
        assert str(error.value).startswith(f"data.path={folder}: ")
        assert name.split("_")[-1].split(".")[0] in str(error.value)
        assert len(str(error.value).splitlines()) == 1
        (folder / name).write_bytes(whole)
    source = Pack(folder)  # what is small is in memory from the start
    before = [source.labels.tolist(), len(decode(source, last))]
    for name in ("labels.npy", *([] if raw else ["offsets.npy"])):
        os.truncate(folder / name, 140)
    assert [source.labels.tolist(), len(decode(source, last))] == before


def test_what_is_read_from_a_raw_pack_may_not_be_written_to(tmp_path):
    root = pngs(tmp_path / "in")
    source = Pack(packed(root, tmp_path / "out", PackConfig(raw=True, size=8)) / "train")
    for array in (source.read(0), source.hashes, source.origins):
        assert not array.flags.writeable


# The command --------------------------------------------------------------------------------------


def test_what_the_command_says(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(pngs(tmp_path / "in", 40).parent)
    code, out, said = in_process(monkeypatch, capfd, "pack", "in", "data.labels=false", "-o", "out")
    assert code == 0
    assert out == "out/train: 40 images\nout/test: 10 images\nUse them with data.path=out\n"
    lines = said.splitlines()
    assert re.fullmatch(r"packing test 10/10  \d+ images/s  0 s left", lines[0])
    assert re.fullmatch(r"packing train 40/40  \d+ images/s  0 s left", lines[1])
    assert opened(Path("out")).classes is None
    assert opened(Path("out")).name(0) == str(tmp_path / "in/train/a/000.png")
    code, out, said = in_process(monkeypatch, capfd, "pack", "in", "data.labels=false", "-o", "out")
    assert out.startswith("out/train: 40 images, packed before\n")
    assert (code, said) == (0, "")
    Path("in/train/a/000.png").write_bytes(b"")
    _, out, _ = in_process(monkeypatch, capfd, "pack", "in", "data.max_bad=0.1", "-o", "b", "--raw")
    assert "b/train: 39 images; 1 broken ones left out, see bad_images.txt\n" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "data.path=.*nowhere: no such file or folder"),
        (["in", "in"], "give one path"),
        (["in", "data.pth=3"], "Unknown key 'data.pth'. Did you mean 'path'?"),
        (["in", "data.labels=maybe"], "data.labels=maybe: input should be a valid boolean"),
        (["in", "data.source=foldr"], "Did you mean 'folder'?"),
        (["in", "-o", "in/train/a/000.png"], "--output in/train/a/000.png: File exists"),
        (["in", "--size", "0"], "--size"),
        (["broken"], "data.max_bad=0.001: 1 of 2 images cannot be used"),
    ],
)
def test_mistakes_are_named(tmp_path, monkeypatch, capfd, arguments, message):
    monkeypatch.chdir(pngs(tmp_path / "in", 4).parent)
    write(tmp_path / "broken", {"1.png": encoded(picture(0, 9, 9)), "2.png": b"text"})
    given = arguments if "-o" in arguments else [*arguments, "-o", "out"]
    code, out, said = in_process(monkeypatch, capfd, "pack", *given)
    assert (code, out) == (2, "")
    assert re.search(message.replace("?", r"\?"), said)
    assert "Traceback" not in said


def test_knn_on_a_pack_is_knn_on_its_source(tmp_path, monkeypatch, capfd):
    digits, run = tmp_path / "digits", str(tmp_path / "run")
    arguments = ["data.source=digits", "-o", str(digits), "--raw", "--size", "8"]
    assert in_process(monkeypatch, capfd, "pack", *arguments)[0] == 0
    config = selfsight.compose(
        "digits/simclr", [*TINY, *heads("simclr"), "max_steps=1"], run
    ).config
    selfsight.pretrain(config)
    scores = [
        {
            result.evaluated: result.metrics
            for result in selfsight.knn(run, keys, str(tmp_path / name))
        }
        for name, keys in (("a", []), ("b", [f"data.path={digits}"]))
    ]
    assert scores[0] == scores[1]
    assert scores[0].keys() == {"encoder", "untrained", "pixels"}
    packed(digits, tmp_path / "jpeg", PackConfig(quality=95))
    about = selfsight.knn(run, [f"data.path={tmp_path / 'jpeg'}"], str(tmp_path / "c"))
    for result in about:
        assert abs(result.metrics["k20"] - scores[0][result.evaluated]["k20"]) < 0.03
