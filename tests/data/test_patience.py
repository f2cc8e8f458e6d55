"""Errors of the machine while images are read: waited for, and no image is noted as broken."""

import errno
import os
import shutil
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from selfsight.data import decode as decoder
from selfsight.data.bad import BadImages, read_bad
from selfsight.data.config import DataConfig
from selfsight.data.decode import decode, read
from selfsight.data.identity import fingerprint
from selfsight.data.images import Images
from selfsight.data.pack import read as packs
from selfsight.data.pack import tables
from selfsight.data.pack.plan import PackConfig
from selfsight.data.pack.read import Pack
from selfsight.data.pack.write import pack
from selfsight.data.patience import Patience
from selfsight.data.source import BadImage
from selfsight.data.sources import shards
from selfsight.data.sources.folder import Folder
from selfsight.data.sources.open import open_source
from selfsight.data.sources.shards import Shards
from selfsight.errors import UserError
from tests.data.test_bad import CPU, make_folder
from tests.data.test_shards import samples, write_tar

OF_THE_MACHINE = [
    *("EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EMFILE", "ENFILE", "ENOMEM", "EHOSTDOWN"),
    *("EHOSTUNREACH", "ENETDOWN", "ECONNRESET", "EREMOTEIO", "ENXIO", "ENODEV"),
]
NOW = Patience(0)


class Failing:
    """One image, which can be read after so many errors."""

    def __init__(self, error: BaseException, times: int) -> None:
        self.error, self.times = error, times
        self.classes = self.labels = None

    def __len__(self) -> int:
        return 1

    def read(self, i: int) -> np.ndarray:
        self.times -= 1
        if self.times >= 0:
            raise self.error
        return np.zeros((2, 2, 3), np.uint8)

    def name(self, i: int) -> str:
        return "/data/a.png"


@pytest.mark.parametrize("name", OF_THE_MACHINE)
def test_an_error_of_the_machine_is_waited_for(name):
    error = OSError(getattr(errno, name), os.strerror(getattr(errno, name)))
    assert decode(Failing(error, 3), 0, Patience(10)).shape == (2, 2, 3)
    with pytest.raises(
        UserError, match=rf"/data/a\.png.*{error.strerror}.*data\.patience=0 "
    ) as end:
        decode(Failing(error, 99), 0, NOW)
    assert not isinstance(end.value, BadImage)
    assert len(str(end.value).splitlines()) == 1


def test_no_memory_while_it_is_read():
    assert read(Failing(MemoryError(), 2), 0, Patience(10)).shape == (2, 2, 3)
    with pytest.raises(UserError, match=r"not enough memory to read or decode /data/a\.png"):
        read(Failing(MemoryError(), 99), 0, NOW)


def test_no_memory_while_it_is_decoded(tmp_path, monkeypatch):
    source = Folder(make_folder(tmp_path / "images", 3, set()))
    whole, opened, times = decode(source, 1), Image.open, iter([MemoryError, MemoryError])

    def short_of_memory(*arguments):
        for error in times:
            raise error
        return opened(*arguments)

    monkeypatch.setattr(Image, "open", short_of_memory)
    assert np.array_equal(decode(source, 1, Patience(10)), whole)
    times = iter([MemoryError] * 9)
    with pytest.raises(UserError, match="not enough memory"):
        decode(source, 1, NOW)


@pytest.mark.parametrize("name", ["EINVAL", "EISDIR", "ENAMETOOLONG", "ENOENT", "EACCES"])
def test_another_error_is_of_the_image(name):
    error = OSError(getattr(errno, name), os.strerror(getattr(errno, name)))
    with pytest.raises(BadImage, match=error.strerror):
        decode(Failing(error, 99), 0, Patience(60))


def opened(tmp_path) -> tuple[Images, BadImages]:
    root = make_folder(tmp_path / "images", 40, set())
    config = DataConfig(path=str(root), in_memory=False, patience=0.3)
    source = open_source(config, "train")
    bad = BadImages(tmp_path / "bad.txt", len(source), 1.0)
    return Images(source, config, CPU, bad), bad


def test_a_file_that_is_gone_while_its_folder_is_there_is_broken(tmp_path):
    images, bad = opened(tmp_path)
    os.remove(images.source.name(3))
    assert images.decode(3)[0] == 4
    assert len(bad.lines) == 1


def test_the_only_file_of_a_folder_that_is_gone_is_broken(tmp_path):
    root = make_folder(tmp_path / "images", 20, set())
    folder = root / "lonely"
    folder.mkdir()
    shutil.copy(next(root.rglob("*.png")), folder / "z.png")
    source = Folder(root)
    os.remove(folder / "z.png")
    with pytest.raises(BadImage, match="No such file"):
        decode(source, len(source) - 1, Patience(60, [str(root)]))


@pytest.mark.parametrize("what", ["root", "class", "replaced"])
def test_a_folder_that_is_gone_is_named_and_the_list_stays_clean(tmp_path, what):
    images, _ = opened(tmp_path)
    root, name = tmp_path / "images", images.source.name(0)
    lost = os.path.dirname(name) if what == "class" else str(root)
    os.rename(lost, tmp_path / "away")
    if what == "replaced":  # as the empty folder below a disk that is not mounted any more
        for folder in (tmp_path / "away").iterdir():
            (root / folder.name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"the folder is gone.*data\.patience=0\.3 seconds") as end:
        images.decode(0)
    assert str(end.value).startswith(f"'{lost}'")
    assert not isinstance(end.value, BadImage)
    assert read_bad(tmp_path / "bad.txt") == []
    with pytest.raises(UserError):  # at once: nothing could be read since
        images.decode(1)


def test_a_folder_that_comes_back_changes_nothing(tmp_path):
    images, _ = opened(tmp_path)
    images.patience = Patience(20, [str(tmp_path / "images")])
    whole = [images.decode(i)[1] for i in range(len(images))]
    os.rename(tmp_path / "images", tmp_path / "away")
    back = threading.Timer(0.3, os.rename, [tmp_path / "away", tmp_path / "images"])
    back.start()
    tasks = [images.pool.submit(images.decode, i) for i in range(len(images))]
    for i, task in enumerate(tasks):
        taken, pixels = task.result()
        assert taken == i
        assert np.array_equal(pixels, whole[i])
    assert read_bad(tmp_path / "bad.txt") == []


def test_one_bad_sector_ends_the_run_although_others_can_be_read(tmp_path, monkeypatch):
    images, _ = opened(tmp_path)
    real, name = images.source.read, images.source.name(5)

    def sector(i):
        if images.source.name(i) == name:
            raise OSError(errno.EIO, "Input/output error", name)
        return real(i)

    monkeypatch.setattr(images.source, "read", sector)
    tasks = [images.pool.submit(images.decode, i) for i in [5, *range(10, 30)]]
    with pytest.raises(UserError, match=f"'{name}': Input/output error"):
        tasks[0].result()
    for task in tasks[1:]:
        task.result()


def test_a_shard_that_is_gone_is_named(tmp_path):
    path = write_tar(tmp_path / "0.tar", samples(0, 3))
    source = Shards([path])
    os.remove(path)
    with pytest.raises(UserError, match=r"0\.tar': No such file") as end:
        read(source, 1, NOW)
    assert not isinstance(end.value, BadImage)


@pytest.mark.parametrize("kind", ["pack", "shard"])
def test_a_disk_that_comes_back_is_read_by_new_descriptors(tmp_path, monkeypatch, kind):
    """Those from before stay lost, as those of a mount that is gone."""
    source = (
        packed(tmp_path)
        if kind == "pack"
        else Shards([write_tar(tmp_path / "0.tar", samples(0, 3))])
    )
    module = tables if kind == "pack" else shards
    whole, real = [read(source, i) for i in range(3)], module.read_at
    parts = [part for part in vars(source).values() if isinstance(part, tables.File)]
    kept = [part._file for part in parts] or [source._opened(source._files[0])]
    old = {file.fileno() for file in kept}  # kept, so that no new one gets their numbers

    def lost(descriptor, *place):
        if descriptor in old:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(descriptor, *place)

    monkeypatch.setattr(module, "read_at", lost)
    assert [read(source, i, Patience(2)) for i in range(3)] == whole


def packed(tmp_path, count: int = 3) -> Pack:
    root = make_folder(tmp_path / "images", count, set())
    config = DataConfig(path=str(root), labels=False)
    return Pack(pack(config, PackConfig(), tmp_path / "pack", lambda *_: None)[0][0])


@pytest.mark.parametrize("errors", [1, 2, 3, 8, 999])
def test_the_names_of_a_pack_are_on_the_disk_that_is_away(tmp_path, monkeypatch, errors):
    source = packed(tmp_path)
    left, real = [errors], tables.read_at

    def away(*place):
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*place)

    whole = decode(source, 1)
    monkeypatch.setattr(tables, "read_at", away)
    if errors < 999:
        assert np.array_equal(decode(source, 1, Patience(10)), whole)
        return
    with pytest.raises(UserError, match=rf"'{tmp_path}/pack/.*': Input/output error") as end:
        decode(source, 1, NOW)
    assert not isinstance(end.value, BadImage)


def test_a_pack_on_a_disk_that_is_away_is_not_called_damaged(tmp_path, monkeypatch):
    folder = packed(tmp_path)._folder

    def away(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(packs, "file_hash", away)
    with pytest.raises(OSError, match="Input/output error"):
        Pack(folder)


@pytest.mark.parametrize("keys", [{}, {"limit": 10}])
def test_reads_before_the_training_wait_as_long(tmp_path, monkeypatch, keys):
    root = make_folder(tmp_path / "images", 20, set())
    source = open_source(DataConfig(path=str(root), patience=0, **keys), "train")

    def away(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Folder, "read", away)
    with pytest.raises(UserError, match=r"data\.patience=0 seconds"):
        fingerprint(source)


def test_the_first_read_costs_no_more_than_before(tmp_path, monkeypatch):
    """No path is looked at, and no name is made, unless a read fails."""
    source = Folder(make_folder(tmp_path / "images", 3, set()))
    monkeypatch.setattr(decoder, "Patience", None)
    monkeypatch.setattr(type(source), "name", None)
    assert len(read(source, 0)) > 0


def test_images_of_an_outage_are_not_decoded_on_the_device(tmp_path):
    """The same of small images, which are decoded when the source is opened."""
    root = make_folder(tmp_path / "images", 10, set())
    config = DataConfig(path=str(root), patience=0, in_memory=True)
    source = open_source(config, "train")
    images = Images(source, config, torch.device("cpu"), lazy=True)
    os.rename(root, tmp_path / "away")
    with pytest.raises(UserError, match="the folder is gone"):
        images.tensor  # noqa: B018
