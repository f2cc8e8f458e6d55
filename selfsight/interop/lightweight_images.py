"""Lightweight-SSL's keys of the images: which they are, and what is made of them."""

from pathlib import Path

from selfsight.config import Tree
from selfsight.data.source import TRAIN_NAMES
from selfsight.interop.lightweight_file import File
from selfsight.interop.lightweight_tables import AUGMENTATION, DATA_SETS, KINDS, DataSet
from selfsight.interop.report import Fate, Reader, put


def images(c: File) -> int:
    """Where the images are and what is made of them; returns the side of the views."""
    name = c.choice("dataset", DATA_SETS)
    known = DATA_SETS[name or "imagenet"]
    custom = c.reader.inside("custom_ds_cfg")
    c.give(c.reader, "dataset", "data.source", known.source)
    put(c.tree, "data.mean", list(known.mean))
    put(c.tree, "data.std", list(known.std))
    _where(c, name, known, custom)
    group: Tree = {**AUGMENTATION, "size": known.size}
    if name == "custom":
        _custom(c, custom, group)
    else:
        c.ignore(custom, custom.tree, "is for dataset=custom")
    _crops(c, group)
    return group["size"]


def _where(c: File, name: str | None, known: DataSet, custom: Reader) -> None:
    """data_dir: a path, or a mapping with train and test; or custom_ds_cfg's own."""
    place = c.reader.tree.get("data_dir")
    torchvision = known.source.startswith("torchvision:")
    own = [key for key in ("train", "test") if name == "custom" and key in custom]
    if place:
        for key in own:
            custom.refuse(key, "data_dir says where the images are; remove one of the two")
    if isinstance(place, dict) and place:
        return _two_places(c, c.reader.inside("data_dir"), torchvision)
    place = c.value(c.reader, "data_dir", str, dict)
    if place:
        path, why = Path(place), ""
        if not torchvision and path.name.lower() in TRAIN_NAMES:
            path = path.parent
            why = "train and the test images beside it; there, evaluation read train as well"
        return c.give(c.reader, "data_dir", "data.path", str(path), why)
    if own:
        c.ignore(c.reader, ["data_dir"], "custom_ds_cfg names the folders")
        return _two_places(c, custom, torchvision)
    if known.path:
        why = "the usual place, as it is empty"
        return c.give(c.reader, "data_dir", "data.path", known.path, why)
    return c.reader.refuse("data_dir", f"missing key; where the images of {name} are")


def _two_places(c: File, both: Reader, torchvision: bool) -> None:
    train, test = c.same(both, "train", "data.path", str), c.value(both, "test", str)
    if not train:
        both.refuse("train", "missing key; the folder of the training images")
    elif not torchvision and test:
        c.give(both, "test", "data.test_path", test)
    elif test == train:
        both.tell("test", Fate.REPLACED, f"data.path={train}", "one folder holds both splits")
    elif test:
        both.refuse("test", "torchvision keeps both splits in one folder; name it twice")


def _custom(c: File, cfg: Reader, group: Tree) -> None:
    """custom_ds_cfg: pixels and augmentations of a data set of one's own."""
    for key in ("mean", "std"):
        value = c.value(cfg, key, list, tuple)
        if value is not None:
            c.give(cfg, key, f"data.{key}", list(value))
    limits = zip(("min_scale", "max_scale"), group["crop_scale"], strict=True)
    group["crop_scale"] = [c.value(cfg, key, float, default=usual) for key, usual in limits]
    for key in ("min_scale", "max_scale"):
        cfg.tell(key, Fate.TAKEN, f"views.0.crop_scale={group['crop_scale']}")
    for key, (native, kind) in KINDS.items():
        value = c.value(cfg, key, kind)
        if value is None:
            continue
        group[native] = value
        if c.pretraining or key in ("crop_size", "horizontal_flip_prob"):
            cfg.tell(key, Fate.TAKEN, f"views.0.{native}={value}")
        else:
            c.ignore(cfg, [key], "a classifier is trained on crops and flips")


def _crops(c: File, group: Tree) -> None:
    """aug_crop_lst: so many crops of each view recipe; there is one recipe."""
    counts = c.value(c.reader, "aug_crop_lst", list, default=[2] if c.pretraining else [1])
    if not counts or any(type(count) is not int or count < 1 for count in counts):
        c.reader.refuse("aug_crop_lst", "is a list of numbers of crops, such as [2]")
        return
    why = ""
    if c.pretraining:
        put(c.tree, "views", [{"count": count, **group} for count in counts])
        why = f"with the crops and colours that its code has, at {group['size']} px"
    else:
        crops = {key: group[key] for key in ("size", "flip", "crop_scale")}
        counts = [sum(counts)]
        put(c.tree, "views", [{"count": counts[0], **crops}])
    said = f"views.0.count={counts[0]}" if len(counts) == 1 else f"{len(counts)} views.*"
    c.reader.tell("aug_crop_lst", Fate.REPLACED if why else Fate.TAKEN, said, why)
