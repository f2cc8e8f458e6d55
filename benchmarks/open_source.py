"""Opening images of very many rows: the first process of a machine against each further one.

The index is made up: names as those of ImageNet, in folders of 1,000, with labels. Each case runs
in a fresh process:

    alone     has its own index in memory and hashes all names, as each process would by itself
    first     the same, then leaves the index in a file for the others
    further   maps that file, and compares what it opened with the others (`fingerprint`)

Seconds do not count how the made-up index is made. Memory is what the process has for itself, and
the pages of files that it has touched. Linux only.
"""

import argparse
import gc
import json
import pickle
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import machine
from selfsight.data import by_machine
from selfsight.data.config import DataConfig
from selfsight.data.identity import fingerprint
from selfsight.data.images import Images
from selfsight.data.packed_strings import PackedStrings
from selfsight.data.sources.folder import Folder

CASES = ("alone", "first", "further")
PER_FOLDER = 1_000
LENGTH = 22  # bytes of a name: n00000001_00000001.jpg


class Index(Folder):
    """A folder whose files do not exist: each image is one pixel."""

    def __init__(self, rows: int) -> None:
        count = rows // PER_FOLDER
        digits = np.frombuffer(b"n00000000_00000000.jpg", np.uint8)
        names = np.broadcast_to(digits, (rows, LENGTH)).copy()
        for column in range(8):  # the last digits of the name are the row's number
            np.remainder(
                np.arange(rows) // 10**column, 10, out=names[:, 17 - column], casting="unsafe"
            )
        names[:, 10:18] += ord("0")
        kind = np.uint32 if rows * LENGTH < 2**32 else np.int64
        offsets = np.arange(0, rows * LENGTH + 1, LENGTH, dtype=kind)
        self._names = PackedStrings(names.reshape(-1).tobytes(), offsets)
        self._folders = PackedStrings.of(b"n%08d" % n for n in range(count))
        self._ends = np.arange(PER_FOLDER, rows + 1, PER_FOLDER)
        self._root, self.notes = b"/images", []
        self.classes = [f"n{n:08d}" for n in range(count)]
        self.labels = np.repeat(np.arange(count), PER_FOLDER)

    def read(self, i: int) -> np.ndarray:
        return np.full((128, 128, 3), i % 256, np.uint8)


def memory() -> tuple[float, float]:
    """MiB of this process alone, and of pages of files, which the machine holds once."""
    text = Path("/proc/self/smaps_rollup").read_text()
    found = {k: int(v) / 1024 for k, v in re.findall(r"(\w+):\s+(\d+) kB", text)}
    return found["Anonymous"], found["Rss"] - found["Anonymous"]


def measure(case: str, rows: int, place: Path) -> dict[str, float]:
    fingerprint(Index(PER_FOLDER))  # whatever is loaded once
    source = None if case == "further" else Index(rows)
    gc.collect()
    before, began = memory(), time.perf_counter()
    if source is None:
        source = by_machine._mapped(pickle.loads(place.read_bytes()))
        assert source is not None, "the file of the first process cannot be mapped"
    elif case == "alone":
        before = (before[0] - sum(buffer_sizes(source)) / 2**20, before[1])
    told = fingerprint(source)
    if case == "first":
        place.write_bytes(pickle.dumps(by_machine._leave(source)))
    images = Images(source, DataConfig(), torch.device("cpu"))
    images.labels_of(np.arange(0, rows, rows // 64))
    seconds, now = time.perf_counter() - began, memory()
    return {"s": seconds, "MiB": now[0] - before[0], "MiB of files": now[1] - before[1], **told}


def buffer_sizes(source: Index) -> list[int]:
    found: list[pickle.PickleBuffer] = []
    pickle.dumps(source, 5, buffer_callback=found.append)
    return [buffer.raw().nbytes for buffer in found]


def fresh(case: str, rows: int, place: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.open_source", "--case", case]
    command += ["--rows", str(rows), "--place", str(place)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10**8)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.rows, options.place)))
        return
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "place"
        found = {case: fresh(case, options.rows, place) for case in CASES}
        pickle.loads(place.read_bytes()).file.unlink()
    for case, values in found.items():
        cells = ", ".join(f"{values[unit]:.2f} {unit}" for unit in ("s", "MiB", "MiB of files"))
        print(f"{options.rows:,} images, {case}: {cells}")
    told = [{k: v for k, v in f.items() if k[:3] not in ("s", "MiB")} for f in found.values()]
    assert told[0]["data's names"] == told[1]["data's names"] == told[2]["data's names"]


if __name__ == "__main__":
    main()
