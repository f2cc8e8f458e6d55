"""Lightweight-SSL: typed INI files whose parent folder's name is the phase.

`pretrain/simclr.ini` pretrains; a file in any other folder (`linear_eval`) trains a linear
classifier on a frozen encoder, which here is the protocol `linear-augmented`.
"""

from pathlib import Path
from typing import Any

from tacit.dialects import ini
from tacit.dialects.lightweight_file import TRAINED_ELSEWHERE, File
from tacit.dialects.lightweight_images import images
from tacit.dialects.lightweight_sections import arguments, checkpoints, logs
from tacit.dialects.lightweight_tables import COMPUTE, METHODS, NAMED, WITHOUT_EFFECT, Method
from tacit.dialects.report import Converted, Fate, Reader, put


def recognises(path: Path, text: str) -> bool:
    """Whether a file holds `key = value@type` lines, or is named as one that should."""
    return path.suffix == ".ini" or any(map(ini.is_typed, text.splitlines()))


def convert(path: Path, overrides: list[str]) -> Converted:
    """The native recipe, or keys of the evaluation. Raises: UserError for all that is wrong."""
    parsed = ini.parse(path.read_text(encoding="utf-8"), str(path))
    ini.override(parsed, overrides)
    return _convert(File(path, parsed))


def _convert(c: File) -> Converted:
    _seed(c)
    c.flat("epoch_start", "start_epoch", int)
    epochs = c.flat("epochs", "epochs", int) or (100 if c.pretraining else 90)
    devices = _compute(c, c.reader.inside("compute_cfg"))
    _batch(c, devices)
    _workers(c)
    method = _method(c)
    size = images(c)
    _backbone(c, size)
    logs(c)
    checkpoints(c, c.reader.inside("ckpt_args"), epochs)
    arguments(c, c.reader.inside("ssl_args"), method)
    if c.pretraining:
        c.reader.take("pretrain_ckpt_path")
        why = "is for linear evaluation"
        c.reader.tell("pretrain_ckpt_path", Fate.WITHOUT_EFFECT, why=why)
    else:
        _subject(c)
        c.result.protocol = "linear-augmented"
    c.result.entries = c.reader.finish()
    return c.result


def _seed(c: File) -> None:
    seed = c.value(c.reader, "seed", int)
    if seed is None:
        return
    if seed >= 0:
        c.reader.tell("seed", Fate.TAKEN, put(c.tree, "seed", seed))
        return
    why = "every run here can be repeated; another seed is another draw"
    c.reader.tell("seed", Fate.REPLACED, put(c.tree, "seed", 0), why)


def _compute(c: File, cfg: Reader) -> int:
    """How many processes the file has in mind."""
    devices = cfg.take("devices", 1)
    counted = len(devices) if isinstance(devices, list) else devices
    counted = int(counted) if isinstance(counted, str) and counted.isdigit() else counted
    if counted in (-1, "-1", "auto"):
        why = "batch_size is per device: name how many, so that the whole batch is known"
        cfg.tell("devices", Fate.REPLACED, "one device", why)
        counted = 1
    elif type(counted) is not int or counted < 1:
        cfg.refuse("devices", "is neither a number of devices nor a list of them")
        counted = 1
    nodes = c.value(cfg, "num_nodes", int, default=1)
    total = counted * nodes
    if nodes == 1:
        c.result.processes = counted
    if cfg.path("devices") not in c.reader.log.entries:
        processes = f"{counted} processes" if counted > 1 else ""
        cfg.tell("devices", Fate.TAKEN, processes)
    start = f"torchrun --nnodes={nodes} --nproc-per-node={counted} -m tacit run FILE"
    why = "torchrun starts the processes of several machines, with the same whole batch"
    many = nodes > 1
    cfg.tell("num_nodes", Fate.REPLACED if many else Fate.TAKEN, start * many, why * many)
    why = "one process a device, joined by DistributedDataParallel"
    cfg.take("strategy")
    cfg.tell("strategy", Fate.REPLACED, f"{total} processes" if total > 1 else "one process", why)
    accelerator = _named(c, cfg, "accelerator")
    if total > 1 and accelerator == "cuda" and "sync_batchnorm" not in cfg:
        put(c.tree, "sync_batchnorm", True)  # there always on
    for key, (native, *kinds) in COMPUTE.items():
        c.flat(key, native, *kinds, reader=cfg)
    _named(c, cfg, "precision")
    for key in WITHOUT_EFFECT:
        cfg.take(key)
        cfg.tell(key, Fate.WITHOUT_EFFECT, why=WITHOUT_EFFECT[key])
    return total


def _named(c: File, cfg: Reader, key: str) -> Any:
    """A value of compute_cfg that has another name here."""
    value, (native, names, why) = cfg.take(key), NAMED[key]
    if key not in cfg:
        return None
    if str(value) not in names:
        cfg.refuse(key, f"there is none here; known: {', '.join(names)}")
        return None
    said = put(c.tree, native, names[str(value)])
    same = str(value) == names[str(value)]
    cfg.tell(key, Fate.TAKEN if same else Fate.REPLACED, said, "" if same else why)
    return names[str(value)]


def _batch(c: File, devices: int) -> None:
    size = c.value(c.reader, "batch_size", int)
    if "batch_size" not in c.reader:
        c.reader.refuse("batch_size", "missing key; images of a step on each device")
    if size is None:
        return
    parts = c.tree.get("accumulate", 1)
    why = "the whole batch counts here, whatever number of processes shares it"
    fate = Fate.TAKEN if devices * parts == 1 else Fate.REPLACED
    said = put(c.tree, "batch_size", size * devices * parts)
    c.reader.tell("batch_size", fate, said, "" if fate is Fate.TAKEN else why)


def _workers(c: File) -> None:
    count = c.value(c.reader, "num_workers", int)
    if count is not None:
        why = "threads, which decode in this process" if count else "at least one thread"
        said = put(c.tree, "data.workers", max(1, count))
        c.reader.tell("num_workers", Fate.REPLACED, said, why)


def _method(c: File) -> Method | None:
    name = c.choice("ssl_method", METHODS)
    method = METHODS.get(name)
    if method is None:
        return None
    if not c.pretraining:
        c.reader.tell("ssl_method", Fate.WITHOUT_EFFECT, why=TRAINED_ELSEWHERE)
        return method
    said = put(c.tree, "method.name", method.name)
    same = method.name == name
    why = "" if same else "the same method under its name here"
    c.reader.tell("ssl_method", Fate.TAKEN if same else Fate.REPLACED, said, why)
    return method


def _backbone(c: File, size: int) -> None:
    name = c.value(c.reader, "backbone", str)
    if "backbone" not in c.reader:
        c.reader.refuse("backbone", "missing key; such as resnet50@str")
    if name is None:
        return
    said = put(c.tree, "backbone.name", name)
    c.reader.tell("backbone", Fate.TAKEN, said)
    if not c.pretraining:  # for weights that do not say it themselves
        put(c.tree, "image_size", size)


def _subject(c: File) -> None:
    """pretrain_ckpt_path: the encoder that is measured."""
    where = c.value(c.reader, "pretrain_ckpt_path", str)
    if not where:
        c.reader.refuse("pretrain_ckpt_path", "missing key; the encoder to measure")
        return
    path, why = Path(where), ""
    if path.suffix == ".ckpt" and not path.exists() and path.with_suffix("").is_dir():
        path, why = path.with_suffix(""), "the run's folder has this name"
    c.result.subject = str(path)
    fate = Fate.REPLACED if why else Fate.TAKEN
    c.reader.tell("pretrain_ckpt_path", fate, str(path), why)
