"""Which images no library resizes, and that the code of the cards resizes as Selfsight does."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfsight.encoders.encoder import _evaluation_view
from selfsight.export import geometry, pictures, preparing
from selfsight.export.subject import Subject

MEAN, STD = [0.3, 0.4, 0.5], [0.25, 0.24, 0.23]


def subject(size, pictures="photographs", resize="crop"):
    about = {"image_size": size, "mean": MEAN, "std": STD, "data": {}, "resize": resize}
    network = SimpleNamespace(image_size=size, resize=resize, channels=3, description=about)
    return Subject(None, network, pictures, [], {})


def seen(image: Image.Image, one: Subject) -> np.ndarray:
    """What an evaluation shows of an image."""
    x = _evaluation_view(np.array(image), one.description)[0].numpy()
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (MEAN, STD))
    return (x - mean) / std


SIZES = st.integers(8, 300) | st.tuples(st.integers(8, 200), st.integers(8, 200))


@given(size=SIZES, kind=st.sampled_from(["small", "photographs"]))
@settings(max_examples=40)
def test_timms_transform_shows_images_of_the_exact_size_alike(size, kind):
    one = subject(size, kind)
    transform = timm.data.create_transform(
        input_size=(3, *one.size),
        interpolation="bilinear",
        crop_pct=geometry.crop_fraction(one),
        crop_mode="center",
        mean=tuple(MEAN),
        std=tuple(STD),
    )
    for image in pictures.draw(geometry.exact_sizes(one)[:3], 3, 8)[:3]:
        np.testing.assert_allclose(transform(image).numpy(), seen(image, one), atol=1e-5)


@pytest.mark.parametrize("size", [96, 112, 128, 192, 224, 256, 518, (64, 160)])
def test_usual_sizes_have_an_exact_size(size):
    found = geometry.exact_sizes(subject(size))
    assert len(found) >= (1 if isinstance(size, tuple) else 4)


def test_where_both_round_otherwise_there_is_none():
    """Of 183 pixels 160 are shown, from the 11th on here and from the 12th on in torchvision."""
    assert geometry.exact_sizes(subject(160)) == []
    assert geometry.crop_fraction(subject(160)) == 0.875


def test_of_224_pixels_it_is_the_usual_256():
    one = subject(224)
    assert geometry.crop_fraction(one) == 0.875
    assert all(min(size) == 256 for size in geometry.exact_sizes(one))


@given(
    size=SIZES,
    image=st.tuples(st.integers(3, 250), st.integers(3, 250)),
    resize=st.sampled_from(["crop", "squash"]),
    way=st.sampled_from(["torch", "numpy", "torchvision"]),
)
@settings(max_examples=40)
def test_the_code_of_a_card_prepares_images_as_an_evaluation_does(size, image, resize, way):
    """With torch and torchvision alike; Pillow rounds a few pixels of photographs otherwise."""
    one = subject(size, resize=resize)
    names: dict = {"np": np, "torch": torch, "Image": Image}
    exec("from torch.nn.functional import interpolate\n", names)
    exec("from torchvision.transforms import v2\n", names)
    exec(getattr(preparing, f"with_{way}")(one), names)
    drawn = pictures.draw([image], 3, 8)[0]
    found, expected = np.asarray(names["prepare"](drawn)), seen(drawn, one)
    levels = 2.01 if way == "numpy" and max(image) > 96 else 0.01
    np.testing.assert_allclose(found, expected, atol=levels / 255 / min(STD))


def test_drawn_images_are_always_the_same():
    a, b = (pictures.draw([(9, 12), (100, 30)], 3, 8) for _ in (1, 2))
    assert all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))
    assert {x.size for x in a} == {(12, 9), (30, 100)}
    deep = pictures.draw([(20, 20)], 2, 16)[0]
    assert (deep.dtype, deep.shape) == (np.uint16, (20, 20, 2))
    assert dataclasses.is_dataclass(Subject)
