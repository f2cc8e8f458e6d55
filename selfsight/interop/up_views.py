"""UP's transforms as view groups."""

from collections.abc import Callable

from selfsight.config import Tree
from selfsight.interop.up_values import REPLACED, TAKEN, Keys
from selfsight.views.recipe import preset

# Whole recipes for two views -> view groups, read from UP's code.
WHOLE: dict[str, list[Tree]] = {
    "torch_mocov1": preset("moco_v1"),
    "torch_mocov2": preset("moco_v2"),
    "torch_mocov3": [{**group, "crop_scale": [0.2, 1.0]} for group in preset("byol")],
    "torch_simclrv1": [{**preset("simclr")[0], "blur": 1.0}],  # all views are blurred there
}
TWO_VIEWS = ("moco", "moco_vit", "simclr", "simsiam")
RESIZED = 0.875  # of the shorter side, what an evaluation sees here: 224 of 256
_SQUARE = "images are cut to their central square"


def read_views(r: Keys) -> None:
    """`transformer` of the training images -> views, data.mean, data.std."""
    steps = r.each("transformer")
    if not steps:
        return
    d = r.d
    two = {"count": 2} if d.wrapper in TWO_VIEWS else {}
    # the central square, unless there is a crop; the steps find it under views.0
    group = {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], **two}
    d.tree["views"] = {"0": group}
    kinds: list[str] = []
    for step in steps:
        kind = step.kind((*WHOLE, *STEPS), "transform")
        if kind in WHOLE and len(steps) > 1:
            step.refuse("type", "makes the views alone: remove the other transforms, or this one")
        elif kind in WHOLE:
            step.tell("type", TAKEN, "views=[...]", "two views, each of its own")
            step.ignore(f"{kind} reads none", "kwargs")
        elif kind in kinds and kind not in RESIZING:
            step.refuse("type", "stands here twice; keep one")
            step.skip()
        elif kind:
            why, native, read = STEPS[kind]
            step.tell("type", REPLACED if why else TAKEN, native, why)
            read(step.inside("kwargs"))
        kinds.append(kind)
    d.tree["views"] = [dict(one) for one in WHOLE.get(kinds[0], [group])]
    if kinds[0] not in WHOLE and "normalize" not in kinds:
        d.put("data.mean", [0.0, 0.0, 0.0])
        d.put("data.std", [1.0, 1.0, 1.0])


def _crop(k: Keys) -> None:
    k.tell("size", TAKEN, k.d.put("views.0.size", _side(k)))
    k.carry("scale", "views.0.crop_scale", Keys.pair, [0.08, 1.0])
    k.carry("ratio", "views.0.crop_ratio", Keys.pair, [3 / 4, 4 / 3])
    _interpolation(k)


def _side(k: Keys) -> int:
    """The side of a square in pixels; whoever asks tells what became of it."""
    size = k.value("size")
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if type(size) is int and size >= 1:
        return size
    k.refuse("size", "expected the side of a square in pixels")
    return 1


def _interpolation(k: Keys) -> None:
    if k.value("interpolation") == "bilinear":
        k.tell("interpolation", TAKEN)
    else:
        k.tell("interpolation", REPLACED, why="resized bilinearly with antialiasing, always")


def _flip(k: Keys) -> None:
    k.carry("p", "views.0.flip", default=0.5)


def _jitter(k: Keys) -> None:
    k.d.put("views.0.jitter", 1.0)
    for key in ("brightness", "contrast", "saturation", "hue"):
        k.carry(key, f"views.0.{key}", default=0.0)


def _middle(k: Keys) -> None:
    size = _side(k)
    size = min(size, k.d.tree["views"]["0"].get("size", size))
    k.tell("size", REPLACED, k.d.put("views.0.size", size), _SQUARE)
    _interpolation(k)


def _blur(k: Keys) -> None:
    k.d.put("views.0.blur", 1.0)
    k.carry("sigma", "views.0.blur_sigma", Keys.pair, [0.1, 2.0])


def _solarize(k: Keys) -> None:
    k.d.put("views.0.solarize", 1.0)
    by = k.d.put("views.0.solarize_threshold", k.number("threshold", 128) / 256)
    k.tell("threshold", TAKEN, by)


def _normalize(k: Keys) -> None:
    k.carry("mean", "data.mean", Keys.triple, [0.485, 0.456, 0.406])
    k.carry("std", "data.std", Keys.triple, [0.229, 0.224, 0.225])


def _rand_augment(k: Keys) -> None:
    k.carry("n", "views.0.rand_augment", Keys.whole, 2)
    k.carry("m", "views.0.rand_magnitude", default=9.0)
    k.carry("magnitude_std", "views.0.rand_magnitude_std", default=0.0)


def _erase(k: Keys) -> None:
    k.carry("probability", "views.0.erase", default=0.5)
    area = [k.positive("min_area", 0.02), k.positive("max_area", 1 / 3)]
    thin = k.positive("min_aspect", 0.3)
    ratio = [thin, k.positive("max_aspect", 1 / thin)]
    for key, native, found in (("area", "erase_area", area), ("aspect", "erase_ratio", ratio)):
        by = k.d.put(f"views.0.{native}", found)
        k.tell(f"min_{key}", TAKEN, by)
        k.tell(f"max_{key}", TAKEN, by)
    k.only("mode", ("pixel",), "normal noise in each pixel", "only mode=pixel is here")
    for key in ("min_count", "max_count"):
        k.only(key, (1,), "one box", "one box is erased here; remove it")


def read_mixing(k: Keys, kind: str) -> None:
    """mixup and CutMix, as `batch_fn` of the data loader or as the transform of older files."""
    if k.d.phase != "finetune":
        k.refuse("num_classes", "mixed labels are only for fine-tuning; remove the mixing")
        k.skip()
        return
    if kind == "batch_mixup":
        k.d.put("method.cutmix", 0.0)
        k.carry("alpha", "method.mixup", default=1.0)
    else:
        k.carry("mixup_alpha", "method.mixup", default=1.0)
        k.carry("cutmix_alpha", "method.cutmix", default=1.0)
        k.carry("switch_prob", "method.switch_probability", default=0.5)
    k.ignore("the data say how many classes there are", "num_classes")


def _mix(k: Keys) -> None:
    read_mixing(k, "torch_cutmix_mixup")
    k.ignore("images of one batch are mixed", "extra_input", "transform")


_RESIZED = (_SQUARE, "views.0.size", _middle)
RESIZING = {"torch_resize": _RESIZED, "torch_center_crop": _RESIZED}
# type -> why it is not quite the same here, the key that turns it on, and what reads its kwargs
STEPS: dict[str, tuple[str, str, Callable[[Keys], None]]] = {
    "torch_random_resized_crop": ("", "views.0.size", _crop),
    "torch_random_horizontal_flip": ("", "views.0.flip", _flip),
    "torch_color_jitter": ("", "views.0.jitter", _jitter),
    **RESIZING,
    "torch_gaussian_blur": ("", "views.0.blur", _blur),
    "torch_solarize": ("", "views.0.solarize", _solarize),
    "to_tensor": ("", "", lambda k: None),
    "normalize": ("", "data.mean, data.std", _normalize),
    "torch_random_augmentationIncre": ("", "views.0.rand_augment", _rand_augment),
    "torch_randerase": ("", "views.0.erase", _erase),
    "torch_cutmix_mixup": ("mixed inside a batch, not with images from anywhere", "", _mix),
}


def read_test_views(r: Keys) -> None:
    """`transformer` of the test images: an evaluation sees 0.875 of the shorter side, squared."""
    resized = None
    for step in r.each("transformer"):
        kind = step.kind((*RESIZING, "to_tensor", "normalize"), "transform of test images")
        if kind is None:
            continue
        step.tell("type", TAKEN)
        k = step.inside("kwargs")
        if kind == "normalize":
            _same_normalization(k)
        elif kind == "torch_resize":
            resized = _side(k)
            k.tell("size", REPLACED, why="0.875 of the shorter side is seen: 224 of 256")
            _interpolation(k)
        elif kind == "torch_center_crop":
            size = _side(k)
            fits = resized and abs(size / resized - RESIZED) < 0.005
            why = "" if fits else "0.875 of the shorter side is seen"
            k.tell("size", TAKEN if fits else REPLACED, k.d.put("image_size", size), why)
            _interpolation(k)


def _same_normalization(k: Keys) -> None:
    ours = k.d.tree.get("data", {})
    for key in ("mean", "std"):
        found = k.triple(key)
        if found is not None and found != ours.get(key, found):
            k.refuse(key, f"test images are normalised as training images are, {ours[key]}")
        k.tell(key, TAKEN)
