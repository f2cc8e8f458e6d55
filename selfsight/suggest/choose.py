"""From facts to keys: which recipe to build on, and what to change in it, each with its reason.

Pure functions: no image is read, nothing is measured.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from selfsight.suggest.facts import ImageFacts, Machine
from selfsight.views.recipe import preset_for

# Images whose shorter side is at most this are used whole, by an encoder made for small images.
SMALL = 64
SIDES = (96, 128, 224)  # pixels of a view of larger images
# With fewer images in a batch SimCLR has few others to compare an image with, and its accuracy
# falls; BYOL compares an image with itself alone (arXiv 2006.07733, figure 3).
FEWEST_OTHERS = 64
STEPS = 16  # of an epoch: an encoder learns by steps, and few images make few of them
MANY = 50_000  # images from which on a ResNet-50 is worth its cost on a GPU
# Bytes of one view of 224 pixels between forward and backward pass, in fp32: twice the outputs of
# all convolutions. 32 pixels without the stem that reduces them need a fifth of it.
VIEW_BYTES = {"resnet18": 25e6, "resnet50": 90e6}
MEMORY = "what the memory holds"
MEMORY_SHARE = 0.4  # of the device, for the images of a batch
LONG = 2.0  # sides: from this ratio on a central square shows less than half of an image
PHOTOS = "photos/simclr"  # the recipe for images that are not small
HALF = {"layers": [1, 1, 1, 1]}
NARROW = {"layers": [1, 1, 1, 0], "channels": [32, 64, 128, 128], "zero_init_last": False}
BYOL = {"name": "byol", "hidden_dim": 1024, "momentum": 0.99}


@dataclass(frozen=True)
class Choice:
    """A key of the recipe, its value as plain data, and why it has this value."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class Setup:
    """What is trained, without its length.

    Attributes:
        base: the shipped recipe, and why; choices: the keys that are chosen over it.
        method, encoder: their names, for people; side: of a view, in pixels.
        warms_up: the base begins with a warm-up.
    """

    base: str
    why: str
    method: str
    encoder: str
    side: int
    batch: int
    warms_up: bool
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class _Model:
    """An encoder that could be trained.

    Attributes:
        rate: the optimizer's peak rate in the base, for a batch of `batch` images; 0: the base
            scales it itself.
        choice: the key that makes it of the base's encoder, if one is needed.
    """

    base: str
    encoder: str
    side: int
    batch: int
    rate: float
    view_bytes: float
    choice: Choice | None = None


def setups(images: ImageFacts, machine: Machine, largest: int | None = None) -> list[Setup]:
    """What could be trained on these images with this machine, the best first: each takes less time
    for an epoch than the one before.

    Args:
        largest: batch that fits into memory, if it is known.
    """
    small = images.shorter <= SMALL
    models = _small_models(images, machine) if small else _models(images, machine)
    return [_setup(model, images, machine, largest) for model in models]


def _small_models(images: ImageFacts, machine: Machine) -> list[_Model]:
    side = min(SMALL, max(16, 4 * round(images.shorter / 4)))
    whole = VIEW_BYTES["resnet18"] / 5 * (side / 32) ** 2
    cheap = _Model("cifar10-small/simclr", "small ResNet", side, 256, 3e-3, whole / 6)
    if machine.is_gpu:
        return [_Model("cifar10/simclr", "ResNet-18", side, 256, 0, whole), cheap]
    why = "half the channels: this machine would be too slow for more"
    choice = Choice("backbone.options", NARROW, why)
    return [cheap, replace(cheap, encoder="narrow ResNet", choice=choice)]


def _models(images: ImageFacts, machine: Machine) -> list[_Model]:
    sides = [s for s in SIDES if s <= max(images.shorter, SIDES[0])]
    sides = sides if machine.is_gpu else [s for s in sides if s < SIDES[-1]]

    def model(side: int, name: str = "resnet18", choice: Choice | None = None) -> _Model:
        words = {"resnet18": "ResNet-18", "resnet50": "ResNet-50"}[name]
        needed = VIEW_BYTES[name] * (side / 224) ** 2
        batch = 256 if machine.is_gpu else 128
        return _Model(PHOTOS, words, side, batch, 1e-3, needed, choice)

    found = [model(side) for side in reversed(sides)][:2]
    if machine.is_gpu and images.count >= MANY:
        why = f"from {MANY:,} images on, on a GPU, it learns more than a ResNet-18"
        return [model(sides[-1], "resnet50", Choice("backbone.name", "resnet50", why)), *found]
    if not machine.is_gpu:
        why = "half the blocks: this machine would be too slow for more"
        half = model(sides[0], choice=Choice("backbone.options", HALF, why))
        found.append(replace(half, encoder="ResNet-10"))
    return found


def _setup(
    model: _Model, images: ImageFacts, machine: Machine, largest: int | None = None
) -> Setup:
    batch, why = _batch(model, images, machine)
    if largest is not None and batch > largest:
        batch, why = largest, MEMORY
    method = "simclr" if batch >= FEWEST_OTHERS else "byol"
    choices = [*_data(model, images), *([model.choice] if model.choice else [])]
    if method == "byol":
        because = f"it needs no other images in a batch, and here a batch has only {batch}"
        choices.append(Choice("method", BYOL, because))
    choices += _views(model, images, machine)
    choices.append(Choice("batch_size", batch, why))
    if model.rate and batch != _base_batch(model):
        rate = float(f"{model.rate * math.sqrt(batch / _base_batch(model)):.3g}")
        because = f"the recipe's {model.rate:g} for {_base_batch(model)} images, times the root of "
        because += f"{batch} / {_base_batch(model)}"
        choices.append(Choice("optimizer.lr", rate, because))
    words = {"simclr": "SimCLR", "byol": "BYOL"}[method]
    kind = f"images of {'more than ' * (model.base == PHOTOS)}{SMALL} pixels"
    kind += " or fewer" * (model.base != PHOTOS)
    return Setup(
        base=model.base,
        why=f"{words} with a {model.encoder}, for {kind}",
        method=words,
        encoder=model.encoder,
        side=model.side,
        batch=batch,
        warms_up=bool(model.rate),
        choices=tuple(choices),
    )


def _base_batch(model: _Model) -> int:
    """The batch size of the shipped recipe."""
    return 128 if model.base == PHOTOS else 256


def _batch(model: _Model, images: ImageFacts, machine: Machine) -> tuple[int, str]:
    """A power of two: at most half of the images, STEPS an epoch if that leaves enough others to
    compare an image with, and what the memory holds."""
    batch, why = model.batch, "a usual size on a GPU"
    if not machine.is_gpu:
        why = "enough others to compare an image with; more would not be faster on a CPU"
    most = max(_power(images.count // STEPS), min(FEWEST_OTHERS, _power(images.count // 2)))
    if most < batch:
        batch, why = most, f"with {images.count:,} images a larger one would leave too few steps"
    needed = 2 * model.view_bytes * (0.5 if machine.bf16 else 1.0)
    memory = machine.memory * MEMORY_SHARE
    while batch > 8 and batch * needed > memory:
        batch //= 2
        why = MEMORY
    return batch, why


def _power(number: int) -> int:
    """The largest power of two that is not above the number, but at least 2."""
    return 2 ** max(1, number.bit_length() - 1)


def _data(model: _Model, images: ImageFacts) -> list[Choice]:
    choices = []
    if images.channels != 3:
        why = f"the images have {images.channels} bands"
        if images.channels == 1:
            why = "the images are gray: a third of the work, and no colours to change"
        choices.append(Choice("data.channels", images.channels, why))
    if images.deep:
        choices.append(Choice("data.bits", 16, "values have more than 8 bits, and all are kept"))
        why = "the values that the images use, and not all that the file could hold"
        choices.append(Choice("data.range", "auto", why))
    own = model.base != PHOTOS  # whose recipe holds the numbers of another data set
    if own or images.channels != 3 or not images.usual_colours:
        why = "measured on the training images when the run starts"
        if images.channels == 3 and not images.usual_colours:
            why = "these images are not coloured like photographs: measured when the run starts"
        choices += [Choice(f"data.{key}", "auto", why) for key in ("mean", "std")]
    if images.broken:
        share = min(1.0, float(f"{2 * (images.broken + 1) / images.looked:.2g}"))
        why = (
            f"{images.broken:,} of {images.looked:,} images are broken; they are replaced by others"
        )
        choices.append(Choice("data.max_bad", share, why))
    return choices


def _views(model: _Model, images: ImageFacts, machine: Machine) -> list[Choice]:
    small = model.base != PHOTOS
    why = f"the images are {images.shorter} pixels at their shorter sides (median)"
    if not small and not machine.is_gpu:
        why += f"; without a GPU {model.side} are computed in a fraction of the time of 224"
    value: Any = {0: {"size": model.side}}
    if images.channels != 3:
        (group,), _ = preset_for("simclr-small" if small else "simclr", images.channels)
        group |= {"size": model.side, "crop_scale": (0.2, 1.0)}
        value = [{key: number for key, number in group.items() if number != 0}]
        why += "; no changes of colours; flip: 0.0 if a mirrored image means something else"
    choices = [Choice("views", value, why)]
    if images.ratio > LONG:
        why = f"long images (longer / shorter side {images.ratio:.1f}): evaluate all of each, and "
        choices.append(Choice("evaluate.resize", "squash", f"{why}not its central square"))
    return choices
