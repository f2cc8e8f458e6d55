"""Real disks that are full, or become read-only, under a command: one line, and nothing is lost."""

import errno
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from selfsight.errors import described
from selfsight.files import write_atomically
from selfsight.locks import LOCK
from selfsight.logging.log import read_metrics
from tests.conftest import TINY, selfsight
from tests.data.test_bad import make_folder
from tests.processes import Started, start_ranks

FREE = r"\(([\d,]+) bytes are needed, ([\d,]+) bytes are free\)"
COMMAND = ["pretrain", "digits/simclr", *TINY, "max_steps=6", "run=run"]
KEEP = "checkpoint={every_steps: 2, keep: 9}"


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, in memory; call it with its size in bytes, once more to change that."""
    place = tmp_path / "disk"
    place.mkdir()

    def sized(size: int, more: str = "") -> Path:
        change = f"size={size}{more}" + (",remount" if os.path.ismount(place) else "")
        words = ["mount", "-t", "tmpfs", "-o", change, "tmpfs", str(place)]
        try:
            done = subprocess.run(words, capture_output=True)
        except FileNotFoundError:
            pytest.skip("no program mount")
        if done.returncode:
            pytest.skip("mounting takes the rights of root")
        return place

    yield sized
    subprocess.run(["umount", "-l", str(place)], capture_output=True)


def sizes(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def one_line(text: str, before: str = "selfsight: ") -> str:
    """The last line, which is the only one of a command's own."""
    lines = [line for line in text.splitlines() if line.startswith(before)]
    assert len(lines) == 1, text
    assert text.splitlines()[-1] == lines[0]
    assert "Traceback" not in text
    return lines[0]


def numbers(line: str) -> tuple[int, int]:
    """Needed and free bytes."""
    found = re.search(FREE, line)
    assert found, line
    return tuple(int(text.replace(",", "")) for text in found.groups())


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_checkpoint_that_does_not_fit(tmp_path, disk, ranks):
    """Room for one checkpoint and a half; then the same command on a larger disk."""
    place = disk(2**26)
    run(place, ranks)
    whole = (place / "run" / "encoder.safetensors").read_bytes()
    size = next(n for name, n in sizes(place).items() if name.startswith("step-00000002"))
    shutil.rmtree(place / "run")
    disk(int(1.5 * size) + 2**17)
    ends = run(place, ranks)
    assert [end.returncode for end in ends] == [2] * ranks
    needed, free = numbers(one_line(ends[0].stderr))
    assert 0.8 * size < needed <= size
    assert 0 < free < size
    assert all(end.stderr == "" for end in ends[1:])
    assert "checkpoints': No space left on device" in ends[0].stderr
    assert [n for n in sizes(place) if n.startswith((".step", "step"))] == [
        name for name in sizes(place) if name.startswith("step-00000002.")
    ]
    disk(2**26)
    ends = run(place, ranks)
    assert [end.returncode for end in ends] == [0] * ranks
    assert "Continuing after step 2" in ends[0].stderr
    assert (place / "run" / "encoder.safetensors").read_bytes() == whole


def run(place: Path, ranks: int):
    if ranks == 1:
        return [selfsight(*COMMAND, KEEP, cwd=place, check=False)]
    both = start_ranks([[*COMMAND, KEEP]] * 2, [place] * 2, OMP_NUM_THREADS="1")
    return [rank.wait() for rank in both]


def filled(place: Path, left: int) -> None:
    """Leave so many bytes of a disk."""
    free = shutil.disk_usage(place).free - left
    (place / "filler").write_bytes(bytes(free))


@pytest.mark.parametrize("what", ["start", "metrics", "encoder"])
def test_other_files_of_a_run_that_do_not_fit(disk, what):
    place = disk(2**24)
    keys = ["checkpoint={every_steps: 0, every_epochs: 0, keep: 1}"]
    if what == "start":
        filled(place, 0)
        end = selfsight(*COMMAND, *keys, cwd=place, check=False)
        assert "No space left on device" in one_line(end.stderr)
    elif what == "encoder":
        selfsight(*COMMAND, *keys, cwd=place)
        (place / "run" / "encoder.safetensors").unlink()
        filled(place, 4096)
        end = selfsight(*COMMAND, *keys, cwd=place, check=False)
        assert "encoder.safetensors': No space left on device" in one_line(end.stderr)
        assert numbers(end.stderr)[0] > 4096
    else:
        process = Started(*COMMAND, "max_steps=100000", *keys, cwd=place)
        while not read_metrics(place / "run" / "metrics.jsonl"):
            time.sleep(0.02)
        filled(place, 0)
        end = process.wait(60)
        assert "metrics.jsonl': No space left on device" in one_line(end.stderr)
        assert numbers(end.stderr)[0] < 1000
        assert (place / "run" / "metrics.jsonl").read_text().endswith("}\n")
    assert end.returncode == 2
    assert not [name for name in sizes(place) if name.endswith(".tmp")]
    if what != "metrics":  # that one would train for long
        (place / "filler").unlink()
        selfsight(*COMMAND, *keys, cwd=place)


@pytest.mark.slow
def test_features_packs_and_tables_that_do_not_fit(tmp_path, disk):
    place = disk(2**25)
    images = make_folder(tmp_path / "images", 60, set())
    selfsight(*COMMAND, cwd=place)
    for left, command in (
        (6000, ["embed", "run", str(images), "-o", "table.npz"]),
        (6000, ["pack", str(images), "-o", "pack"]),
        (20000, ["pack", str(images), "-o", "pack2", "--raw", "--size", "64"]),  # in its journal
        (6000, ["knn", "run", "untrained=false"]),
    ):
        filled(place, left)
        end = selfsight(*command, cwd=place, check=False)
        assert end.returncode == 2, (command, end.stderr)
        line = one_line(end.stderr)
        assert "No space left on device" in line
        assert "bytes are free" in line, (command, line)
        assert not [name for name in sizes(place) if name.endswith(".tmp")], command
        (place / "filler").unlink()
        selfsight(*command, cwd=place)


def test_no_further_file_fits(disk):
    """A disk with free bytes, and no free inode."""
    place = disk(2**24, ",nr_inodes=4")
    end = selfsight(*COMMAND, cwd=place, check=False)
    assert end.returncode == 2
    assert "the disk takes no further file" in one_line(end.stderr)


def test_a_disk_that_is_read_only(disk):
    place = disk(2**24)
    selfsight(*COMMAND, cwd=place)
    (place / "run" / "encoder.safetensors").unlink()
    disk(2**24, ",ro")
    end = selfsight(*COMMAND, cwd=place, check=False)
    assert end.returncode == 2
    assert "Read-only file system" in one_line(end.stderr)
    assert "remove it" not in end.stderr
    assert f"{LOCK}" in end.stderr


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_disk_that_becomes_read_only_under_a_run(tmp_path, ranks):
    """As ext4 does it after an error of the disk."""
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(2**25)
    steps = [
        ["mkfs.ext4", "-q", str(image)],
        ["mount", "-o", "loop,errors=remount-ro", str(image), str(place)],
    ]
    for words in steps:
        if subprocess.run(words, capture_output=True).returncode:
            pytest.skip("no loop devices")
    try:
        device = subprocess.run(
            ["findmnt", "-no", "SOURCE", str(place)], capture_output=True, text=True
        ).stdout.strip()
        error = Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error")
        words = [*COMMAND, "max_steps=100000", KEEP]
        if ranks == 1:
            running = [Started(*words, cwd=place)]
        else:
            running = start_ranks([words] * 2, [place] * 2, OMP_NUM_THREADS="1")
        while len(read_metrics(place / "run" / "metrics.jsonl")) < 5:
            time.sleep(0.02)
        error.write_text("1")
        ends = [process.wait(60) for process in running]
        assert [end.returncode for end in ends] == [2] * ranks
        assert "Read-only file system" in one_line(ends[0].stderr)
        assert [p for p in sizes(place) if p.startswith("step-00000004.")]
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_quota(tmp_path):
    """What the disk has is not what the user may have."""

    def write(path):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with pytest.raises(OSError) as error:
        write_atomically(tmp_path / "new" / "a", write, 5)
    found = (
        r"Disk quota exceeded \(5 bytes are needed, [\d,]+ bytes are free on the disk, fewer for"
    )
    assert re.fullmatch(rf"'{tmp_path}/new/a': {found} this user\)", described(error.value))
