"""Files that are whole or not there: on a full disk, on Windows, in a folder that is gone."""

import errno
import os
import resource
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from selfsight import files
from selfsight.encoders.artifact import _write as write_weights
from selfsight.errors import UserError, described
from selfsight.files import naming, rename_durably, write_text
from selfsight.locks import LOCK, appending, locked, watched
from selfsight.logging.log import MetricsFile, read_metrics
from selfsight.train.checkpoint import Checkpoints

STATE = {"a": torch.arange(50_000), "b": torch.zeros(50_000)}


@pytest.fixture
def small_files():
    """No file may be longer than 100 KiB, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_checkpoint_on_a_full_disk_leaves_no_half_file(tmp_path, small_files):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    whole = checkpoints.save(1, {"a": torch.ones(5)})
    with pytest.raises(OSError, match="File too large") as error:
        checkpoints.save(2, STATE)
    assert described(error.value) == f"'{tmp_path / 'checkpoints'}': File too large"
    assert names(tmp_path) == [whole.name]


def test_weights_and_arrays_on_a_full_disk(tmp_path, small_files):
    for path, write in {
        "a.safetensors": lambda path: write_weights(STATE, path, {}),
        "a.txt": lambda path: path.write_text("a" * 200_000),
        "a.npy": lambda path: path.write_bytes(np.zeros(200_000).tobytes()),
    }.items():
        with pytest.raises(OSError, match="File too large") as error:
            files.write_atomically(tmp_path / path, write)
        assert error.value.errno == errno.EFBIG
        assert path in described(error.value)
    assert names(tmp_path) == []


def test_metrics_on_a_full_disk_end_with_a_whole_line(tmp_path, small_files):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    record = {"step": 1} | {f"metric {n:05}": 0.5 for n in range(3_500)}
    metrics.write(record)
    with pytest.raises(OSError, match="File too large") as error:
        metrics.write(record)
    metrics.close()
    assert described(error.value) == f"'{tmp_path / 'metrics.jsonl'}': File too large"
    assert (tmp_path / "metrics.jsonl").read_text().endswith("}\n")
    assert read_metrics(tmp_path / "metrics.jsonl") == [record]


def test_a_disk_that_became_read_only_hides_no_error(tmp_path, monkeypatch):
    def read_only(self, missing_ok=False):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(OSError, match="No space left") as error:
        files.write_atomically(tmp_path / "a", full)
    assert "a'" in described(error.value)


def test_errors_of_a_library_keep_their_own_words():
    with pytest.raises(OSError, match="5 requested and 2 written") as error, naming(Path("a")):
        raise OSError("5 requested and 2 written")
    assert described(error.value) == "5 requested and 2 written"


# Windows ------------------------------------------------------------------------------------------


def test_a_file_is_flushed_through_a_handle_that_may_write(tmp_path, monkeypatch):
    """Windows refuses another one with EBADF."""
    import fcntl

    real, flushed = os.fsync, []

    def fsync(descriptor):
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if is_file and mode == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flushed.append(is_file)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a.txt", "a")
    (tmp_path / "folder").mkdir()
    rename_durably(tmp_path / "folder", tmp_path / "other")
    assert flushed == [True, False, False, False]


def test_reading_at_a_place_without_pread(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(100)))
    with (tmp_path / "a").open("rb", buffering=0) as file:
        for size, place in ((5, 10), (50, 90), (0, 3), (4, 200)):
            expected = bytes(range(100))[place : place + size]
            assert files.read_at(file.fileno(), size, place) == expected
            assert files._read_at(file.fileno(), size, place) == expected


# A folder that is gone ----------------------------------------------------------------------------


def renamed(folder: Path) -> None:
    os.rename(folder, folder.with_name("elsewhere"))


def replaced(folder: Path) -> None:
    renamed(folder)
    folder.mkdir()
    (folder / LOCK).touch()


def deleted(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def without_lock(folder: Path) -> None:
    (folder / LOCK).unlink()


@pytest.mark.parametrize("change", [renamed, replaced, deleted, without_lock])
@pytest.mark.parametrize("hold", [locked, watched])
def test_nothing_is_written_below_a_folder_that_is_gone(tmp_path, monkeypatch, change, hold):
    monkeypatch.chdir(tmp_path)
    folder = Path("run")  # as most people type it
    folder.mkdir()
    (folder / LOCK).touch()
    with hold(folder):
        write_text(folder / "a.txt", "a")
        metrics, checkpoints = MetricsFile(folder / "m.jsonl", 0), Checkpoints(folder / "c")
        change(folder)
        before = names(tmp_path)

        def append():
            with appending(folder / "bad.txt"):
                raise AssertionError

        for write in (
            lambda: write_text(folder / "sub" / "b.txt", "b"),
            lambda: metrics.write({"step": 1}),
            lambda: checkpoints.save(1, {}),
            append,
        ):
            with pytest.raises(UserError, match=f"'{tmp_path / 'run'}': .* was deleted, renamed"):
                write()
        assert names(tmp_path) == before
        assert folder.exists() == (change in (replaced, without_lock))
        write_text(tmp_path / "run2.txt", "of another folder")
    metrics.close()


def test_after_the_lock_a_folder_may_go(tmp_path):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        pass
    renamed(tmp_path / "run")
    write_text(tmp_path / "run" / "a.txt", "a")


def test_a_machine_that_does_not_see_the_folder_watches_nothing(tmp_path):
    with watched(tmp_path / "not here"):
        write_text(tmp_path / "not here" / "a.txt", "a")
