"""The numbers of docs/scaling-numbers.md: what a run of very many images and processes costs.

Each table follows from formulas below, and tests/test_scaling.py compares the formulas with bytes
and calls that it counts. Nothing is measured unless `--measure` asks for it: the seconds in the
tables follow from RATES.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.common import machine
from selfsight import randomness

IMAGES, RANKS, PER_MACHINE = 10**9, 1_024, 8
NAME = 24  # bytes of a name in its folder, or of a sample's key: n01440764_00000001.jpg
PATH = 34  # bytes of a path in a list: n01440764/n01440764_00000001.jpg
OWN = 4  # images of a rank in a step: 4,096 in all
FLOAT = 4  # bytes

# Measured on the machine that the documentation names; options of the command give others.
RATES = {
    "write": 9.8e8,  # bytes a second of a checkpoint, flushed to the disk
    "hash": 1.6e9,  # bytes a second of SHA-256, which reads it again
    "own": 5.7e-5,  # seconds to find out the images of a rank's part of a step
    "batch": 2.6e-4,  # seconds for the images of all ranks
    "draw": 9.9e-9,  # seconds an image, to draw a part of all
    "names": 2.1e-7,  # seconds a name, to hash all names once (benchmarks/open_source.py)
}

# Index ------------------------------------------------------------------------------------------


def offset(total: int) -> int:
    """Bytes of a place in a text of this length."""
    return 4 if total < 2**32 else 8


def texts(images: int, length: int) -> int:
    """Bytes of a list of texts of this length."""
    return length + offset(images * length)


class Kind(NamedTuple):
    """Bytes of the index of a source, for each image.

    Attributes:
        shared: of arrays, once on each machine; a function of images and bytes of a name.
        own: of each process.
        what: the arrays.
    """

    shared: Callable[[int, int], float]
    own: float
    what: str


LABEL = 8
KINDS = {
    "folder": Kind(lambda n, s: texts(n, s) + LABEL, 0, "name, its place, label"),
    "list": Kind(lambda n, s: texts(n, s) + LABEL, 0, "path, its place, label"),
    "webdataset": Kind(
        lambda n, s: texts(n, s) + 8 + 8 + LABEL, 0, "key, its place, offset and size, label"
    ),
    "pack": Kind(lambda n, s: 8 + LABEL, 1 / 8, "where the image ends, label; a bit: compared"),
    "pack, raw": Kind(lambda n, s: LABEL, 1 / 8, "label; a bit: compared"),
    "parquet": Kind(lambda n, s: LABEL, 0, "label; about 1 kB a row group"),
    "huggingface": Kind(lambda n, s: LABEL, 0, "label; the tables are mapped files"),
}


def index_rows() -> list[list[str]]:
    rows = []
    for name, kind in KINDS.items():
        each = kind.shared(IMAGES, PATH if name == "list" else NAME)
        own = kind.own * IMAGES
        rows.append([name, kind.what, f"{each:g}", size(each * IMAGES), size(own) if own else "0"])
    return rows


# Collectives ------------------------------------------------------------------------------------


class Term(NamedTuple):
    """Collectives of one step of a method.

    Attributes:
        kind: gather: rows of all ranks; scatter: its backward; reduce: a sum or maximum.
        count: how many.
        of: the numbers that a rank gives to each, as a product of sizes: B images of a rank, D the
            output's width, H the hidden layers', P the predictor's, E the encoder's, K prototypes,
            S directions.
    """

    kind: str
    count: int
    of: str


def terms(text: str) -> tuple[Term, ...]:
    """Read "2 gather B*D, 8 reduce H"."""
    parts = (part.split() for part in text.split(",") if part.strip())
    return tuple(Term(kind, int(count), of) for count, kind, of in parts)


_CONTRAST = "2 gather B*D, 2 scatter B*D, 8 reduce H"
_DINO = "2 gather B*E, 2 scatter B*E, 2 reduce 1, 6 reduce D"
# Of a method's default heads, on an encoder without tokens where it takes one. A method that is
# missing has none of its own.
COLLECTIVES = {
    "simclr": terms(_CONTRAST),
    "simclr_v2": terms("2 gather B*D, 2 scatter B*D, 16 reduce H"),
    "dcl": terms(_CONTRAST),
    "dclw": terms(f"{_CONTRAST}, 1 reduce 1"),
    "supcon": terms(f"{_CONTRAST}, 1 gather B*2"),  # labels, of 8 bytes each
    "moco_v1": terms("1 gather B*D"),
    "moco_v2": terms("1 gather B*D"),
    "moco_v3": terms("2 gather B*D, 20 reduce H, 12 reduce D"),
    "nnclr": terms("3 gather B*D, 2 scatter B*D, 16 reduce H, 8 reduce P, 8 reduce D"),
    "byol": terms("20 reduce H"),
    "simsiam": terms("16 reduce H, 8 reduce P, 8 reduce D"),
    "barlow_twins": terms("16 reduce H, 10 reduce D, 2 reduce D*D"),
    "vicreg": terms("16 reduce H, 8 reduce D, 4 reduce D*D"),
    "swav": terms("2 gather B*D, 4 reduce H, 2 reduce 1, 6 reduce K"),
    "dino": terms("1 reduce D"),
    "ibot": terms("2 reduce D"),
    "dinov2": terms(_DINO),
    "dinov3": terms(_DINO),
    "lejepa": terms("8 reduce H, 16 reduce 18*S"),
}
# The widths of the recipes imagenet/NAME: of the heads, and of the encoder where it counts.
_SIMCLR, _BARLOW = {"H": 2048, "D": 128}, {"H": 8192, "D": 8192}
_DINOV2 = {"D": 65_536, "E": 1024}
WIDTHS = {
    "simclr": _SIMCLR,
    "simclr_v2": _SIMCLR,
    "dcl": _SIMCLR,
    "dclw": _SIMCLR,
    "supcon": _SIMCLR,
    "moco_v1": {"D": 128},
    "moco_v2": {"D": 128},
    "moco_v3": {"H": 4096, "D": 256},
    "nnclr": {"H": 2048, "P": 4096, "D": 256},
    "byol": {"H": 4096},
    "simsiam": {"H": 2048, "P": 512, "D": 2048},
    "barlow_twins": _BARLOW,
    "vicreg": _BARLOW,
    "swav": {"H": 2048, "D": 128, "K": 3000},
    "dino": {"D": 65_536},
    "ibot": {"D": 8_192},
    "dinov2": _DINOV2,
    "dinov3": _DINOV2,
    "lejepa": {"H": 2048, "S": 1024},
}


def numbers(term: Term, sizes: dict[str, int]) -> int:
    """What a rank gives to one collective."""
    return math.prod(int(part) if part.isdigit() else sizes[part] for part in term.of.split("*"))


def sent(term: Term, ranks: int, sizes: dict[str, int]) -> float:
    """Bytes that each rank sends in a ring."""
    each = term.count * numbers(term, sizes) * FLOAT
    return each * (2 * (ranks - 1) / ranks if term.kind == "reduce" else ranks - 1)


def before(term: Term, ranks: int, sizes: dict[str, int]) -> float:
    """The same if gather's backward sums the gradient of all rows on all ranks."""
    return sent(term, ranks, sizes) * (2 if term.kind == "scatter" else 1)


def collective_rows() -> list[list[str]]:
    rows = []
    for name, found in COLLECTIVES.items():
        sizes = {"B": OWN, **WIDTHS[name]}
        now, then = (sum(f(t, RANKS, sizes) for t in found) for f in (sent, before))
        words = ", ".join(f"{t.count} {t.kind} {t.of}" for t in found)
        rows.append([name, words, size(now), size(then)])
    return rows


def gradient(parameters: float, ranks: int) -> float:
    """Bytes that a rank sends for the sum of all gradients, as DistributedDataParallel does."""
    return 2 * (ranks - 1) / ranks * parameters * FLOAT


# Checkpoints ------------------------------------------------------------------------------------

# Millions of parameters that are trained (encoder and heads), and tensors of their size in the
# state: the weights; a teacher's; momenta of SGD or LARS (1) or AdamW (2).
MODELS = {
    "SimCLR, ResNet-50": (28, 2),
    "DINO, ViT-S/16": (44, 4),
    "MAE, ViT-L/16": (329, 3),
    "DINOv2, ViT-L/16": (327, 4),
    "DINOv2, ViT-g/14": (1_161, 4),
}
# Llama 3 (arXiv 2407.21783, section 3.3.4): 419 unexpected interruptions of 16,384 GPUs in 54 days.
GPU_HOURS_A_FAILURE = 16_384 * 54 * 24 / 419


def state_bytes(model: str) -> float:
    parameters, tensors = MODELS[model]
    return parameters * 1e6 * tensors * FLOAT


def save_seconds(state: float) -> float:
    """Write and flush, then read for the checksum in the name; all ranks wait."""
    return state / RATES["write"] + state / RATES["hash"]


def interval(save: float, between: float) -> float:
    """Seconds between two checkpoints that lose the least time (Young, CACM 1974): sqrt(2 * seconds
    of a save * mean seconds between two failures)."""
    return math.sqrt(2 * save * between)


def lost(every: float, save: float, between: float) -> float:
    """The share of the time that saves take and that failures undo: half an interval each."""
    return save / every + every / (2 * between)


def checkpoint_rows() -> list[list[str]]:
    rows = []
    for model in MODELS:
        state = state_bytes(model)
        wire = gradient(MODELS[model][0] * 1e6, RANKS)
        rows.append([model, size(state), span(save_seconds(state)), size(wire)])
    return rows


def interval_rows() -> list[list[str]]:
    rows = []
    for ranks in (8, 64, 1_024, 16_384):
        between = GPU_HOURS_A_FAILURE / ranks * 3600
        for model in ("SimCLR, ResNet-50", "DINOv2, ViT-g/14"):
            save = save_seconds(state_bytes(model))
            best = interval(save, between)
            shares = (lost(every, save, between) for every in (best, 600))
            cells = [f"{ranks:,}", model, f"{between / 3600:,.0f} h", f"{best / 60:,.0f} min"]
            rows.append(cells + [f"{share:.2%}" for share in shares])
    return rows


# Order ------------------------------------------------------------------------------------------


def order_rows() -> list[list[str]]:
    return [
        ["order of an epoch", "0", f"a rank's {OWN} images, each step", span(RATES["own"])],
        ["the same for all ranks", "0", f"{OWN * RANKS:,} images", span(RATES["batch"])],
        ["a stored permutation", size(8 * IMAGES), "not used", "-"],
        ["kNN check: draw 10,000", "32 MB", "rank 0, once", span(IMAGES * RATES["draw"])],
        ["hash of all names", "16 MB", "a machine, once", span(IMAGES * RATES["names"])],
        ["labels of a step", f"{LABEL * OWN} B", "on the GPU", "-"],
    ]


# Output -----------------------------------------------------------------------------------------


def size(count: float) -> str:
    """A number of bytes in words."""
    for power, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}"
    return f"{count:.3g} B"


def span(seconds: float) -> str:
    for factor, unit in ((1, "s"), (1e-3, "ms")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables() -> dict[str, str]:
    """The tables of the documentation, by what they show."""
    machines = "once a machine"
    return {
        "index": table(
            ["source", "arrays", "bytes an image", machines, "each process"], index_rows()
        ),
        "order": table(["what", "memory", "computed for", "time"], order_rows()),
        "collectives": table(
            ["method", "collectives of a step", "a rank sends", "with an all-reduce"],
            collective_rows(),
        ),
        "checkpoint": table(
            ["run", "state", "a save takes", "gradients: a rank sends a step"],
            checkpoint_rows(),
        ),
        "interval": table(
            ["GPUs", "run", "between failures", "best interval", "lost", "lost every 10 min"],
            interval_rows(),
        ),
    }


# Measurement ------------------------------------------------------------------------------------


def measure(folder: Path) -> None:
    """Print this machine's RATES but that of names, each the best of five."""
    import torch

    from selfsight.files import file_hash
    from selfsight.train.checkpoint import Checkpoints

    checkpoints, state = Checkpoints(folder, 1), {"x": torch.randn(2**28)}  # 1 GiB
    saves = []
    for step in range(1, 6):
        began = time.perf_counter()
        path = checkpoints.save(step, state | {"step": step})
        saves.append(time.perf_counter() - began)
    hashed = best(lambda: file_hash(path))
    print(f"write: {2**30 / (min(saves) - hashed):.3g} bytes a second")
    print(f"hash: {2**30 / hashed:.3g} bytes a second")
    few, many = np.arange(OWN), np.arange(OWN * RANKS)
    for name, places in (("own", few), ("batch", many)):
        order = lambda p=places: randomness.shuffled(p, IMAGES, randomness.ORDER, 0, 0)  # noqa: E731
        print(f"{name}: {best(order):.3g} s")
    draw = lambda: randomness.first_of(10**7, 10_000, randomness.SPLIT, 0)  # noqa: E731
    print(f"draw: {best(draw) / 10**7:.3g} s an image")


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of five calls."""
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="print this machine's rates instead")
    for name, value in RATES.items():
        parser.add_argument(f"--{name}", type=float, default=value, help="default: %(default)s")
    options = parser.parse_args()
    if options.measure:
        print(machine())
        with tempfile.TemporaryDirectory(dir=".") as folder:
            measure(Path(folder))
        return
    RATES.update((name, getattr(options, name)) for name in RATES)
    for name, text in tables().items():
        print(f"{name}\n\n{text}\n")


if __name__ == "__main__":
    main()
