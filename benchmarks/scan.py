"""Finding the images of a large folder: Selfsight against torchvision's ImageFolder.

A tree of empty files is made in a temporary folder. Each case opens it in a fresh process, in
turns: seconds, growth of the process's resident memory by what it keeps, and of its peak.

    ImageFolder   torchvision.datasets
    scan          selfsight.data.sources.folder.Folder without its cache
    remember      Folder that writes its cache as well
    reload        Folder that reads it

Linux only. The tree is in the kernel's cache by then, as it is when runs follow one another.
"""

import argparse
import gc
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from torchvision.datasets import ImageFolder

from benchmarks.common import machine
from selfsight.data.sources.folder import Folder

CASES = ("ImageFolder", "scan", "remember", "reload")
SETTLED = 3  # seconds after which a folder's time of change is trusted


def grow(root: Path, files: int, folders: int) -> None:
    for f in range(folders):
        folder = root / f"n{f:08d}"
        folder.mkdir(parents=True)
        for i in range(f, files, folders):
            (folder / f"n{f:08d}_{i}.jpg").touch()


def resident() -> tuple[float, float]:
    """MiB now, and at most so far."""
    text = Path("/proc/self/status").read_text()
    now, peak = (int(re.search(rf"{key}:\s+(\d+)", text)[1]) / 1024 for key in ("VmRSS", "VmHWM"))
    return now, peak


def measure(case: str, root: Path, small: Path, cache: Path) -> dict[str, float]:
    def open_it(path: Path) -> ImageFolder | Folder:
        if case == "ImageFolder":
            return ImageFolder(path)
        return Folder(path, cache=None if case == "scan" else cache)

    if case == "remember":
        for file in cache.glob("*"):
            file.unlink()
    open_it(small)  # whatever is loaded once
    gc.collect()
    before, began = resident(), time.perf_counter()
    images = open_it(root)
    seconds = time.perf_counter() - began
    gc.collect()
    now, peak = resident()
    return {"s": seconds, "MiB": now - before[0], "MiB at the peak": peak - before[0]} | {
        "images": len(images)
    }


def fresh(case: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scan", "--case", case, "--folder", str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(folder: Path, files: int, rounds: int) -> None:
    results = [{case: fresh(case, folder) for case in CASES} for _ in range(rounds)]
    for case in CASES:
        assert all(r[case]["images"] == files for r in results)
        cells = []
        for unit in ("s", "MiB", "MiB at the peak"):
            values = sorted(r[case][unit] for r in results)
            ratios = sorted(r["ImageFolder"][unit] / r[case][unit] for r in results)
            cells.append(
                f"{median(values):.2f} {unit} ({values[0]:.2f} to {values[-1]:.2f}), "
                f"ratio {median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
            )
        print(f"{case}: {'; '.join(cells)}; n={rounds}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--folders", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        places = (options.folder / name for name in ("large", "small", "cache"))
        print(json.dumps(measure(options.case, *places)))
        return
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        grow(Path(name) / "small", 20, 2)
        grow(Path(name) / "large", options.files, options.folders)
        time.sleep(SETTLED)
        print(f"{options.files:,} files in {options.folders:,} folders", flush=True)
        compare(Path(name), options.files, options.rounds)


if __name__ == "__main__":
    main()
