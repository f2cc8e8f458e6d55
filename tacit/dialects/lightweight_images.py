"""Lightweight-SSL's keys of the images: which they are, and what is made of them."""

from pathlib import Path

from tacit.config import Tree
from tacit.data.source import TRAIN_NAMES
from tacit.dialects.lightweight_file import File
from tacit.dialects.lightweight_tables import AUGMENTATION, DATA_SETS, KINDS
from tacit.dialects.report import Fate, Reader, put


def images(c: File) -> int:
    """Where the images are and what is made of them; returns the side of the views."""
    name = c.choice("dataset", DATA_SETS)
    custom = c.reader.inside("custom_ds_cfg")
    known = DATA_SETS.get(name, DATA_SETS["imagenet"])
    put(c.tree, "data.source", known.source)
    if name is not None:
        c.reader.tell("dataset", Fate.TAKEN, f"data.source={known.source}")
    put(c.tree, "data.mean", list(known.mean))
    put(c.tree, "data.std", list(known.std))
    _where(c, name, known.path, known.source.startswith("torchvision:"), custom)
    group: Tree = {**AUGMENTATION, "size": known.size}
    if name == "custom":
        _custom(c, custom, group)
    else:
        for key in custom.tree:
            custom.take(key)
            custom.tell(key, Fate.WITHOUT_EFFECT, why="is for dataset=custom")
    _crops(c, group)
    return group["size"]


def _where(c: File, name: str | None, usual: str, torchvision: bool, custom: Reader) -> None:
    """data_dir: a path, or a mapping with train and test; or custom_ds_cfg's own."""
    place = c.reader.tree.get("data_dir")
    for key in ("train", "test") if place and name == "custom" else ():
        if key in custom:
            custom.refuse(key, "data_dir says where the images are; remove one of the two")
    if isinstance(place, dict) and place:
        return _two_places(c, c.reader.inside("data_dir"), torchvision)
    place = c.value(c.reader, "data_dir", str, dict)
    if not place and name == "custom" and "train" in custom:
        c.reader.tell("data_dir", Fate.WITHOUT_EFFECT, why="custom_ds_cfg names the folders")
        return _two_places(c, custom, torchvision)
    if not place:
        if not usual:
            c.reader.refuse("data_dir", f"missing key; where the images of {name} are")
            return None
        said = put(c.tree, "data.path", usual)
        c.reader.tell("data_dir", Fate.REPLACED, said, "the usual place, as it is empty")
        return None
    path, why = Path(place), ""
    if not torchvision and path.name.lower() in TRAIN_NAMES:
        path = path.parent
        why = "train and the test images beside it; there, evaluation read train as well"
    said = put(c.tree, "data.path", str(path))
    c.reader.tell("data_dir", Fate.REPLACED if why else Fate.TAKEN, said, why)
    return None


def _two_places(c: File, both: Reader, torchvision: bool) -> None:
    train, test = c.value(both, "train", str), c.value(both, "test", str)
    if not train:
        both.refuse("train", "missing key; the folder of the training images")
        return
    both.tell("train", Fate.TAKEN, put(c.tree, "data.path", train))
    if test is None:
        return
    if not torchvision:
        both.tell("test", Fate.TAKEN, put(c.tree, "data.test_path", test))
    elif test == train:
        both.tell("test", Fate.REPLACED, f"data.path={train}", "one folder holds both splits")
    else:
        both.refuse("test", "torchvision keeps both splits in one folder; name it twice")


def _custom(c: File, cfg: Reader, group: Tree) -> None:
    """custom_ds_cfg: pixels and augmentations of a data set of one's own."""
    for key in ("mean", "std"):
        value = c.value(cfg, key, list, tuple)
        if value is not None:
            cfg.tell(key, Fate.TAKEN, put(c.tree, f"data.{key}", list(value)))
    low, high = group["crop_scale"]
    low = c.value(cfg, "min_scale", float, default=low)
    high = c.value(cfg, "max_scale", float, default=high)
    group["crop_scale"] = [low, high]
    for key in ("min_scale", "max_scale"):
        if type(cfg.take(key)) in (int, float):
            cfg.tell(key, Fate.TAKEN, f"views.0.crop_scale={group['crop_scale']}")
    for key, (native, kind) in KINDS.items():
        value = c.value(cfg, key, kind)
        if value is None:
            continue
        group[native] = value
        if c.pretraining or key in ("crop_size", "horizontal_flip_prob"):
            cfg.tell(key, Fate.TAKEN, f"views.0.{native}={value}")
        else:
            why = "a classifier is trained on crops and flips"
            cfg.tell(key, Fate.WITHOUT_EFFECT, why=why)


def _crops(c: File, group: Tree) -> None:
    """aug_crop_lst: so many crops of each view recipe; there is one recipe."""
    default = [2] if c.pretraining else [1]
    counts = c.value(c.reader, "aug_crop_lst", list, default=default)
    if not counts or any(type(count) is not int or count < 1 for count in counts):
        c.reader.refuse("aug_crop_lst", "is a list of numbers of crops, such as [2]")
        return
    if c.pretraining:
        put(c.tree, "views", [{"count": count, **group} for count in counts])
        said = f"views.0.count={counts[0]}" if len(counts) == 1 else f"{len(counts)} views.*"
        why = f"with the crops and colours that its code has, at {group['size']} px"
        c.reader.tell("aug_crop_lst", Fate.REPLACED, said, why)
        return
    crops = {"count": sum(counts), "flip": group["flip"], "crop_scale": group["crop_scale"]}
    put(c.tree, "views", [{**crops, "size": group["size"]}])
    c.reader.tell("aug_crop_lst", Fate.TAKEN, f"views.0.count={sum(counts)}")
