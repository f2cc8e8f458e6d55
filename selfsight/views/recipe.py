"""Recipes of views: groups of views, each with a size and the strengths of its augmentations."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, model_validator
from pydantic.functional_validators import WrapValidator

from selfsight.batch import sides
from selfsight.config import Config, Tree, added, near
from selfsight.errors import UserError
from selfsight.views.ops.randaugment import MOST_OPS, STRONGEST

Probability = Field(0.0, ge=0, le=1)
Strength = Field(0.0, ge=0)
LARGEST_VIEW = 4096  # pixels: more than 16 views of this side are in memory at a time


def _size(value: Any, handler: ValidatorFunctionWrapHandler) -> int | tuple[int, int]:
    """A side or two; two equal ones are one, so that a square has one way to be written."""
    try:
        found = handler(value)
    except ValidationError:
        raise ValueError(
            f"give the side in pixels, or [height, width], each from 1 to {LARGEST_VIEW}"
        ) from None
    return found[0] if isinstance(found, tuple) and found[0] == found[1] else found


Side = Annotated[int, Field(ge=1, le=LARGEST_VIEW)]
# the side of a square in pixels, or (height, width)
Size = Annotated[Side | tuple[Side, Side], WrapValidator(_size)]


class ViewGroup(Config):
    """`count` views of each image with the same settings; steps run in the order of the fields."""

    count: int = Field(1, ge=1)
    size: Size = 224  # side of the view in pixels, or [height, width]
    crop_scale: tuple[float, float] = (0.08, 1.0)  # area of the crop, fraction of the image's
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)  # width / height of the crop in the image
    flip: float = Probability  # mirrored left to right
    # of a turn by 90, 180 or 270 degrees, all as likely
    rotate90: float = added(0.0, ge=0, le=1)
    # RandAugment, saturation, hue and grayscale need red, green and blue (data.channels=3)
    rand_augment: int = Field(0, ge=0, le=MOST_OPS)  # operations, each applied with probability 1/2
    rand_magnitude: float = Field(9.0, ge=0, le=STRONGEST)  # mean strength of all operations
    rand_magnitude_std: float = Field(0.5, ge=0)  # its deviation over images and operations
    affine: float = Probability  # of rotation, translation, zoom and shear together
    rotation: float = Strength  # degrees, uniform within +/- this
    translation: float = (
        Strength  # fraction of the side, uniform within +/- this, in each direction
    )
    zoom: tuple[float, float] = (1.0, 1.0)  # factor, log-uniform
    shear: float = Strength  # degrees along x, uniform within +/- this
    jitter: float = Probability  # of the next four together, in random order
    brightness: float = Strength  # factor within 1 +/- this, not below 0
    contrast: float = Strength  # about the mean luma; of other than three channels, their mean
    saturation: float = Strength
    hue: float = Field(0.0, ge=0, le=0.5)  # shift within +/- this fraction of the colour circle
    grayscale: float = Probability
    # every channel times a factor of its own, uniform within 1 +/- this
    gain: float = added(0.0, ge=0, le=1)
    blur: float = Probability
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # standard deviation in pixels, uniform
    # width in pixels, rounded up to odd (0: a tenth of the shorter side)
    blur_kernel: int = Field(0, ge=0)
    solarize: float = Probability
    solarize_threshold: float = Field(0.5, ge=0, le=1)
    noise: float = added(0.0, ge=0)  # standard deviation of added normal noise; pixels are 0 to 1
    erase: float = Probability  # a box is filled with normal noise, after the normalisation
    erase_area: tuple[float, float] = (0.02, 1 / 3)  # fraction of the view's, uniform
    erase_ratio: tuple[float, float] = (0.3, 10 / 3)  # width / height of the box

    @model_validator(mode="after")
    def _ranges(self) -> "ViewGroup":
        ranges = ("crop_scale", "crop_ratio", "zoom", "blur_sigma", "erase_area", "erase_ratio")
        for name in ranges:
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}=[{low}, {high}]: must be [low, high], 0 < low <= high")
        for name in ("crop_scale", "erase_area"):
            if getattr(self, name)[1] > 1:
                raise ValueError(f"{name}=[..., {getattr(self, name)[1]}] is more than 1")
        if self.rotate90 and not isinstance(self.size, int):
            raise ValueError(f"rotate90={self.rotate90}: only of square views; set rotate90=0")
        return self

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return sides(self.size)

    @property
    def kernel(self) -> int:
        """Width of the blur: about a tenth of the shorter side, odd, at least 3."""
        return max(3, self.blur_kernel or min(self.sides) // 10) | 1

    @property
    def needs_rgb(self) -> str | None:
        """The key of a step that is defined for red, green and blue alone; None without one."""
        steps = {
            "saturation": self.jitter and self.saturation,
            "hue": self.jitter and self.hue,
            "grayscale": self.grayscale,
            "rand_augment": self.rand_augment,
        }
        return next((key for key, strength in steps.items() if strength), None)


def check_channels(groups: Sequence[ViewGroup], channels: int) -> None:
    """Raises: ValueError, one line, for a step that images of so many channels do not have."""
    for number, group in enumerate(groups):
        key = group.needs_rgb
        if channels != 3 and key is not None:
            raise ValueError(
                f"views.{number}.{key}={getattr(group, key)}: needs red, green and blue, and the "
                f"images have data.channels={channels}; set views={_without_rgb(channels)}, or "
                f"views.{number}.{key}=0"
            )


def _without_rgb(channels: int) -> str:
    return "gray" if channels == 1 else "multispectral"


def _jitter(b: float, c: float, s: float, h: float, p: float = 0.8) -> Tree:
    return {"jitter": p, "brightness": b, "contrast": c, "saturation": s, "hue": h}


_PHOTO = {"size": 224, "flip": 0.5, "grayscale": 0.2}
_SMALL = {"size": 32, "flip": 0.5, "grayscale": 0.2}
_WEAK = _jitter(0.4, 0.4, 0.4, 0.1)  # SimCLR's jitter at half its strength
_STRONG = _jitter(0.8, 0.8, 0.8, 0.2)  # at its full strength
_BYOL = {**_PHOTO, **_jitter(0.4, 0.4, 0.2, 0.1)}
_BYOL_SMALL = {**_SMALL, **_jitter(0.4, 0.4, 0.2, 0.1)}
_MOCO_V1 = {"count": 2, "crop_scale": (0.2, 1.0), **_jitter(0.4, 0.4, 0.4, 0.4, p=1.0)}
_MOCO_V2 = {"count": 2, "crop_scale": (0.2, 1.0), **_WEAK}
_LEJEPA = {**_BYOL, "blur": 0.5, "solarize": 0.2}
_BANDS = {"count": 2, "crop_scale": (0.2, 1.0), "flip": 0.5, "rotate90": 0.75}
_FINETUNE = {"flip": 0.5, "rand_augment": 2, "erase": 0.25}


def _dino(
    large: tuple[float, float], count: int, size: int, small: tuple[float, float]
) -> list[Tree]:
    """Two large views with BYOL's colours, and `count` small ones."""
    return [
        {**_BYOL, "crop_scale": large, "blur": 1.0},
        {**_BYOL, "crop_scale": large, "blur": 0.1, "solarize": 0.2},
        {**_BYOL, "count": count, "size": size, "crop_scale": small, "blur": 0.5},
    ]


# Name -> groups. The small variants are for images of 32 px: no blur and weaker colour jitter, as
# in CIFAR benchmarks.
PRESETS: dict[str, list[Tree]] = {
    # SimCLR, appendix A (arXiv 2002.05709): jitter of strength 1, blur on half of the views.
    "simclr": [{"count": 2, **_PHOTO, **_STRONG, "blur": 0.5}],
    "simclr-small": [{"count": 2, **_SMALL, **_WEAK}],
    # MoCo v2, section 3 (arXiv 2003.04297): crops from 0.2, weaker jitter, blur on half of the
    # views.
    "moco_v2": [{**_PHOTO, **_MOCO_V2, "blur": 0.5}],
    "moco_v2-small": [{**_SMALL, **_MOCO_V2}],
    # BYOL, table 6 (arXiv 2006.07733): the first view is always blurred, the second sometimes
    # blurred and sometimes solarized.
    "byol": [{**_BYOL, "blur": 1.0}, {**_BYOL, "blur": 0.1, "solarize": 0.2}],
    "byol-small": [_BYOL_SMALL, {**_BYOL_SMALL, "solarize": 0.2}],
    # MoCo, section 3.1 (arXiv 1911.05722): jitter on all views, no blur.
    "moco_v1": [{**_PHOTO, **_MOCO_V1}],
    "moco_v1-small": [{**_SMALL, **_MOCO_V1}],
    # VICReg, appendix C (arXiv 2105.04906): BYOL's, with the same probabilities for both views.
    "vicreg": [{**_BYOL, "count": 2, "blur": 0.5, "solarize": 0.1}],
    "vicreg-small": [{**_BYOL_SMALL, "count": 2, "crop_scale": (0.2, 1.0), "solarize": 0.1}],
    # SwAV, appendix (arXiv 2006.09882): two large and six small crops. At 32 px two are enough.
    "swav": [
        {"count": 2, **_PHOTO, "crop_scale": (0.14, 1.0), **_STRONG, "blur": 0.5},
        {**_PHOTO, "count": 6, "size": 96, "crop_scale": (0.05, 0.14), **_STRONG, "blur": 0.5},
    ],
    "swav-small": [{"count": 2, **_SMALL, **_WEAK}],
    # DINO, section 3.2 and its code (arXiv 2104.14294): BYOL's colours, two large, eight small.
    "dino": _dino((0.4, 1.0), 8, 96, (0.05, 0.4)),
    "dino-small": [
        {**_BYOL_SMALL, "crop_scale": (0.2, 1.0)},
        {**_BYOL_SMALL, "crop_scale": (0.2, 1.0), "solarize": 0.2},
    ],
    # iBOT, section 4 and its code (arXiv 2111.07832): DINO's, with ten small crops.
    "ibot": _dino((0.25, 1.0), 10, 96, (0.05, 0.25)),
    "ibot-small": [
        {**_BYOL_SMALL, "crop_scale": (0.25, 1.0)},
        {**_BYOL_SMALL, "crop_scale": (0.25, 1.0), "solarize": 0.2},
    ],
    # DINOv2, its code (arXiv 2304.07193): DINO's with other crops. The small ones have 98 px there,
    # seven patches of 14; here six of 16.
    "dinov2": _dino((0.32, 1.0), 8, 96, (0.05, 0.32)),
    "dinov2-small": [
        {**_BYOL_SMALL, "crop_scale": (0.32, 1.0)},
        {**_BYOL_SMALL, "crop_scale": (0.32, 1.0), "solarize": 0.2},
    ],
    # LeJEPA, the code of arXiv 2511.08544: two large, six small, all with the same colours. The
    # small ones have 98 px, seven patches of 14.
    "lejepa": [
        {"count": 2, **_LEJEPA, "crop_scale": (0.3, 1.0)},
        {"count": 6, **_LEJEPA, "size": 98, "crop_scale": (0.05, 0.3)},
    ],
    "lejepa-small": [{**_BYOL_SMALL, "count": 4, "solarize": 0.1}],
    # MAE, section 3 (arXiv 2111.06377): crop and flip.
    "mae": [{"size": 224, "crop_scale": (0.2, 1.0), "flip": 0.5}],
    "mae-small": [{"size": 32, "crop_scale": (0.2, 1.0), "flip": 0.5}],
    # SimMIM, section 4.1 (arXiv 2111.09886).
    "simmim": [{"size": 192, "crop_scale": (0.67, 1.0), "flip": 0.5}],
    "simmim-small": [{"size": 32, "crop_scale": (0.67, 1.0), "flip": 0.5}],
    # I-JEPA, appendix A (arXiv 2301.08243): a crop without any other augmentation.
    "ijepa": [{"size": 224, "crop_scale": (0.3, 1.0)}],
    "ijepa-small": [{"size": 32, "crop_scale": (0.3, 1.0)}],
    # Distillation: teacher and student see the same crops (arXiv 2106.05237), mildly coloured.
    "distill": [{"size": 224, "crop_scale": (0.25, 1.0), "flip": 0.5, **_WEAK}],
    "distill-small": [{"size": 32, "crop_scale": (0.35, 1.0), "flip": 0.5, **_WEAK}],
    # Training a classifier, as torchvision and timm do.
    "supervised": [{"size": 224, "flip": 0.5}],
    "supervised-small": [{"size": 32, "crop_scale": (0.35, 1.0), "flip": 0.5}],
    # Fine-tuning: MAE, table 9 (arXiv 2111.06377), RandAugment (9, 0.5); erasing as in its code.
    "finetune": [{"size": 224, **_FINETUNE}],
    "finetune-small": [{"size": 32, "crop_scale": (0.35, 1.0), **_FINETUNE}],
    # Images of one channel: SimCLR's without colour.
    "gray": [{"count": 2, "size": 224, "flip": 0.5, **_jitter(0.8, 0.8, 0, 0), "blur": 0.5}],
    "gray-small": [{"count": 2, "size": 32, "flip": 0.5, **_jitter(0.4, 0.4, 0, 0)}],
    # Several bands, seen from above: all four directions are as likely, and bands vary in strength
    # by themselves.
    "multispectral": [{"size": 224, **_BANDS, "gain": 0.4, "blur": 0.5}],
    "multispectral-small": [{"size": 32, **_BANDS, "gain": 0.2}],
    # Handwritten digits: the whole digit, never mirrored, since a mirrored digit is another sign.
    # Blur and contrast change the width of the stroke, which depends on the writer, not the digit.
    "digits": [
        {
            "count": 2,
            "size": 16,
            "crop_scale": (1.0, 1.0),
            "crop_ratio": (1.0, 1.0),
            "affine": 1.0,
            "rotation": 15.0,
            "translation": 0.08,
            "zoom": (0.8, 1.2),
            "shear": 15.0,
            **_jitter(0.4, 0.4, 0, 0, p=1.0),
            "blur": 0.5,
            "blur_sigma": (0.3, 1.5),
            "blur_kernel": 5,
        }
    ],
}


def preset(name: str) -> list[Tree]:
    """The groups of a preset, as plain data."""
    if name not in PRESETS:
        hint = near(name, PRESETS)
        raise UserError(f"views={name}: no such preset.{hint} Known: {', '.join(PRESETS)}")
    return [dict(group) for group in PRESETS[name]]


def preset_for(name: str, channels: int) -> tuple[list[Tree], str]:
    """The groups of a preset for images of so many channels, and what they are called.

    If the preset needs red, green and blue and the images have others, they are those of `gray` or
    `multispectral`, in the preset's number, sizes and areas.
    """
    groups = preset(name)
    if channels == 3 or not any(ViewGroup(**group).needs_rgb for group in groups):
        return groups, name
    other = _without_rgb(channels) + ("-small" if name.endswith("-small") else "")
    kept = ({"count": 1, "crop_scale": (0.08, 1.0), **group} for group in groups)
    keys = ("count", "size", "crop_scale")
    found = [{**preset(other)[0], **{key: group[key] for key in keys}} for group in kept]
    return found, f"{other}, number and sizes of {name}"
