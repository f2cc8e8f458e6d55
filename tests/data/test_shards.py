"""Tar shards: webdataset's own reader, tarfile and braceexpand are the oracles."""

import gzip
import io
import json
import os
import random
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import webdataset
from braceexpand import braceexpand
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from selfsight.data.config import DataConfig
from selfsight.data.decode import decode
from selfsight.data.packed_strings import PackedStrings, load_index, save_index
from selfsight.data.source import BadImage
from selfsight.data.sources import shards
from selfsight.data.sources.open import open_source
from selfsight.data.sources.shards import Shards, expand
from selfsight.data.sources.tar import members
from selfsight.errors import UserError
from tests.conftest import TINY, selfsight

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def write_tar(path: Path, files: dict[str, bytes], kind: str = "pax") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=FORMATS[kind]) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def samples(start: int, stop: int, **more: bytes) -> dict[str, bytes]:
    files = {}
    for n in range(start, stop):
        files |= {f"{n:04d}.png": picture(n), f"{n:04d}.cls": str(n % 3).encode()}
        files |= {f"{n:04d}.{ending}": content for ending, content in more.items()}
    return files


def webdatasets(files: list[Path]) -> list[tuple[str, bytes, int | None]]:
    """Key, image and label of each sample with an image, by the library."""
    read = webdataset.WebDataset([str(f) for f in files], shardshuffle=False, empty_check=False)
    endings = [ending.decode() for ending in shards.IMAGES]
    found = []
    for sample in read:
        image = next((sample[e] for e in endings if e in sample), None)
        if image is not None:
            label = int(sample["cls"]) if "cls" in sample else None
            found.append((sample["__key__"], image, label))
    return found


def ours(source: Shards) -> list[tuple[str, bytes, int | None]]:
    keys = [source.name(i).split(".tar ")[1] for i in range(len(source))]
    labels = [None] * len(source)
    if source.classes is not None:
        labels = [int(source.classes[n]) for n in source.labels]
    return list(zip(keys, map(source.read, range(len(source))), labels, strict=True))


# Layout -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_samples_are_webdatasets(tmp_path, kind):
    long = "folder with a long name/" * 4  # over 100 bytes: each format has its own way
    longer = "" if kind == "ustar" else "ü" * 90 + "/" + "x" * 120 + "/"
    names = {"a/0.JPG": b"jpeg", "a/0.cls": b" 7\n", "./b.c/1.webp": b"", "./b.c/1.txt": b"text"}
    names |= {"./b.c/1.CLS": b"0", f"{long}2.seg.png": b"mask", f"{long}2.png": b"image"}
    names |= {f"{long}2.cls": b"012", "readme": b"no sample", "3.txt": b"no image"}
    names |= {f"{longer}4.tiff": b"4" * 1024, f"{longer}4.cls": b"7", "5.png": b"x", "5.jpg": b"y"}
    names |= {"5.cls": b"1"}
    files = [
        write_tar(tmp_path / "a-1.tar", names, kind),
        write_tar(tmp_path / "a-0.tar", samples(0, 5, json=b"{}"), kind),
        write_tar(tmp_path / "a-2.tar", {}, kind),
    ]
    source = Shards(files)
    assert ours(source) == webdatasets(sorted(files))
    assert len(source) == 10
    assert source.skipped == 1
    assert source.classes == ["0", "1", "2", "7", "12"], "in the order of the numbers"
    assert source.name(5) == f"{tmp_path}/a-1.tar a/0"


def test_webdatasets_own_writer(tmp_path):
    path = tmp_path / "written.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for n in range(4):
            writer.write({"__key__": f"s/{n}", "png": picture(n), "cls": n})
    assert ours(Shards([path])) == webdatasets([path])


def test_members_need_not_be_neighbours(tmp_path):
    files = samples(0, 6)
    shuffled = dict(sorted(files.items(), key=lambda item: item[0][::-1]))
    assert list(shuffled) != list(files)
    mixed, whole = write_tar(tmp_path / "mixed.tar", shuffled), write_tar(tmp_path / "w.tar", files)
    assert ours(Shards([mixed])) == ours(Shards([whole]))


name = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1)
path_name = st.lists(name.filter(lambda n: n not in (".", "..")), min_size=1, max_size=8)
entries = st.lists(
    st.tuples(path_name.map("/".join), st.binary(max_size=1500), st.sampled_from("fffdsl")),
    max_size=8,
)


@given(entries, st.sampled_from(["gnu", "pax"]), st.data())
@settings(max_examples=60)
def test_a_tar_is_read_as_tarfile_reads_it_or_refused(tmp_path_factory, entries, kind, data):
    """Whole, cut anywhere, and with any one byte of it changed."""
    path = tmp_path_factory.mktemp("tar") / "t.tar"
    with tarfile.open(path, "w", format=FORMATS[kind]) as tar:
        for text, content, which in entries:
            member = tarfile.TarInfo(text)
            member.mtime = 1.5 if len(content) % 2 else 2  # a fraction needs a pax header
            member.type = {"d": tarfile.DIRTYPE, "s": tarfile.SYMTYPE, "l": tarfile.LNKTYPE}.get(
                which, tarfile.REGTYPE
            )
            member.linkname = text if which in "sl" else ""
            member.size = len(content) if which == "f" else 0
            tar.addfile(member, io.BytesIO(content) if which == "f" else None)
    with tarfile.open(path, "r:") as tar:
        theirs = [(m.name.encode(), m.offset_data, m.size) for m in tar if m.isreg()]
        end_mark = tar.offset
    whole = path.read_bytes()
    assert listed(path, whole) == theirs
    assert listed(path, whole[: data.draw(st.integers(0, end_mark + 511))]) is None
    place = data.draw(st.integers(0, data.draw(st.sampled_from([end_mark, len(whole) - 1]))))
    changed = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))])
    inside = any(start <= place < start + size for _, start, size in theirs)
    found = listed(path, changed + whole[place + 1 :])
    assert found is None or [f[1:] for f in found] == [t[1:] for t in theirs]
    assert not inside or found == theirs


def listed(path: Path, content: bytes) -> list[tuple[bytes, int, int]] | None:
    path.write_bytes(content)
    with path.open("rb") as file:
        try:
            return list(members(file.fileno()))
        except ValueError:
            return None


def test_how_samples_are_spread_over_shards_changes_nothing(tmp_path):
    one = write_tar(tmp_path / "one" / "0.tar", samples(0, 24))
    many = [write_tar(tmp_path / "m" / f"{n}.tar", samples(4 * n, 4 * n + 4)) for n in range(6)]
    whole, spread = Shards([one]), Shards(random.Random(0).sample(many, 6))
    assert ours(whole) == ours(spread)
    assert np.array_equal(whole.labels, spread.labels)


def test_many_threads_read_more_shards_than_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "DESCRIPTORS", 2)
    files = [write_tar(tmp_path / f"{n}.tar", samples(4 * n, 4 * n + 4)) for n in range(6)]
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    source = Shards(files)
    order = random.Random(1).choices(range(24), k=2000)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(source.read, order))
    assert read == [picture(i) for i in order]
    if before is not None:
        assert before < len(os.listdir("/proc/self/fd")) <= before + 2
        del source
        assert len(os.listdir("/proc/self/fd")) == before


# Labels -------------------------------------------------------------------------------------------


def labelled(tmp_path: Path, *contents: dict[str, bytes]) -> Shards:
    """One image for each of the given sets of other members."""
    files = {}
    for n, others in enumerate(contents):
        files[f"{n}.png"] = picture(n)
        files |= {f"{n}.{ending}": content for ending, content in others.items()}
    return Shards([write_tar(tmp_path / "l.tar", files)])


@pytest.mark.parametrize("key", shards.LABELS)
def test_labels_in_json(tmp_path, key):
    numbers = [json.dumps({"text": "a", key: n}).encode() for n in (10, 9, 10)]
    source = labelled(tmp_path, *({"json": content} for content in numbers))
    assert (source.classes, source.labels.tolist()) == (["9", "10"], [1, 0, 1])
    names = [json.dumps({key: text}).encode() for text in ("dog", "cat", "Übär")]
    source = labelled(tmp_path, *({"json": content} for content in names))
    assert (source.classes, source.labels.tolist()) == (["cat", "dog", "Übär"], [1, 0, 2])
    assert source.labels.dtype == np.int64


def test_a_cls_goes_before_a_json(tmp_path):
    a, b = {"json": b'{"label": 1}', "cls": b"cat"}, {"cls": b"dog", "json": b'{"label": 2}'}
    assert labelled(tmp_path, a, b).classes == ["cat", "dog"]


@pytest.mark.parametrize(
    "others", [{}, {"json": b'{"caption": "a dog"}'}, {"json": b"[1]"}, {"cls": b"-1"}]
)
def test_images_without_labels(tmp_path, others):
    source = labelled(tmp_path, others, others)
    assert source.classes is None
    assert source.labels is None
    with pytest.raises(UserError, match=r"1 of 2 images have no label, .*l\.tar 1; label all"):
        labelled(tmp_path, {"cls": b"0"}, others)


def test_labels_are_not_read_where_none_are_wanted(tmp_path):
    path = write_tar(tmp_path / "0.tar", {"0.png": picture(0), "0.json": b"{broken"})
    assert Shards([path], labels=False).classes is None
    with pytest.raises(UserError, match=r"0\.tar: '0\.json' is not JSON"):
        Shards([path])


# Mistakes -----------------------------------------------------------------------------------------


def refused(path: Path, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        Shards([path])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_shards_are_named(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", samples(0, 9), "ustar").read_bytes()
    damaged = {
        "cut": (whole[:1000], r"cut short: it ends within '0000\.png'"),
        "no-end": (whole[: 18 * 1024], "cut short: no end mark"),
        "header": (whole[:2048] + b"x" * 512 + whole[2560:], "damaged: no header at byte 2,048"),
        "hole": (whole[:2048] + bytes(1024) + whole[3072:], "damaged: data follows the end mark"),
        "zeros": (whole[:2048] + bytes(2**21), "damaged: data follows the end mark"),
        "packed": (gzip.compress(whole), "not a tar, or a compressed one"),
        "empty": (b"", "cut short"),
    }
    for name, (content, reason) in damaged.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(content)
        refused(path, reason)
    refused(tmp_path / "missing.tar", "No such file")
    refused(write_tar(tmp_path / "text.tar", {"0.txt": b""}), "none of 1 samples has an image")
    twice = write_tar(tmp_path / "twice.tar", {"0.jpg": b"a", "0.JPG": b"b"})
    refused(twice, r"two members '0\.JPG'")


def header(name: bytes, size: int, kind: bytes) -> bytes:
    """A header of tar in the format ustar."""
    info = tarfile.TarInfo(name.decode())
    info.size, info.type = size, kind
    return info.tobuf(tarfile.USTAR_FORMAT)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


HOSTILE = {
    "a million records in one header": b"11 key=abc\n" * 1_000_000,
    "no length": b"key=abc\n",
    "a length beyond": b"99 key=abc\n",
    "a long number as length": b"9" * 10_000 + b" a=b\n",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_pax_headers_that_do_harm_are_refused_at_once(tmp_path, what):
    content, path = HOSTILE[what], tmp_path / "x.tar"
    path.write_bytes(header(b"x", len(content), b"x") + padded(content) + bytes(1024))
    began = time.monotonic()
    refused(path, "damaged: ")
    assert time.monotonic() - began < 2


def test_many_records_in_one_header_take_linear_time(tmp_path):
    path, record = tmp_path / "x.tar", b"11 key=abc\n"
    content, image = record * (2**20 // len(record)), picture(0)
    path.write_bytes(
        header(b"x", len(content), b"x")
        + padded(content)
        + header(b"a.png", len(image), b"0")
        + padded(image)
        + bytes(1024)
    )
    began = time.monotonic()
    assert len(Shards([path])) == 1
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", [b"x", b"L", b"g"])
def test_a_member_has_few_headers(tmp_path, kind):
    one = header(b"x", 11, kind) + padded(b"11 key=abc\n")
    (tmp_path / "x.tar").write_bytes(one * 10_000 + bytes(1024))
    refused(tmp_path / "x.tar", "headers of one file are too many")


@pytest.mark.parametrize(
    "label", [b"[" * 100_000, b'{"label": ' * 100_000, b"[[1], [2]]", b"1" * 5000]
)
def test_labels_of_json_that_do_harm(tmp_path, label):
    """Refused in one line, or no label."""
    path = write_tar(tmp_path / "x.tar", {"a.png": picture(0), "a.json": label})
    if label == b"[[1], [2]]":
        assert Shards([path]).labels is None
    else:
        refused(path, "'a.json' is not JSON")


def test_a_label_is_short(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "LONGEST_LABEL", 9)
    path = write_tar(tmp_path / "x.tar", {"a.png": picture(0), "a.cls": b"1" * 10})
    refused(path, "'a.cls' is too long for a label")


@pytest.mark.parametrize("pattern", ["{0..99999999999}.tar", "{0..9999}{0..9999}.tar"])
def test_a_pattern_stands_for_a_number_of_files_that_can_be(pattern):
    with pytest.raises(UserError, match="stands for more than"):
        expand(pattern)


def test_a_sparse_member_is_refused(tmp_path):
    with (tmp_path / "0.png").open("wb") as file:
        file.truncate(2**20)
    path = tmp_path / "sparse.tar"
    for kind in ("gnu", "pax"):
        command = f"tar --sparse --format={kind} -C '{tmp_path}' -cf '{path}' 0.png"
        assert os.system(command) == 0
        refused(path, "is sparse")


def test_a_shard_that_shrinks_while_it_is_read(tmp_path):
    path = write_tar(tmp_path / "0.tar", samples(0, 3))
    source = Shards([path])
    os.truncate(path, 600)
    with pytest.raises(UserError, match=r"0\.tar: this shard has become shorter") as error:
        source.read(2)
    assert not isinstance(error.value, BadImage)  # others in it are gone, too
    with pytest.raises(UserError, match="has become shorter"):
        source.read(2)


def test_another_shard_in_the_place_of_one_is_refused(tmp_path):
    path = write_tar(tmp_path / "0.tar", samples(0, 3))
    source = Shards([path])
    os.remove(path)
    write_tar(path, samples(5, 40))
    with pytest.raises(UserError, match=r"0\.tar: this shard has been changed") as error:
        source.read(1)
    assert not isinstance(error.value, BadImage)


# The saved index ----------------------------------------------------------------------------------


def test_an_index_is_saved_and_used_while_the_shard_is_the_same(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    files = [write_tar(tmp_path / f"{n}.tar", samples(4 * n, 4 * n + 4)) for n in range(3)]
    scanned = []
    scan = shards._scan
    monkeypatch.setattr(shards, "_scan", lambda *a: scanned.append(1) or scan(*a))
    first = Shards(files, cache=cache)
    assert len(scanned) == 3
    again = Shards(files, cache=cache)
    assert len(scanned) == 3
    assert ours(again) == ours(first) == ours(Shards(files))
    assert np.array_equal(again.labels, first.labels)
    scanned.clear()
    write_tar(files[1], samples(20, 24))
    assert ours(Shards(files, cache=cache))[4] == ("0020", picture(20), 2)
    assert len(scanned) == 1
    assert Shards(files, labels=False, cache=cache).classes is None
    assert Shards(files, cache=cache).classes == ["0", "1", "2"]


@given(st.data())
@settings(max_examples=40)
def test_a_damaged_index_is_ignored(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    path, cache = write_tar(folder / "0.tar", samples(0, 3)), folder / "cache"
    truth = ours(Shards([path], cache=cache))
    (saved,) = cache.rglob("*.npz")
    content = saved.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    cut = content[:place]
    changed = cut + bytes([content[place] ^ data.draw(st.integers(1, 255))]) + content[place + 1 :]
    saved.write_bytes(data.draw(st.sampled_from([cut, changed])))
    assert ours(Shards([path], cache=cache)) == truth


@pytest.mark.parametrize("what", ["a folder", "a pipe", "a link to nothing"])
def test_an_index_that_is_no_file_is_ignored(tmp_path, what):
    path, cache = write_tar(tmp_path / "0.tar", samples(0, 3)), tmp_path / "cache"
    truth = ours(Shards([path], cache=cache))
    (saved,) = cache.rglob("*.npz")
    saved.unlink()
    if what == "a folder":
        saved.mkdir()
    elif what == "a pipe":
        os.mkfifo(saved)
    else:
        saved.symlink_to("/nowhere")
    assert ours(Shards([path], cache=cache)) == truth


@pytest.mark.parametrize("offsets", [[0, 9, 4, 12], [1, 4, 8, 12], [0, 4, 8, 11], [], [0.0, 12.0]])
def test_an_index_whose_offsets_do_not_fit_is_ignored(tmp_path, offsets):
    """With checksums that are right."""

    class Kind(NamedTuple):
        keys: PackedStrings

    save_index(tmp_path / "x.npz", Kind(PackedStrings.of([b"aaaa", b"bbbb", b"cccc"])))
    assert load_index(tmp_path / "x.npz", Kind).keys[2] == "cccc"
    save_index(tmp_path / "x.npz", Kind(PackedStrings(b"aaaabbbbcccc", np.array(offsets))))
    assert load_index(tmp_path / "x.npz", Kind) is None


def test_a_folder_that_cannot_be_written_saves_nothing(tmp_path):
    (tmp_path / "cache").write_text("a file")
    path = write_tar(tmp_path / "0.tar", samples(0, 3))
    assert len(Shards([path], cache=tmp_path / "cache")) == 3


# Patterns -----------------------------------------------------------------------------------------

number = st.integers(0, 120).flatmap(
    lambda n: st.integers(0, 4).map(lambda width: str(n).zfill(width))
)
braces = st.one_of(
    st.tuples(number, number).map(lambda ends: f"{{{ends[0]}..{ends[1]}}}"),
    st.lists(st.text("ab-.", max_size=3), min_size=2, max_size=3).map(
        lambda names: "{" + ",".join(names) + "}"
    ),
    st.text("ab/-.", max_size=5),
)


@given(st.lists(braces, max_size=3).map("".join))
def test_patterns_expand_as_in_a_shell(pattern):
    assert expand(pattern) == list(braceexpand(pattern))


@pytest.mark.parametrize("pattern", ["{0..3.tar", "a}.tar", "{a,{b,c}}.tar", "{a}.tar", "{1..b}"])
def test_patterns_that_mean_nothing(pattern):
    with pytest.raises(UserError, match=r"data\.path="):
        expand(pattern)


def test_patterns_and_folders_find_their_splits(tmp_path):
    for n in range(3):
        write_tar(tmp_path / f"train-{n:03d}.tar", samples(4 * n, 4 * n + 4))
    write_tar(tmp_path / "val-000.tar", samples(50, 52))
    pattern = "{train-000,train-001,train-002,val-000}.tar"
    for path in (str(tmp_path), f"{tmp_path}/{pattern}"):
        train, test = (open_source(DataConfig(path=path), split) for split in ("train", "test"))
        assert (len(train), len(test)) == (12, 2)
        assert test.read(1) == picture(51)
        assert np.array_equal(decode(train, 5), np.array(Image.open(io.BytesIO(picture(5)))))
    keys = {"path": f"{tmp_path}/train-{{000..001}}.tar", "test_path": f"{tmp_path}/val-{{000,}}"}
    with pytest.raises(UserError, match=r"val-: No such file"):
        open_source(DataConfig(**keys), "test")
    keys["test_path"] = f"{tmp_path}/val-{{000..000}}.tar"
    assert len(open_source(DataConfig(**keys), "train")) == 8
    assert len(open_source(DataConfig(**keys), "test")) == 2
    path = f"{{{tmp_path}/train-000,{tmp_path}/val-000}}.tar"
    assert len(open_source(DataConfig(path=path), "test")) == 2
    with pytest.raises(UserError, match=r"train-003\.tar: No such file"):
        open_source(DataConfig(path=f"{tmp_path}/train-{{000..003}}.tar"), "train")


# Addresses ----------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Serves a folder, counts what is asked for, and can end an answer too early."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.asked: list[str] = []
        self.short = False
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        super().do_GET()

    def copyfile(self, source, output) -> None:
        content = source.read()
        output.write(content[: len(content) // 2] if self.server.short else content)

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(tmp_path / "web") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_shards_on_the_web_are_downloaded_once(tmp_path, server, capsys):
    files = [write_tar(tmp_path / "web" / f"train-{n}.tar", samples(n, n + 3)) for n in (0, 3, 6)]
    write_tar(tmp_path / "web" / "val-0.tar", samples(50, 52))
    config = DataConfig(path=f"{server.url}/{{train-0,train-3,train-6,val-0}}.tar?key=1")
    train, test = (open_source(config, split) for split in ("train", "test"))
    assert [s[1:] for s in ours(train)] == [s[1:] for s in webdatasets(files)]
    assert len(test) == 2
    assert "train-3.tar 0003" in train.name(3)
    assert "Downloading 2 of 3: 0.0 of 0.0 MB" in capsys.readouterr().err
    assert len(server.asked) == 4
    assert len(open_source(config, "train")) == 9
    assert len(server.asked) == 4


def test_an_interrupted_download_starts_again(tmp_path, server):
    path = write_tar(tmp_path / "web" / "0.tar", samples(0, 3))
    server.short = True
    with pytest.raises(UserError, match=r"127.0.0.1:\d+/0\.tar: not downloaded: .* of .* bytes"):
        Shards([f"{server.url}/0.tar"])
    server.short = False
    assert ours(Shards([f"{server.url}/0.tar"])) == webdatasets([path])
    kept = [p.name for p in (tmp_path / "home" / "selfsight" / "shards").iterdir()]
    assert len(kept) == 1, kept


def test_of_many_that_want_a_shard_one_downloads_it(tmp_path, server):
    path = write_tar(tmp_path / "web" / "0.tar", samples(0, 3))
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: ours(Shards([f"{server.url}/0.tar"])), range(6)))
    assert found == [webdatasets([path])] * 6
    assert server.asked == ["/0.tar"]


def test_addresses_that_answer_with_no_shard(tmp_path, server):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "page.tar").write_text("<html>Please log in</html>" * 40)
    mistakes = {
        f"{server.url}/none.tar": "HTTP Error 404: File not found",
        f"{server.url}/page.tar": "page.tar: not a tar",
        "http://127.0.0.1:9/0.tar": "not downloaded: .*Connection refused",
        "s3://bucket/0.tar": "only http:// and https://",
        "https:///0.tar": "only http:// and https://",
    }
    for address, reason in mistakes.items():
        with pytest.raises(UserError, match=reason) as caught:
            open_source(DataConfig(path=address), "train")
        assert "\n" not in str(caught.value)


# A whole run --------------------------------------------------------------------------------------


def test_pretraining_on_shards(tmp_path):
    digits = load_digits()
    gray = np.rint(digits.images[:160] * (255 / 16)).astype(np.uint8)
    for n in range(5):
        files = {}
        for i in range(32 * n, 32 * n + 32):
            buffer = io.BytesIO()
            Image.fromarray(gray[i]).save(buffer, "PNG")
            files |= {f"{i}.png": buffer.getvalue(), f"{i}.cls": str(digits.target[i]).encode()}
        write_tar(tmp_path / "data" / f"{'val' if n == 4 else 'train'}-{n}.tar", files)
    selfsight("pretrain", "digits/simclr", "--run", "run", "data.path=data", "epochs=1", *TINY,
          cwd=tmp_path)  # fmt: skip
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2, "two steps of 64 of the 128 images in four shards"
