"""Lightweight-SSL's keys of the images: where they are, and how they are augmented."""

from pathlib import Path

from selfsight.config import Tree
from selfsight.data.source import TRAIN_NAMES
from selfsight.interop.lightweight_tables import AUGMENTATION, CUSTOM, DATA_SETS, DataSet
from selfsight.interop.report import Converted
from selfsight.interop.section import REPLACED, TAKEN, Section

Keys = Section[Converted]


def read_images(r: Keys) -> int:
    """All keys of the images; returns the side of the views in pixels."""
    name, out = r.choose("dataset", DATA_SETS, "dataset", needed=True), r.out
    known, custom = DATA_SETS[name or "imagenet"], r.inside("custom_ds_cfg")
    r.set("dataset", "data.source", known.source)
    out.put("data.mean", list(known.mean))
    out.put("data.std", list(known.std))
    _place(r, name, known, custom)
    group: Tree = {**AUGMENTATION, "size": known.size}
    if name == "custom":
        _custom(custom, group)
    else:
        custom.ignore("only for dataset=custom", *custom.tree)
    _crops(r, group)
    return group["size"]


def _place(r: Keys, name: str | None, known: DataSet, custom: Keys) -> None:
    """data_dir is a path or {'train': ..., 'test': ...}; custom_ds_cfg may hold the two instead."""
    torchvision = known.source.startswith("torchvision:")
    own = [key for key in ("train", "test") if name == "custom" and key in custom]
    place = r.tree.get("data_dir")
    for key in own if place else ():
        custom.refuse(key, "data_dir also names the images; remove one of the two")
    if isinstance(place, dict) and place:
        return _two_places(r.inside("data_dir"), torchvision)
    place = r.value("data_dir", "@str or @dict")
    if place:
        path, why = Path(place), ""
        if not torchvision and path.name.lower() in TRAIN_NAMES:
            path = path.parent
            why = "the folder of both splits; Lightweight-SSL also evaluated on train"
        r.set("data_dir", "data.path", str(path), why)
    elif own:
        r.ignore("custom_ds_cfg names the folders", "data_dir")
        _two_places(custom, torchvision)
    elif known.path:
        r.set("data_dir", "data.path", known.path, "the default path of this data set")
    else:
        r.refuse("data_dir", f"missing key; write the path of the images of {name}")
    return None


def _two_places(both: Keys, torchvision: bool) -> None:
    train, test = both.copy("train", "data.path", "@str"), both.value("test", "@str")
    if not train:
        both.refuse("train", "missing key; write the folder of the training images")
    elif not torchvision and test:
        both.set("test", "data.test_path", test)
    elif test == train:
        both.record("test", REPLACED, f"data.path={train}", "one folder holds both splits")
    elif test:
        both.refuse("test", f"torchvision keeps both splits in one folder; write {train}")


def _custom(r: Keys, group: Tree) -> None:
    """custom_ds_cfg: pixels and augmentations of the user's own data set."""
    for key in ("mean", "std"):
        value = r.value(key, "@list")
        if value is not None:
            r.set(key, f"data.{key}", list(value))
    limits = zip(("min_scale", "max_scale"), group["crop_scale"], strict=True)
    group["crop_scale"] = [r.value(key, "@float", default) for key, default in limits]
    for key in ("min_scale", "max_scale"):
        r.record(key, TAKEN, f"views.0.crop_scale={group['crop_scale']}")
    for key, native in CUSTOM.items():
        value = r.value(key, "@int" if key == "crop_size" else "@float")
        if value is None:
            continue
        group[native] = value
        if r.out.pretrains or key in ("crop_size", "horizontal_flip_prob"):
            r.record(key, TAKEN, f"views.0.{native}={value}")
        else:
            r.ignore("a classifier is trained on crops and flips only", key)


def _crops(r: Keys, group: Tree) -> None:
    """aug_crop_lst: the number of crops of each view recipe; there is one recipe."""
    out = r.out
    counts = r.value("aug_crop_lst", "@list", [2] if out.pretrains else [1])
    if not counts or any(type(count) is not int or count < 1 for count in counts):
        r.refuse("aug_crop_lst", "expected a list of numbers of crops, such as [2]")
        return
    why = ""
    if out.pretrains:
        why = f"with the crops and colours of Lightweight-SSL's code, at {group['size']} px"
    else:
        group = {key: group[key] for key in ("size", "flip", "crop_scale")}
        counts = [sum(counts)]
    out.put("views", [{"count": count, **group} for count in counts])
    by = f"views.0.count={counts[0]}" if len(counts) == 1 else f"{len(counts)} views.*"
    r.record("aug_crop_lst", REPLACED if why else TAKEN, by, why)
