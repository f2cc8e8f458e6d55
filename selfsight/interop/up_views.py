"""UP's transforms as groups of views."""

from collections.abc import Callable
from typing import NamedTuple

from selfsight.config import Tree
from selfsight.interop.section import REPLACED, TAKEN, Rows
from selfsight.interop.up_draft import Keys
from selfsight.views.recipe import preset

# Recipes that make two views by themselves -> groups of views, read from UP's code.
WHOLE_RECIPES: dict[str, list[Tree]] = {
    "torch_mocov1": preset("moco_v1"),
    "torch_mocov2": preset("moco_v2"),
    "torch_mocov3": [{**group, "crop_scale": [0.2, 1.0]} for group in preset("byol")],
    "torch_simclrv1": [{**preset("simclr")[0], "blur": 1.0}],  # UP blurs every view
}
TWO_VIEWS = ("moco", "moco_vit", "simclr", "simsiam")
RESIZED = 0.875  # an evaluation sees this fraction of the shorter side: 224 of 256
_SQUARE = "images are cut to their central square"


class Step(NamedTuple):
    """A transform.

    Attributes:
        native: key of the view group that turns it on, and its value (None: one of `rows` does).
        rows: its kwargs; keys below `views.0`.
        special: reads kwargs that are no plain copies.
        why: how Selfsight differs.
    """

    native: str = ""
    on: float | None = None
    rows: Rows = ()
    special: Callable[[Keys], None] | None = None
    why: str = ""


def read_views(r: Keys) -> None:
    """`transformer` of the training images -> views, data.mean, data.std."""
    steps = r.each("transformer")
    if not steps:
        return
    out = r.out
    two = {"count": 2} if out.wrapper in TWO_VIEWS else {}
    # the central square, unless a step crops; the steps write to views.0
    group = {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], **two}
    out.tree["views"] = {"0": group}
    kinds: list[str] = []
    for section in steps:
        kind = section.kind((*WHOLE_RECIPES, *STEPS), "transform")
        if kind in WHOLE_RECIPES and len(steps) > 1:
            why = "makes the views by itself: remove the other transforms, or this one"
            section.refuse("type", why)
        elif kind in WHOLE_RECIPES:
            section.record("type", TAKEN, "views=[...]", "two views, each with its own transforms")
            section.ignore(f"{kind} has no arguments", "kwargs")
        elif kind in kinds and kind not in RESIZING:
            section.refuse("type", "is given twice; keep one")
            section.skip()
        elif kind:
            _step(section, STEPS[kind])
        kinds.append(kind)
    out.tree["views"] = [dict(one) for one in WHOLE_RECIPES.get(kinds[0], [group])]
    if kinds[0] not in WHOLE_RECIPES and "normalize" not in kinds:
        out.put("data.mean", [0.0, 0.0, 0.0])
        out.put("data.std", [1.0, 1.0, 1.0])


def _step(section: Keys, step: Step) -> None:
    section.record("type", REPLACED if step.why else TAKEN, step.native, step.why)
    if step.on is not None:
        section.out.put(step.native, step.on)
    k = section.inside("kwargs")
    if step.special:
        step.special(k)
    k.read(step.rows)


def _side(k: Keys) -> int:
    """The side of a square in pixels; the caller records the key."""
    size = k.value("size")
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if type(size) is int and size >= 1:
        return size
    k.refuse("size", "expected the side of a square in pixels")
    return 1


def _interpolation(k: Keys) -> None:
    same = k.value("interpolation") == "bilinear"
    why = "" if same else "images are always resized bilinearly, with antialiasing"
    k.record("interpolation", TAKEN if same else REPLACED, why=why)


def _crop(k: Keys) -> None:
    k.set("size", "views.0.size", _side(k))
    _interpolation(k)


def _centre(k: Keys) -> None:
    size = _side(k)
    size = min(size, k.out.tree["views"]["0"].get("size", size))
    k.set("size", "views.0.size", size, _SQUARE)
    _interpolation(k)


def _solarize(k: Keys) -> None:
    threshold = k.value("threshold", "number", 128) / 256
    k.set("threshold", "views.0.solarize_threshold", threshold)


def _erase(k: Keys) -> None:
    area = [k.value("min_area", "positive", 0.02), k.value("max_area", "positive", 1 / 3)]
    thin = k.value("min_aspect", "positive", 0.3)
    ratio = [thin, k.value("max_aspect", "positive", 1 / thin)]
    for key, native, found in (("area", "erase_area", area), ("aspect", "erase_ratio", ratio)):
        for end in ("min", "max"):
            k.set(f"{end}_{key}", f"views.0.{native}", found)


MIXING = ("ignore", "the number of classes is known from the data", "num_classes")
# type -> its kwargs
MIXERS: dict[str, Rows] = {
    "batch_mixup": (("copy", "alpha", "method.mixup", "number", 1.0), MIXING),
    "batch_cutmixup": (
        ("copy", "mixup_alpha", "method.mixup", "number", 1.0),
        ("copy", "cutmix_alpha", "method.cutmix", "number", 1.0),
        ("copy", "switch_prob", "method.switch_probability", "number", 0.5),
        MIXING,
    ),
}


def read_mixing(k: Keys, kind: str) -> None:
    """mixup and CutMix: `batch_fn` of the data loader, or the transform of older files."""
    if k.out.phase != "finetune":
        k.refuse("num_classes", "mixing labels is only for fine-tuning; remove it")
        k.skip()
        return
    if kind == "batch_mixup":
        k.out.put("method.cutmix", 0.0)
    k.read(MIXERS[kind])


def _mix(k: Keys) -> None:
    read_mixing(k, "batch_cutmixup")
    k.ignore("images of the same batch are mixed", "extra_input", "transform")


_COLOURS = tuple(
    ("copy", key, f"views.0.{key}", "number", 0.0)
    for key in ("brightness", "contrast", "saturation", "hue")
)
RESIZING = dict.fromkeys(
    ("torch_resize", "torch_center_crop"), Step("views.0.size", special=_centre, why=_SQUARE)
)
STEPS: dict[str, Step] = {
    "torch_random_resized_crop": Step(
        "views.0.size",
        rows=(
            ("copy", "scale", "views.0.crop_scale", "pair", [0.08, 1.0]),
            ("copy", "ratio", "views.0.crop_ratio", "pair", [3 / 4, 4 / 3]),
        ),
        special=_crop,
    ),
    "torch_random_horizontal_flip": Step(
        "views.0.flip", rows=(("copy", "p", "views.0.flip", "number", 0.5),)
    ),
    "torch_color_jitter": Step("views.0.jitter", 1.0, _COLOURS),
    **RESIZING,
    "torch_gaussian_blur": Step(
        "views.0.blur", 1.0, (("copy", "sigma", "views.0.blur_sigma", "pair", [0.1, 2.0]),)
    ),
    "torch_solarize": Step("views.0.solarize", 1.0, special=_solarize),
    "to_tensor": Step(),
    "normalize": Step(
        "data.mean, data.std",
        rows=(
            ("copy", "mean", "data.mean", "triple", [0.485, 0.456, 0.406]),
            ("copy", "std", "data.std", "triple", [0.229, 0.224, 0.225]),
        ),
    ),
    "torch_random_augmentationIncre": Step(
        "views.0.rand_augment",
        rows=(
            ("copy", "n", "views.0.rand_augment", "whole", 2),
            ("copy", "m", "views.0.rand_magnitude", "number", 9.0),
            ("copy", "magnitude_std", "views.0.rand_magnitude_std", "number", 0.0),
        ),
    ),
    "torch_randerase": Step(
        "views.0.erase",
        rows=(
            ("copy", "probability", "views.0.erase", "number", 0.5),
            ("fixed", "mode", ("pixel",), "each pixel of the box becomes normal noise"),
            ("fixed", "min_count", (1,), "one box is erased"),
            ("fixed", "max_count", (1,), "one box is erased"),
        ),
        special=_erase,
    ),
    "torch_cutmix_mixup": Step(
        special=_mix, why="images of one batch are mixed; UP drew images from the whole data set"
    ),
}


def read_test_views(r: Keys) -> None:
    """`transformer` of the test images: an evaluation sees 0.875 of the shorter side."""
    resized = None
    for step in r.each("transformer"):
        kind = step.kind((*RESIZING, "to_tensor", "normalize"), "transform of test images")
        if kind is None:
            continue
        step.record("type", TAKEN)
        k = step.inside("kwargs")
        if kind == "normalize":
            _same_normalization(k)
        elif kind == "torch_resize":
            resized = _side(k)
            why = "a test always uses 0.875 of the shorter side: 224 of 256"
            k.record("size", REPLACED, why=why)
            _interpolation(k)
        elif kind == "torch_center_crop":
            size = _side(k)
            fits = resized and abs(size / resized - RESIZED) < 0.005
            why = "" if fits else "a test always uses 0.875 of the shorter side"
            k.set("size", "image_size", size, why)
            _interpolation(k)


def _same_normalization(k: Keys) -> None:
    train = k.out.tree.get("data", {})
    for key in ("mean", "std"):
        found = k.value(key, "triple")
        if found is not None and found != train.get(key, found):
            k.refuse(key, f"must be as for training images: {train[key]}")
        k.record(key, TAKEN)
