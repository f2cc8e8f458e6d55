"""UP's transforms as view groups."""

from collections.abc import Callable
from typing import Any

from tacit.config import Tree
from tacit.dialects.report import Reader
from tacit.dialects.up_values import (
    NOTHING,
    REPLACED,
    TAKEN,
    Draft,
    anything,
    carry,
    choose,
    ignore,
    number,
    only,
    pair,
    positive,
    three,
    value,
    whole,
)
from tacit.views.recipe import preset

_V3 = [{**group, "crop_scale": [0.2, 1.0]} for group in preset("byol")]
# Whole recipes for two views -> view groups, read from UP's code.
WHOLE: dict[str, list[Tree]] = {
    "torch_mocov1": preset("moco_v1"),
    "torch_mocov2": preset("moco_v2"),
    "torch_mocov3": _V3,
    "torch_simclrv1": [{**preset("simclr")[0], "blur": 1.0}],  # all views are blurred there
}
RESIZED = 0.875  # of the shorter side, what an evaluation sees here: 224 of 256
_SQUARE = "images are cut to their central square"
NO_VIEW: Tree = {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0]}  # the central square


def read_views(r: Reader, d: Draft, two: bool) -> None:
    """`transformer` of the training images -> views, data.mean, data.std.

    Args:
        two: the method compares two views of an image.
    """
    steps = r.each("transformer")
    if not steps:
        return
    group: Tree = {**NO_VIEW, **({"count": 2} if two else {})}
    groups: list[Tree] = []
    normalized = False
    for step in steps:
        kind = choose(step, "type", (*WHOLE, *STEPS), "transform")
        if kind is None:
            step.inside("kwargs")
            _skip(step)
        elif kind in WHOLE:
            groups = [_plain(one) for one in WHOLE[kind]]
            step.tell("type", TAKEN, "views=[...]", "two views, each of its own")
            ignore(step, f"{kind} reads none", "kwargs")
            normalized = True
        else:
            normalized |= kind == "normalize"
            _single(step, kind, group, d)
    if not groups:
        groups = [group]
    if not normalized:
        d.put("data.mean", [0.0, 0.0, 0.0])
        d.put("data.std", [1.0, 1.0, 1.0])
    d.put("views", groups)


def _plain(group: Tree) -> Tree:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in group.items()}


def _skip(step: Reader) -> None:
    """The arguments of a transform that was refused need no story of their own."""
    if "kwargs" in step:
        step.tell("kwargs", NOTHING, why="of a transform that is refused")


def _single(step: Reader, kind: str, group: Tree, d: Draft) -> None:
    why, does = STEPS[kind]
    step.tell("type", REPLACED if why else TAKEN, _native(kind), why)
    view = Draft(d.phase, tree=group)
    does(step.inside("kwargs"), view, d)


def _native(kind: str) -> str:
    return {"to_tensor": "", "normalize": "data.mean, data.std"}.get(kind, "views")


def _crop(r: Reader, view: Draft, d: Draft) -> None:
    r.tell("size", TAKEN, f"views.0.{view.put('size', _side(r, 224))}")
    carry(r, view, "scale", "crop_scale", pair, [0.08, 1.0])
    carry(r, view, "ratio", "crop_ratio", pair, [3 / 4, 4 / 3])
    _interpolation(r)


def _side(r: Reader, default: int | None = None) -> int | None:
    """The side of a square in pixels; whoever asks tells what became of it."""
    size = anything(r, "size", default)
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if isinstance(size, int) and size >= 1:
        return size
    r.refuse("size", "expected the side of a square in pixels")
    return default


def _interpolation(r: Reader) -> None:
    if value(r, "interpolation") == "bilinear":
        r.tell("interpolation", TAKEN)
    else:
        r.tell("interpolation", REPLACED, why="resized bilinearly with antialiasing, always")


def _flip(r: Reader, view: Draft, d: Draft) -> None:
    carry(r, view, "p", "flip", number, 0.5)


def _jitter(r: Reader, view: Draft, d: Draft) -> None:
    view.put("jitter", 1.0)
    for key in ("brightness", "contrast", "saturation", "hue"):
        carry(r, view, key, key, number, 0.0)


def _middle(r: Reader, view: Draft, d: Draft) -> None:
    size = _side(r, 224)
    by = view.put("size", min(size, view.tree.get("size", size)))
    r.tell("size", REPLACED, f"views.0.{by}", _SQUARE)
    _interpolation(r)


def _blur(r: Reader, view: Draft, d: Draft) -> None:
    view.put("blur", 1.0)
    carry(r, view, "sigma", "blur_sigma", pair, [0.1, 2.0])


def _solarize(r: Reader, view: Draft, d: Draft) -> None:
    view.put("solarize", 1.0)
    threshold = number(r, "threshold", 128)
    r.tell("threshold", TAKEN, f"views.0.{view.put('solarize_threshold', threshold / 256)}")


def _nothing(r: Reader, view: Draft, d: Draft) -> None:
    pass


def _normalize(r: Reader, view: Draft, d: Draft) -> None:
    carry(r, d, "mean", "data.mean", three, [0.485, 0.456, 0.406])
    carry(r, d, "std", "data.std", three, [0.229, 0.224, 0.225])


def _rand_augment(r: Reader, view: Draft, d: Draft) -> None:
    carry(r, view, "n", "rand_augment", whole, 2)
    carry(r, view, "m", "rand_magnitude", number, 9.0)
    carry(r, view, "magnitude_std", "rand_magnitude_std", number, 0.0)


def _erase(r: Reader, view: Draft, d: Draft) -> None:
    carry(r, view, "probability", "erase", number, 0.5)
    least = carry(r, view, "min_area", "erase_area", positive)
    most = carry(r, view, "max_area", "erase_area", positive)
    if least or most:
        view.put("erase_area", [least or 0.02, most or 1 / 3])
    thin = carry(r, view, "min_aspect", "erase_ratio", positive)
    wide = carry(r, view, "max_aspect", "erase_ratio", positive)
    if thin or wide:
        view.put("erase_ratio", [thin or 0.3, wide or 1 / (thin or 0.3)])
    only(r, "mode", ("pixel",), "normal noise in each pixel", "only mode=pixel is here")
    only(r, "min_count", (1,), "one box", "one box is erased here; remove it")
    only(r, "max_count", (1,), "one box", "one box is erased here; remove it")


def read_mixing(r: Reader, d: Draft, kind: str) -> None:
    """mixup and CutMix, as `batch_fn` of the data loader or as the transform of older files."""
    if d.phase != "finetune":
        r.refuse("num_classes", "mixed labels are only for fine-tuning; remove the mixing")
        ignore(r, "refused", "mixup_alpha", "cutmix_alpha", "switch_prob", "alpha")
        return
    names = {"mixup_alpha": "mixup", "cutmix_alpha": "cutmix", "switch_prob": "switch_probability"}
    if kind == "batch_mixup":
        names = {"alpha": "mixup"}
        d.put("method.cutmix", 0.0)
    defaults = {"switch_prob": 0.5}
    for key, native in names.items():
        carry(r, d, key, f"method.{native}", number, defaults.get(key, 1.0))
    ignore(r, "the data say how many classes there are", "num_classes")


def _mix(r: Reader, view: Draft, d: Draft) -> None:
    read_mixing(r, d, "torch_cutmix_mixup")
    ignore(r, "images of one batch are mixed", "extra_input", "transform")


Step = Callable[[Reader, Draft, Draft], None]
# type -> why it is not quite the same here, and what reads its kwargs
STEPS: dict[str, tuple[str, Step]] = {
    "torch_random_resized_crop": ("", _crop),
    "torch_random_horizontal_flip": ("", _flip),
    "torch_color_jitter": ("", _jitter),
    "torch_center_crop": (_SQUARE, _middle),
    "torch_resize": (_SQUARE, _middle),
    "torch_gaussian_blur": ("", _blur),
    "torch_solarize": ("", _solarize),
    "to_tensor": ("", _nothing),
    "normalize": ("", _normalize),
    "torch_random_augmentationIncre": ("", _rand_augment),
    "torch_randerase": ("", _erase),
    "torch_cutmix_mixup": ("mixed inside a batch, not with images from anywhere", _mix),
}
_TESTED = ("torch_resize", "torch_center_crop", "to_tensor", "normalize")


def read_test_views(r: Reader, d: Draft) -> None:
    """`transformer` of the test images: an evaluation sees 0.875 of the shorter side, squared."""
    sizes: dict[str, Any] = {}
    for step in r.each("transformer"):
        kind = choose(step, "type", _TESTED, "transform of test images")
        if kind is None:
            _skip(step)
            continue
        inner = step.inside("kwargs")
        step.tell("type", TAKEN)
        if kind == "normalize":
            _same_normalization(inner, d)
        elif kind != "to_tensor":
            sizes[kind] = _test_size(inner, kind, sizes, d)


def _test_size(r: Reader, kind: str, sizes: dict[str, Any], d: Draft) -> Any:
    size = _side(r)
    if kind == "torch_resize":
        r.tell("size", REPLACED, why="0.875 of the shorter side is seen: 224 of 256")
    elif size:
        fits = sizes.get("torch_resize") and abs(size / sizes["torch_resize"] - RESIZED) < 0.005
        why = "" if fits else "0.875 of the shorter side is seen"
        r.tell("size", TAKEN if fits else REPLACED, d.put("image_size", size), why)
    _interpolation(r)
    return size


def _same_normalization(r: Reader, d: Draft) -> None:
    ours = d.tree.get("data", {})
    for key in ("mean", "std"):
        found = three(r, key)
        if found is not None and found != ours.get(key, found):
            r.refuse(key, f"test images are normalised as training images are, {ours[key]}")
        r.tell(key, TAKEN)
