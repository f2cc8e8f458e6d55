"""The names of a source in blocks, and the hash of all names, of each kind of source."""

import hashlib
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfsight.data import names as blocks_of_names
from selfsight.data.config import DataConfig
from selfsight.data.identity import identity
from selfsight.data.names import name_blocks
from selfsight.data.pack.write import PackConfig, pack
from selfsight.data.source import ConcatSource, Subset
from selfsight.data.sources.folder import Folder
from selfsight.data.sources.open import open_source
from tests.data.test_identity import pngs


def naive(source) -> str:
    """The hash of the names one by one, as data.json has held it since 0.2."""
    ends = [os.path.dirname(source.name(i)) for i in (0, len(source) - 1)]
    root = os.path.commonpath(ends) if len(set(map(os.path.isabs, ends))) == 1 else ""
    start = os.path.join(root, "")
    digest = hashlib.blake2b(digest_size=16)
    for i in range(len(source)):
        name = source.name(i)
        inside = name.startswith(start)
        relative = name[len(start) :] if inside else os.path.relpath(name, root)
        digest.update(relative.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folders of unequal length; one name is no UTF-8, one has letters beyond ASCII."""
    folder = tmp_path_factory.mktemp("images")
    pngs(folder, [f"a/{i}" for i in range(7)] + ["b/x/één", "b/x/1", "b/1", "c/z", "c/y"])
    os.rename(os.fsencode(folder / "c/z.png"), os.fsencode(folder / "c") + b"/\xff\xfe.png")
    return folder


def folder(images, tmp_path):
    return Folder(images)


def unlabelled(images, tmp_path):
    return Folder(images, labels=False)


def listed(images, tmp_path):
    """Paths of several depths, absolute ones, and some outside the folder of the first."""
    lines = ["a/1.png", "a/2.png", "b/x/1.png", f"{images}/a/3.png", "./a/4.png", "a/../b/1.png"]
    (tmp_path / "list.txt").write_text("\n".join([*lines, "a/5.png"]))
    return open_source(DataConfig(path=str(tmp_path / "list.txt"), image_dir=str(images)), "train")


def relative_list(images, tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(f"a/{i}.png" for i in range(7)))
    return open_source(DataConfig(path=str(tmp_path / "list.txt"), image_dir=str(images)), "train")


def packed(images, tmp_path):
    pack(DataConfig(path=str(images)), PackConfig(), tmp_path / "pack", lambda *_: None)
    return open_source(DataConfig(path=str(tmp_path / "pack")), "train")


def shards(images, tmp_path):
    for n in range(3):
        with tarfile.open(tmp_path / f"{n}.tar", "w") as tar:
            for i in range(n, 4 + n):
                tar.add(images / f"a/{i}.png", f"a/{i}.png")
    return open_source(DataConfig(path=str(tmp_path), source="webdataset"), "train")


def parquet(images, tmp_path):
    data = (images / "a/1.png").read_bytes()
    for n in range(2):
        rows = pa.array([{"bytes": data, "path": None}] * (4 + n))
        pq.write_table(pa.table({"image": rows}), tmp_path / f"{n}.parquet", row_group_size=2)
    return open_source(DataConfig(path=str(tmp_path)), "train")


def arrays(images, tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((8, 4, 4, 3), np.uint8))
    return open_source(DataConfig(path=str(tmp_path / "a.npz")), "train")


def joined(images, tmp_path):
    return ConcatSource([Folder(images / "a", False), Folder(images / "b", False)])


def part(images, tmp_path):
    return Subset(Folder(images), np.array([1, 2, 5, 8, 11]))


def sparse_part(images, tmp_path):
    return Subset(Folder(images), np.array([3, 9]))


def shuffled_part(images, tmp_path):
    return Subset(Folder(images), np.array([5, 2, 11, 1]))


KINDS = [folder, unlabelled, listed, relative_list, packed, shards, parquet, arrays, joined]
KINDS += [part, sparse_part, shuffled_part]


@pytest.mark.parametrize("block", [2, 3, 2**16])
@pytest.mark.parametrize("make", KINDS)
def test_blocks_hold_the_names_and_their_hash_is_that_of_the_names(
    make, block, images, tmp_path, monkeypatch
):
    monkeypatch.setattr(blocks_of_names, "BLOCK", block)
    source = make(images, tmp_path)
    found = [os.fsdecode(head + name) for head, names in name_blocks(source) for name in names]
    assert found == [source.name(i) for i in range(len(source))]
    assert identity(source)["names"] == naive(source)


def test_other_labels_have_another_hash_though_names_are_kept(images):
    """`align` gives a test split other numbers after it was compared."""
    source = Folder(images)
    before = identity(source)
    source.labels = source.labels[::-1].copy()
    after = identity(source)
    assert before["names"] == after["names"]
    assert before["labels"] != after["labels"]
