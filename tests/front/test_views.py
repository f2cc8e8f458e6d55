"""Views outside of the engine are those of the engine."""

import numpy as np
import pytest
import torch

import selfsight
from selfsight import UserError
from selfsight.data.decode import decode
from selfsight.data.images import Images
from selfsight.data.sources.open import open_source
from selfsight.pretraining.config import compose
from selfsight.train.loader import make_loader


def loader_of(*keys: str):
    config = compose(None, ["batch_size=6", "seed=5", *keys]).config
    return make_loader(config, Images(open_source(config.data, "train"), config.data, CPU))


CPU = torch.device("cpu")


@pytest.mark.parametrize("recipe", ["simclr", "byol", "digits", "swav-small"])
def test_of_images_of_one_size(recipe):
    loader = loader_of("data.source=digits", f"views={recipe}")
    rows = loader.indices(0)
    views = selfsight.Views(recipe, seed=5)
    assert len(views) == sum(group.count for group in loader.groups)
    for epoch in (0, 2):
        found = views(loader.images.tensor[rows], epoch=epoch, index=rows)
        for ours, engines in zip(found, loader.batch_of(epoch, rows).views, strict=True):
            assert torch.equal(ours, engines)


def test_of_images_of_any_size(photographs):
    loader = loader_of(f"data.path={photographs}", "views=byol")
    rows = loader.indices(0)
    images = [decode(loader.images.source, int(i)) for i in rows]
    found = selfsight.Views("byol", seed=5)(images, epoch=1, index=rows)
    for ours, engines in zip(found, loader.batch_of(1, rows).views, strict=True):
        assert torch.equal(ours, engines)


def test_arrays_are_as_tensors_and_autocast_changes_nothing():
    pixels = torch.randint(256, (4, 3, 20, 24), dtype=torch.uint8)
    views = selfsight.Views("simclr", size=16)
    expected = views(pixels, index=[7, 1, 2, 9])
    with torch.autocast("cpu", torch.bfloat16):
        found = views(pixels.permute(0, 2, 3, 1).numpy(), index=[7, 1, 2, 9])
    assert all(map(torch.equal, found, expected))
    alone = views(pixels[1:2], index=[1])
    assert all(torch.equal(a[0], b[1]) for a, b in zip(alone, expected, strict=True))


def test_the_size_of_the_largest():
    sizes = [
        view.shape[-1] for view in selfsight.Views("swav", size=112)(torch.zeros(2, 3, 9, 9).byte())
    ]
    assert sizes == [112, 112, *[48] * 6]


@pytest.mark.parametrize(
    ("recipe", "images", "message"),
    [
        ("simcrl", None, "no such preset. Did you mean 'simclr'"),
        ([], None, "give at least one group"),
        ([{"sise": 3}], None, "Unknown key 'sise'"),
        ("simclr", torch.rand(2, 3, 8, 8), r"uint16 \(B, 3, H, W\), found torch.float32"),
        ("simclr", torch.zeros(2, 8, 8, 3).byte(), r"found torch.uint8 \(2, 8, 8, 3\)"),
        ("simclr", [np.zeros((8, 8), np.uint8)], r"a list holds uint8 arrays of shape"),
    ],
)
def test_a_mistake_is_told(recipe, images, message):
    with pytest.raises(UserError, match=message):
        selfsight.Views(recipe)(images)
    with pytest.raises(UserError, match="give one for each"):
        selfsight.Views("simclr")(torch.zeros(2, 3, 8, 8).byte(), index=[1])
