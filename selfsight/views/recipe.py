"""Recipes of views: groups of views, each with a size and the strengths of its augmentations."""

from pydantic import Field, model_validator

from selfsight.config import Config, Tree, near
from selfsight.errors import UserError
from selfsight.views.ops.randaugment import MOST_OPS, STRONGEST

Probability = Field(0.0, ge=0, le=1)
Strength = Field(0.0, ge=0)
LARGEST_VIEW = 4096  # pixels: more than 16 views of this side are in memory at a time


class ViewGroup(Config):
    """`count` views of each image with the same settings; steps run in the order of the fields."""

    count: int = Field(1, ge=1)
    size: int = Field(224, ge=1, le=LARGEST_VIEW)  # side of the view in pixels
    crop_scale: tuple[float, float] = (0.08, 1.0)  # area of the crop, fraction of the image's
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)  # width / height of the crop
    flip: float = Probability  # mirrored left to right
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
    contrast: float = Strength
    saturation: float = Strength
    hue: float = Field(0.0, ge=0, le=0.5)  # shift within +/- this fraction of the colour circle
    grayscale: float = Probability
    blur: float = Probability
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # standard deviation in pixels, uniform
    blur_kernel: int = Field(0, ge=0)  # width in pixels, rounded up to odd (0: size / 10)
    solarize: float = Probability
    solarize_threshold: float = Field(0.5, ge=0, le=1)
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
        return self

    @property
    def kernel(self) -> int:
        """Width of the blur: about a tenth of the side, odd, at least 3."""
        return max(3, self.blur_kernel or self.size // 10) | 1


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
