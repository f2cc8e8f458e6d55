"""From JPEG files, packs and shards to crops: Selfsight against lightly, torchvision, PyTorch's
DataLoader, webdataset and Hugging Face's datasets.

One thread each unless said; rounds are interleaved, ratios are paired. The peers' transforms end in
float tensors with colours changed; Selfsight's threads end in uint8 crops, and the training device
does the rest, so "crops and colours" adds that work on the same thread.
"""

import argparse
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightly.transforms import DINOTransform, SimCLRTransform
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from benchmarks.common import machine, report
from selfsight.batch import Normalization
from selfsight.data.config import DataConfig
from selfsight.data.images import Images
from selfsight.data.pack import write as packing
from selfsight.data.sources.open import open_source
from selfsight.errors import UserError
from selfsight.train.loader import ViewLoader
from selfsight.views.recipe import ViewGroup, preset

UNIT = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BATCH = 125
Work = Callable[[], int]  # returns how many images it made views of


def groups(name: str) -> list[ViewGroup]:
    return [ViewGroup(**group) for group in preset(name)]


def eight() -> list[ViewGroup]:
    """Two views of 224 and six of 96 pixels, as in SwAV and as lightly's DINO transform makes."""
    large, blurred, small = groups("dino")
    return [large, blurred, small.model_copy(update={"count": 6})]


def loader(path: Path, views: list[ViewGroup], workers: int = 1) -> ViewLoader:
    config = DataConfig(path=str(path), labels=False, in_memory=False, workers=workers)
    images = Images(open_source(config, "train"), config, torch.device("cpu"))
    batch = min(BATCH, len(images))
    return ViewLoader(images, views, batch_size=batch, seed=0, normalization=Normalization(*UNIT))


def ours(path: Path, views: list[ViewGroup], colours: bool = False) -> Work:
    made = loader(path, views)

    def work() -> int:
        for start in range(0, len(made.images), BATCH):
            rows = np.arange(start, min(start + BATCH, len(made.images)))
            crops = made._submit(0, rows)
            if colours:
                made._collect(0, crops)
            else:
                crops.wait()
                made._decoder.take_back(crops)
        return len(made.images)

    return work


def lightlys(files: list[Path], transform: Callable) -> Work:
    def work() -> int:
        for file in files:
            with Image.open(file) as image:
                transform(image.convert("RGB"))
        return len(files)

    return work


def two_crops() -> Callable[[torch.Tensor], tuple]:
    """torchvision's fastest way: uint8 tensors, crop and flip only."""
    crop = v2.Compose([v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()])
    return lambda image: (crop(image), crop(image))


def torchvisions(files: list[Path]) -> Work:
    crop = two_crops()

    def work() -> int:
        for file in files:
            crop(decode_image(str(file), ImageReadMode.RGB))
        return len(files)

    return work


def webdatasets(shards: list[Path]) -> Work:
    """As its pages have it: shuffled shards, a buffer that shuffles, one sample at a time."""
    import webdataset as wds

    crop, urls = two_crops(), [str(shard) for shard in shards]

    def views(jpeg: bytes) -> tuple:
        pixels = torch.from_numpy(np.frombuffer(jpeg, np.uint8).copy())
        return crop(decode_image(pixels, ImageReadMode.RGB))

    def work() -> int:
        data = wds.WebDataset(urls, shardshuffle=len(urls)).shuffle(BATCH).to_tuple("jpg")
        return sum(1 for _ in data.map_tuple(views))

    return work


def huggingfaces(files: list[Path]) -> Work:
    """A data set in Arrow with a transform, read in random order."""
    from datasets import load_dataset

    data = load_dataset("parquet", data_files=[str(f) for f in files], split="train")
    crop, to_tensor = two_crops(), v2.PILToTensor()

    def work() -> int:
        for i in np.random.default_rng(0).permutation(len(data)):
            crop(to_tensor(data[int(i)]["image"].convert("RGB")))
        return len(data)

    return work


def shards_of(files: list[Path], folder: Path, count: int = 4) -> list[Path]:
    """The files in tar shards."""
    made = []
    for n in range(count):
        made.append(folder / f"train-{n:06d}.tar")
        with tarfile.open(made[-1], "w") as tar:
            for number, file in enumerate(files[n::count]):
                tar.add(file, f"{number:06d}.jpg")
    return made


def parquet_of(files: list[Path], folder: Path) -> list[Path]:
    """The files in parquet as `datasets` writes them."""
    from datasets import Dataset, Features, disable_progress_bars
    from datasets import Image as Encoded

    disable_progress_bars()
    rows = {"image": [{"bytes": file.read_bytes(), "path": None} for file in files]}
    Dataset.from_dict(rows, Features({"image": Encoded()})).to_parquet(folder / "train-0.parquet")
    return [folder / "train-0.parquet"]


def compare(title: str, mine: Work, theirs: Work, rounds: int, peer: str = "lightly") -> None:
    mine(), theirs()
    a, b = [], []
    for _ in range(rounds):
        for rates, work in ((a, mine), (b, theirs)):
            began = time.perf_counter()
            count = work()
            rates.append(count / (time.perf_counter() - began))
    report(title, a, b, "images/s", peer)


class Files(Dataset):
    def __init__(self, files: list[Path], transform: Callable) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> list[torch.Tensor]:
        with Image.open(self.files[i]) as image:
            return self.transform(image.convert("RGB"))


def first_and_rate(start: Callable[[], Iterator], size: int) -> tuple[float, float]:
    """Seconds from the start to the first batch, images a second of those after it."""
    began = time.perf_counter()
    batches = start()
    next(batches)
    first = time.perf_counter() - began
    count = sum(size for _ in batches)
    return first, count / (time.perf_counter() - began - first)


def whole_loaders(path: Path, files: list[Path], rounds: int) -> None:
    """All cores: threads that fill batches against forked workers, both with crops only."""
    crops = v2.Compose([v2.PILToTensor(), v2.Lambda(two_crops())])
    cores = torch.multiprocessing.cpu_count()
    repeated = files * 4
    firsts, rates = ([], []), ([], [])
    for _ in range(rounds):
        made = loader(path, groups("simclr"), cores)
        mine = partial(_plain, made, 4 * made.steps_per_epoch)
        peer = DataLoader(Files(repeated, crops), BATCH, num_workers=cores, shuffle=True)
        for k, (begin, size) in enumerate(((mine, made.batch_size), (peer.__iter__, BATCH))):
            first, rate = first_and_rate(begin, size)
            firsts[k].append(first)
            rates[k].append(rate)
    title = f"two crops, {cores} threads against a DataLoader of {cores} workers"
    report(title, *rates, "images/s", "DataLoader")
    a, b = (np.median(f) for f in firsts)
    print(f"  first batch after {a:.2f} s, DataLoader {b:.2f} s")


def _plain(made: ViewLoader, steps: int) -> Iterator:
    """Batches of crops without the colours, which a GPU would make."""
    ahead = [made._submit(0, made.indices(s % made.steps_per_epoch)) for s in range(2)]
    for step in range(steps):
        if step + 2 < steps:
            ahead.append(made._submit(0, made.indices((step + 2) % made.steps_per_epoch)))
        crops = ahead.pop(0)
        crops.wait()
        yield crops.views
        made._decoder.take_back(crops)


def pack(path: Path, output: Path, raw: bool) -> Path:
    config = packing.PackConfig(raw=raw, size=256)
    data = DataConfig(path=str(path), labels=False)
    began = time.perf_counter()
    ((folder, _),) = packing.pack(data, config, output, lambda *_: None)
    count = len(open_source(DataConfig(path=str(folder)), "train"))
    print(f"packed {count} images as {config.kind}: {count / (time.perf_counter() - began):.0f}/s")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).parent.parent.parent / "shared" / "data" / "imagenet-sample"
    parser.add_argument("--data", type=Path, default=default, help="folder of photographs")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    path, rounds = options.data, options.rounds
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in (".jpg", ".jpeg"))
    simclr, dino = groups("simclr"), eight()
    theirs = lightlys(files, SimCLRTransform())
    many = lightlys(files, DINOTransform())
    compare("two crops from JPEG", ours(path, simclr), theirs, rounds)
    compare("two crops and colours from JPEG", ours(path, simclr, True), theirs, rounds)
    compare("two crops from JPEG", ours(path, simclr), torchvisions(files), rounds, "torchvision")
    compare("eight crops from JPEG", ours(path, dino), many, rounds)
    compare("eight crops and colours from JPEG", ours(path, dino, True), many, rounds)
    with tempfile.TemporaryDirectory() as folder:
        for raw in (False, True):
            packed = pack(path, Path(folder) / str(raw), raw)
            kind = "raw" if raw else "JPEG"
            compare(f"two crops from a pack, {kind}", ours(packed, simclr), theirs, rounds)
    with tempfile.TemporaryDirectory() as name:
        tars, tables = Path(name, "tars"), Path(name, "parquet")
        tars.mkdir(), tables.mkdir()
        peer = webdatasets(shards_of(files, tars))
        compare("two crops from tar shards", ours(tars, simclr), peer, rounds, "webdataset")
        peer = huggingfaces(parquet_of(files, tables))
        compare("two crops from parquet", ours(tables, simclr), peer, rounds, "datasets")
    whole_loaders(path, files, rounds)


if __name__ == "__main__":
    try:
        main()
    except (UserError, FileNotFoundError) as error:
        sys.exit(f"{error}. Name a folder of photographs with --data PATH")
