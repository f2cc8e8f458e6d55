"""Folders of images: what is found, in what order, with which labels, and what is remembered."""

import os
import random
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from selfsight.data import packed_strings as names_module
from selfsight.data.decode import decode
from selfsight.data.packed_strings import PackedStrings
from selfsight.data.source import BadImage
from selfsight.data.sources import folder as module
from selfsight.data.sources.files import EXTENSIONS, read_file
from selfsight.data.sources.folder import STRAY, Folder
from selfsight.errors import UserError


def make(root: Path, *paths: str) -> Path:
    """Empty files: only decoding looks into them."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def listing(folder: Folder, root: Path) -> list[str]:
    return [os.path.relpath(folder.name(i), root) for i in range(len(folder))]


def labelled(folder: Folder) -> list[str]:
    return [folder.classes[n] for n in folder.labels]


# Compact strings ----------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=6)), st.integers(0, 20))
def test_names_are_a_list_of_strings(strings, cut):
    previous, names_module.BATCH = names_module.BATCH, 3
    try:
        names = PackedStrings.of(iter(strings))
        both = PackedStrings.joined(
            [PackedStrings.of(strings[:cut]), PackedStrings.of(strings[cut:])]
        )
    finally:
        names_module.BATCH = previous
    for found in (names, both):
        assert [found.raw(i) for i in range(len(found))] == strings
        assert [os.fsencode(found[i]) for i in range(len(found))] == strings
        assert found.offsets.dtype == np.uint32


# What is found ------------------------------------------------------------------------------------

part = st.text("aB.-_ é\U0001f600", min_size=1, max_size=4).filter(lambda s: s not in (".", ".."))
file = st.builds(
    "".join, st.tuples(part, st.sampled_from([".png", ".JPG", ".ppm", ".Tif", ".txt", ""]))
)
trees = st.recursive(
    st.just({}), lambda below: st.dictionaries(part | file, below, max_size=4), max_leaves=12
)


def grow(root: Path, tree: dict, leaves: random.Random) -> None:
    """Folders, of which some without anything in them become files."""
    for name, below in tree.items():
        if below or leaves.random() < 0.2:
            (root / name).mkdir()
            grow(root / name, below, leaves)
        else:
            (root / name).touch()


def walked(root: Path) -> list[str]:
    """By os.walk: images by folder, then by name."""
    found = []
    for folder, _, files in os.walk(root):
        parts = Path(folder).relative_to(root).parts
        images = [f for f in files if os.path.splitext(f)[1].lower() in EXTENSIONS]
        found += [(parts, f) for f in images if not any(p.startswith(".") for p in (*parts, f))]
    return [os.path.join(*parts, f) for parts, f in sorted(found)]


@given(trees, st.randoms(use_true_random=False))
@settings(max_examples=80)
@example({"a": {"c": {"z.png": {}}}, "a-b": {"y.png": {}}}, random.Random(0))
def test_the_listing_is_that_of_os_walk(tree, leaves):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        grow(root, tree, leaves)
        expected = walked(root)
        if not expected:
            with pytest.raises(UserError, match="contains no images"):
                Folder(root)
            return
        assert listing(Folder(root, labels=False), root) == expected
        folder = Folder(root)
        inside = [path for path in expected if os.sep in path]
        beside = len(expected) - len(inside)
        if inside and beside <= STRAY * len(expected):
            tops = [path.split(os.sep)[0] for path in inside]
            assert listing(folder, root) == inside
            assert folder.classes == sorted(set(tops))
            assert labelled(folder) == tops
        else:
            assert listing(folder, root) == expected
            assert folder.classes is None
            assert folder.labels is None


def test_imagefolder_finds_the_same(tmp_path):
    classes = ("dog", "cat", "Cat", "a-b", "a")
    make(tmp_path, *(f"{c}/{i}{e}" for c in classes for i, e in enumerate(IMG_EXTENSIONS)))
    make(tmp_path, *(f"{c}/{i}.PNG" for c in classes for i in range(12)), "stray.png")
    ours, theirs = Folder(tmp_path), ImageFolder(tmp_path)
    assert ours.classes == theirs.classes
    assert [(ours.name(i), n) for i, n in enumerate(ours.labels)] == theirs.samples
    assert ours.labels.dtype == np.int64


NOT_READ = {".mpg", ".mpeg", ".h5", ".hdf", ".bufr", ".grib", ".eps", ".ps", ".wmf", ".emf", ".pdf"}


def test_every_ending_of_pillows_readers_is_known():
    """Except of containers that are not pictures, and of what another program would draw."""
    Image.init()
    readable = {e for e, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    assert readable - NOT_READ <= EXTENSIONS
    assert not NOT_READ & EXTENSIONS


def test_what_is_left_out_is_counted(tmp_path):
    names = [f"{c}/{i}.png" for c in "ab" for i in range(10)]
    make(tmp_path, *names, "a/1.txt", "a/2.TXT", "b/Thumbs.db", "readme", ".hidden", "preview.png")
    folder = Folder(tmp_path)
    assert len(folder) == 20
    assert [note.partition(": ")[2] for note in folder.notes] == [
        "4 files that are no images are left out: 2 .txt, 1 .db, 1 without ending",
        "1 images (preview.png) lie beside the folders of the classes and are left out; "
        "data.labels=false uses them",
    ]
    assert len(Folder(tmp_path, labels=False)) == 21
    make(tmp_path, *(f"{i}.png" for i in range(9)))
    folder = Folder(tmp_path)
    assert (len(folder), folder.classes) == (30, None)
    assert "10 images (0.png, 1.png, 2.png, ...) lie beside the sub-folders" in folder.notes[1]


def test_labels_can_be_left_unread(tmp_path):
    folder = Folder(make(tmp_path, "a/1.png", "b/1.png"), labels=False)
    assert (folder.classes, folder.labels) == (None, None)


def test_the_order_does_not_depend_on_threads(tmp_path, monkeypatch):
    make(tmp_path, *(f"{c}/{d}/{i}.png" for c in "abcdef" for d in "xyz" for i in range(3)))
    for place, target in (("c/back", ".."), ("e/second", "../f/x"), ("first", "f/x")):
        (tmp_path / place).symlink_to(target)
    plain = module._list
    delays = random.Random(0)

    def slow(*arguments):
        time.sleep(delays.random() / 200)
        return plain(*arguments)

    monkeypatch.setattr(module, "_list", slow)
    seen = []
    for threads in (1, 2, 3, 16):
        monkeypatch.setattr(module, "THREADS", threads)
        folder = Folder(tmp_path)
        seen.append((listing(folder, tmp_path), labelled(folder)))
    assert len(seen[0][0]) == 54
    assert all(other == seen[0] for other in seen)


def test_little_memory_is_kept(tmp_path):
    make(tmp_path, *(f"class-{i % 8}/image-{i:08d}.jpg" for i in range(4000)))
    Folder(tmp_path)  # whatever is loaded once
    tracemalloc.start()
    folder = Folder(tmp_path)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 18 bytes of a name, 4 of its offset, 8 of its label; a str alone takes 67 and its place in a
    # list 8
    assert len(folder) == 4000
    assert kept < 40 * 4000


# Links --------------------------------------------------------------------------------------------


def test_links_are_followed_and_loops_end(tmp_path):
    root = make(tmp_path / "root", "a/1.png", "b/deep/2.png")
    make(tmp_path / "outside", "3.png", "below/4.png")
    links = {
        "a/up": "..",
        "a/self": "self",
        "b/deep/again": "../../b",
        "c": "../outside",
        "d": "nowhere",
        "aa": "b/deep",  # comes first by name, yet the folder goes by its own path
        "e": "c",
    }
    for place, target in links.items():
        (root / place).symlink_to(target)
    (root / "a" / "linked.png").symlink_to("1.png")
    folder = Folder(root)
    assert listing(folder, root) == [
        *("a/1.png", "a/linked.png", "b/deep/2.png"),
        *("c/3.png", "c/below/4.png"),
    ]
    assert labelled(folder) == ["a", "a", "b", "c", "c"]


def test_of_links_to_one_folder_the_first_counts(tmp_path):
    root = make(tmp_path / "root", "images/1.png")
    make(tmp_path / "outside", "2.png")
    for name in "fbdaechg":
        (root / name).symlink_to("../outside")
    assert listing(Folder(root), root) == ["a/2.png", "images/1.png"]


def test_a_link_above_the_root_ends(tmp_path):
    root = make(tmp_path / "x" / "root", "a/1.png")
    make(tmp_path / "x", "beside/2.png")
    (root / "a" / "up").symlink_to("../..")
    assert listing(Folder(root), root) == ["a/1.png", "a/up/beside/2.png"]


def test_many_paths_to_few_folders_end(tmp_path):
    """40 folders of two links each to the next: a walk of every path would never end."""
    for i in range(40):
        make(tmp_path / "away", f"{i}/{i}.png")
        for name in "ab":
            (tmp_path / "away" / str(i) / name).symlink_to(f"../{i + 1}")
    root = tmp_path / "root"
    root.mkdir()
    (root / "start").symlink_to("../away/0")
    assert len(Folder(root)) == 40


# Hostile folders and files ------------------------------------------------------------------------


def test_names_need_not_be_utf8(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"class-\xe9")
    os.mkdir(folder)
    with open(os.path.join(folder, b"\xff\xfe.png"), "wb") as stream:
        Image.new("RGB", (3, 2)).save(stream, "PNG")
    source = Folder(tmp_path)
    assert source.classes == [os.fsdecode(b"class-\xe9")]
    assert os.fsencode(source.name(0)) == os.path.join(folder, b"\xff\xfe.png")
    assert decode(source, 0).shape == (2, 3, 3)


def test_what_is_no_regular_file_is_a_bad_image(tmp_path):
    """Reading a pipe or a device would wait or go on for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "gone.png").symlink_to("nowhere")
    make(tmp_path, "vanished.png", "taken.png")
    source = Folder(tmp_path)
    (tmp_path / "vanished.png").unlink()
    (tmp_path / "taken.png").unlink()
    (tmp_path / "taken.png").mkdir()
    reasons = {}
    for i in range(5):
        with pytest.raises(BadImage) as error:
            decode(source, i)
        reasons[Path(error.value.name).name] = error.value.reason
    assert reasons == {
        "pipe.png": "not a regular file",
        "zero.png": "not a regular file",
        "gone.png": "No such file or directory",
        "vanished.png": "No such file or directory",
        "taken.png": "Is a directory",
    }
    (tmp_path / "whole").write_bytes(b"x" * 300_000)
    assert read_file(os.fsencode(tmp_path / "whole")) == b"x" * 300_000


def test_a_folder_that_cannot_be_read_is_named():
    """As another user where the tests run as root, who may read everything."""
    with tempfile.TemporaryDirectory() as name:
        root = make(Path(name), "a/1.png", "shut/2.png")
        for path, mode in ((root, 0o755), (root / "shut", 0)):
            path.chmod(mode)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(UserError, match=r"cannot read the folder '.*/shut': Permission"):
                Folder(root)
        finally:
            os.seteuid(user)
            (root / "shut").chmod(0o755)


def test_a_folder_without_images_is_named(tmp_path):
    make(tmp_path, "notes.txt", ".hidden.png", ".git/1.png")
    with pytest.raises(UserError, match=rf"data\.path={tmp_path}: contains no images \(.*\.png"):
        Folder(tmp_path)


# The cache ----------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """A tree whose folders last changed a minute ago, large enough to be remembered."""
    monkeypatch.setattr(module, "CACHED", 4)
    root = make(tmp_path / "root", "a/1.png", "a/2.png", "b/deep/3.png", "b/deep/4.png")
    make(tmp_path / "outside", "5.png")
    (root / "c").symlink_to("../outside")
    age(tmp_path)
    return root


def age(root: Path) -> None:
    then = time.time() - 60
    for folder, _, _ in os.walk(root):
        os.utime(folder, (then, then))


def content(root: Path, cache: Path | None) -> tuple[list[str], list[str]]:
    folder = Folder(root, cache=cache)
    return listing(folder, root), labelled(folder)


def no_scan(*_):
    raise AssertionError("scanned")


def test_the_cache_spares_the_scan(tree, tmp_path, monkeypatch):
    cache = tmp_path / "run" / "cache"
    first = content(tree, cache)
    assert first == content(tree, None)
    monkeypatch.setattr(module, "_list", no_scan)
    assert content(tree, cache) == first
    assert Folder(tree, labels=False, cache=cache).labels is None
    (tmp_path / "other").symlink_to(tree)
    assert content(tmp_path / "other", cache) == first, "the same folder by another path"
    with pytest.raises(AssertionError, match="scanned"):
        Folder(tree / "a", cache=cache)


CHANGES = {
    "a new image": lambda root: make(root, "a/new.png"),
    "a new image in the depth": lambda root: make(root, "b/deep/new.png"),
    "an image less": lambda root: (root / "a" / "1.png").unlink(),
    "a renamed class": lambda root: (root / "a").rename(root / "z"),
    "a new class": lambda root: make(root, "new/1.png"),
    "a class less": lambda root: [p.unlink() for p in (root / "a").iterdir()],
    "behind a link": lambda root: make(root.parent / "outside", "new.png"),
    "another folder behind a link": lambda root: exchange(root.parent),
}


def exchange(parent: Path) -> None:
    """A folder for one with other images that was changed at the same time."""
    make(parent / "next", "6.png", "7.png")
    then = (parent / "outside").stat().st_mtime_ns
    os.utime(parent / "next", ns=(then, then))
    (parent / "outside").rename(parent / "old")
    (parent / "next").rename(parent / "outside")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_noticed(tree, tmp_path, change):
    cache = tmp_path / "cache"
    before = content(tree, cache)
    change(tree)
    after = content(tree, cache)
    assert after == content(tree, None)
    assert after != before


def test_a_folder_that_is_mounted_later_is_noticed(tree, tmp_path):
    (tree / "late").symlink_to("../disk")
    age(tree)
    before = content(tree, tmp_path / "cache")
    make(tmp_path / "disk", "8.png")
    assert content(tree, tmp_path / "cache")[0] == [*before[0], "late/8.png"]


def test_a_folder_changed_a_moment_ago_is_not_trusted(tree, tmp_path):
    """Its next change may leave the time of change as it is."""
    cache = tmp_path / "cache"
    make(tree, "a/new.png")
    content(tree, cache)
    times = (tree / "a").stat()
    make(tree, "a/newer.png")
    os.utime(tree / "a", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "a/newer.png" in content(tree, cache)[0]


def test_small_folders_are_not_remembered(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CACHED", 6)
    content(tree, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def pickled(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, names=np.array([{}], object))


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "not NumPy's": lambda path: path.write_bytes(b"nonsense" * 99),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "one array": lambda path: np.save(path.open("wb"), np.arange(3)),
    "other arrays": lambda path: np.savez(path, images=np.arange(3)),
    "pickled objects": pickled,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_ignored(tree, tmp_path, damage):
    expected = content(tree, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    damage(path)
    assert content(tree, tmp_path / "cache") == expected


def test_no_changed_byte_of_the_cache_gets_through(tree, tmp_path):
    expected = content(tree, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()

    @given(st.integers(0, len(whole) - 1), st.integers(1, 255))
    @settings(max_examples=150)
    def check(place, change):
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :],
        )
        assert content(tree, tmp_path / "cache") == expected

    check()


def test_a_cache_that_cannot_be_written_is_no_error(tree, tmp_path):
    make(tmp_path, "file")
    expected = content(tree, None)
    for _ in range(2):
        assert content(tree, tmp_path / "file" / "cache") == expected
