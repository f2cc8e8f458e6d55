"""The formulas of docs/scaling-numbers.md against bytes and calls that are counted."""

import gc
import io
import pickle
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks import scaling
from selfsight import distributed, randomness
from selfsight.batch import Normalization
from selfsight.data.by_machine import _leave, _mapped
from selfsight.data.config import DataConfig
from selfsight.data.images import Images
from selfsight.data.pack.write import PackConfig, pack
from selfsight.data.source import ConcatSource, Source, Subset
from selfsight.data.sources.open import open_source
from selfsight.methods import METHODS
from selfsight.pretraining.build import build_method
from selfsight.pretraining.config import compose
from selfsight.pretraining.recipes import recipes
from selfsight.train.loader import ViewLoader
from selfsight.train.optim import build_optimizer
from selfsight.views.recipe import ViewGroup
from tests.methods.test_methods import batch_of, build

DOCS = Path(__file__).parent.parent / "docs" / "scaling-numbers.md"


@pytest.mark.parametrize("name", scaling.tables())
def test_the_tables_of_the_documentation_are_those_of_the_script(name):
    assert scaling.tables()[name] in DOCS.read_text("utf-8")


# Index --------------------------------------------------------------------------------------------


def opened(path: Path, **keys) -> Source:
    """All images of a path: labelled ones without test images would be divided."""
    keys |= {"path": str(path), "test_path": str(path)}
    return open_source(DataConfig(**keys), "train")


def folder(images: int, place: Path) -> Source:
    for label in "ab":
        (place / label).mkdir()
    for i in range(images):
        (place / "ab"[i % 2] / f"{i:05d}.png").touch()
    return opened(place)


def listed(images: int, place: Path) -> Source:
    (place / "a.txt").write_text("\n".join(f"{i:05d}.png {'ab'[i % 2]}" for i in range(images)))
    return opened(place / "a.txt")


def shards(images: int, place: Path) -> Source:
    with tarfile.open(place / "0.tar", "w") as tar:
        for i in range(images):
            for ending, content in (("png", b"-"), ("cls", b"a" if i % 2 else b"b")):
                info = tarfile.TarInfo(f"{i:05d}.{ending}")
                info.size = 1
                tar.addfile(info, io.BytesIO(content))
    return opened(place / "0.tar")


def arrays(images: int, place: Path) -> Source:
    np.savez(place / "a.npz", x=np.zeros((images, 8, 8, 3), np.uint8), y=np.arange(images) % 2)
    return opened(place / "a.npz")


def packed(images: int, place: Path, raw: bool = False) -> Source:
    arrays(images, place)
    keys = DataConfig(path=str(place / "a.npz"), test_path=str(place / "a.npz"))
    pack(keys, PackConfig(raw=raw, size=8), place / "out", lambda *_: None)
    return opened(place / "out")


def packed_raw(images: int, place: Path) -> Source:
    return packed(images, place, True)


def parquet(images: int, place: Path) -> Source:
    rows = pa.array([{"bytes": b"-", "path": None}] * images)
    names = pa.array(["ab"[i % 2] for i in range(images)])
    pq.write_table(pa.table({"image": rows, "label": names}), place / "0.parquet")
    return opened(place / "0.parquet")


def hub(images: int, place: Path) -> Source:
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    rows = {"image": [{"bytes": b"-", "path": None}] * images, "label": [0, 1] * (images // 2)}
    datasets.Dataset.from_dict(rows, datasets.Features(kinds)).save_to_disk(place / "data")
    return opened(place / "data")


OPENERS = {  # and bytes of a name
    "folder": (folder, 9),
    "list": (listed, 9),
    "webdataset": (shards, 5),
    "pack": (packed, 0),
    "pack, raw": (packed_raw, 0),
    "parquet": (parquet, 0),
    "huggingface": (hub, 0),
}
SIZES = 200, 1_200


def held(source: Source) -> tuple[int, int]:
    """Bytes of the arrays of a source, and of all else that describes it."""
    buffers: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(source, 5, buffer_callback=buffers.append)
    return sum(buffer.raw().nbytes for buffer in buffers), len(rest)


@pytest.mark.parametrize("kind", OPENERS)
def test_an_image_takes_the_bytes_of_the_formula(kind, tmp_path):
    """The line through two sizes; what is no array does not grow with the images."""
    opener, length = OPENERS[kind]
    found = []
    for images in SIZES:
        place = tmp_path / str(images)
        place.mkdir()
        source = opener(images, place)
        assert len(source) == images
        assert source.labels is not None
        found.append(held(source))
    steps = SIZES[1] - SIZES[0]
    arrays, rest = (np.diff(column).item() / steps for column in zip(*found, strict=True))
    assert arrays == scaling.KINDS[kind].shared(SIZES[1], length)
    assert rest < 0.05


@pytest.mark.parametrize("kind", ["list", "pack"])
def test_a_part_takes_16_bytes_more_for_each_of_its_images(kind, tmp_path):
    """Its rows and labels; of the images of a pack not what they were made from."""
    source = OPENERS[kind][0](1_200, tmp_path)
    whole = held(source)[0]
    part = held(Subset(source, np.arange(0, 1_200, 2)))[0]
    assert part - whole == 600 * 16
    joined = held(ConcatSource([source, source]))[0]
    assert joined - whole <= 2_400 * 8 + 100


def test_memory_of_a_process_that_opens_and_of_one_that_maps(tmp_path):
    """Of Python's and NumPy's allocations, which maps of files are none of."""
    alone, copied = [], []
    for images in (10_000, 60_000):
        place = tmp_path / str(images)
        place.mkdir()
        tracemalloc.start()
        source = listed(images, place)
        gc.collect()
        alone.append(tracemalloc.get_traced_memory()[0])
        left = _leave(source)
        tracemalloc.stop()
        tracemalloc.start()
        mapped = _mapped(left)
        images_of = Images(mapped, DataConfig(in_memory=False), torch.device("cpu"))
        assert images_of.labels_of(np.array([0, 1])).tolist() == [0, 1]
        copied.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        left.file.unlink()
        assert mapped.name(images - 1) == source.name(images - 1)
    formula = scaling.KINDS["list"].shared(60_000, 9)
    assert np.diff(alone).item() / 50_000 == pytest.approx(formula, rel=0.02)
    assert np.diff(copied).item() / 50_000 < 0.02


# Order --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world", "parts"), [(1, 1), (2, 1), (4, 3), (8, 2)])
def test_a_rank_computes_its_own_part_of_the_batch(world, parts, monkeypatch, tmp_path):
    """The same images as parts of the whole batch, and no place of another rank."""
    images = Images(listed(500, tmp_path), DataConfig(in_memory=False), torch.device("cpu"))
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    views = [ViewGroup(size=8)]
    keys = {"batch_size": 48, "seed": 3, "normalization": None, "parts": parts}
    loader = ViewLoader(images, views, **keys)
    asked, shuffled = [], randomness.shuffled

    def spy(places, *coordinates):
        asked.append(len(places))
        return shuffled(places, *coordinates)

    monkeypatch.setattr(randomness, "shuffled", spy)
    for step in (0, 9, 10):
        whole = loader.indices(step)
        found = []
        for rank in range(world):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            asked.clear()
            found.append([rows for _, rows in loader._own(step)])
            assert sum(asked) == 48 // world
        by_part = [np.concatenate([found[r][p] for r in range(world)]) for p in range(parts)]
        assert np.concatenate(by_part).tolist() == whole.tolist()


def test_labels_of_a_batch_alone_are_on_the_device(tmp_path):
    source = arrays(40, tmp_path)
    images = Images(source, DataConfig(in_memory=False), torch.device("cpu"))
    normalization = Normalization((0.5,) * 3, (0.5,) * 3)
    keys = {"batch_size": 8, "seed": 0, "normalization": normalization}
    loader = ViewLoader(images, [ViewGroup(size=8)], **keys)
    for step, (batch,) in enumerate(loader.steps(0, 7)):
        assert batch.labels.tolist() == source.labels[loader.indices(step)].tolist()
    assert images._labels is None
    assert images.labels.tolist() == source.labels.tolist()  # an evaluation asks for all


# Collectives --------------------------------------------------------------------------------------

NAMES = {"all_gather_into_tensor": "gather", "reduce_scatter_tensor": "scatter"}
NAMES |= {"all_reduce": "reduce"}


def counted(work, world: int, monkeypatch) -> Counter:
    """(kind, numbers that a rank gives) of each collective that `work` calls as rank 0 of a world
    that only torch makes up: no data arrive, but all shapes are those of a real one."""
    calls: Counter = Counter()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)

    def spy(name, real):
        def call(out, *inputs, **options):
            given = inputs[0] if name == "all_gather_into_tensor" else out
            words = given.element_size() // (8 if given.dtype == torch.float64 else 4)
            calls[NAMES[name], given.numel() * words] += 1
            return real(out, *inputs, **options)

        return call

    try:
        with monkeypatch.context() as patch:
            for name in NAMES:
                patch.setattr(dist, name, spy(name, getattr(dist, name)))
            work()
    finally:
        dist.destroy_process_group()
    return calls


@pytest.mark.parametrize("world", [2, 16])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_sends_what_the_formula_says(name, world, monkeypatch):
    method = build(name)
    keys = method.config
    sizes = {"B": 32, "D": 16, "H": 32, "P": 32, "K": 12, "S": getattr(keys, "directions", 0)}
    sizes["E"] = method.backbone.num_features

    def step() -> None:
        method(batch_of(name)).loss.backward()
        method.after_step(0.5)

    expected: Counter = Counter()
    for term in scaling.COLLECTIVES.get(name, ()):
        expected[term.kind, scaling.numbers(term, sizes)] += term.count
    assert counted(step, world, monkeypatch) == expected


def test_gather_sends_back_the_rows_of_each_rank_alone(monkeypatch):
    """Half of what an all-reduce of all rows sends; tests/test_distributed.py compares the sums."""
    x = torch.randn(4, 3, requires_grad=True)
    calls = counted(lambda: distributed.gather(x).square().sum().backward(), 8, monkeypatch)
    assert calls == {("gather", 12): 1, ("scatter", 12): 1}
    gather, scatter = scaling.terms("1 gather B*D, 1 scatter B*D")
    sizes = {"B": 4, "D": 3}
    assert scaling.sent(gather, 8, sizes) == scaling.sent(scatter, 8, sizes) == 7 * 12 * 4
    whole = scaling.Term("reduce", 1, "8*B*D")
    assert scaling.before(scatter, 8, sizes) == scaling.sent(whole, 8, sizes)


def test_widths_are_those_of_the_recipes():
    for name, widths in scaling.WIDTHS.items():
        recipe = f"imagenet/{name}" if f"imagenet/{name}" in recipes() else None
        keys = compose(recipe, [f"method.name={name}"]).config.method
        fields = {"D": "output_dim", "H": "hidden_dim", "P": "predictor_dim", "K": "prototypes"}
        fields |= {"S": "directions"}
        for letter, field in fields.items():
            if letter in widths:
                assert widths[letter] == getattr(keys, field), (name, field)


# Checkpoints --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "recipe"),
    [
        ("SimCLR, ResNet-50", "simclr"),
        ("DINO, ViT-S/16", "dino"),
        ("DINOv2, ViT-L/16", "dinov2"),
    ],
)
def test_a_state_has_the_size_of_the_formula(model, recipe, tmp_path):
    """Of the recipe's method and its optimizer after a step, as a checkpoint holds it."""
    config = compose(f"imagenet/{recipe}", ["data.path=images"]).config
    method = build_method(config)
    optimizer = build_optimizer(method, config.optimizer, 0.1)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = {"method": method.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "state.pt")
    assert (tmp_path / "state.pt").stat().st_size == pytest.approx(
        scaling.state_bytes(model), rel=0.02
    )


def test_the_best_interval_loses_least():
    save, between = 30.0, 50 * 3600.0
    best = scaling.interval(save, between)
    loss = scaling.lost(best, save, between)
    assert all(loss < scaling.lost(best * factor, save, between) for factor in (0.9, 1.1, 3))
