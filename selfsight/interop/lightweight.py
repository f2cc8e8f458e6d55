"""Lightweight-SSL: typed INI files whose parent folder's name is the phase.

`pretrain/simclr.ini` pretrains; a file in any other folder (`linear_eval`) trains a linear
classifier on a frozen encoder, which here is the protocol `linear-augmented`.
"""

from pathlib import Path

from selfsight.interop import ini
from selfsight.interop.lightweight_file import TRAINED_ELSEWHERE, File
from selfsight.interop.lightweight_images import images
from selfsight.interop.lightweight_sections import arguments, checkpoints, logs
from selfsight.interop.lightweight_tables import COMPUTE, METHODS, NAMED, WITHOUT_EFFECT, Method
from selfsight.interop.report import Converted, Fate, Reader, put


def recognises(path: Path, text: str) -> bool:
    """Whether a file holds `key = value@type` lines, or is named as one that should."""
    return path.suffix == ".ini" or any(map(ini.is_typed, text.splitlines()))


def convert(path: Path, overrides: list[str]) -> Converted:
    """The native recipe, or keys of the evaluation. Raises: UserError for all that is wrong."""
    parsed = ini.parse(path.read_text(encoding="utf-8"), str(path))
    ini.override(parsed, overrides)
    c = File(path, parsed)
    _seed(c)
    epochs = c.same(c.reader, "epochs", "epochs", int) or (100 if c.pretraining else 90)
    if (c.same(c.reader, "epoch_start", "start_epoch", int) or 0) > max(0, epochs):
        c.reader.refuse("epoch_start", f"is more than the {epochs} epochs of the whole")
    _batch(c, _compute(c, c.reader.inside("compute_cfg")))
    _workers(c)
    method = _method(c)
    _backbone(c, images(c))
    logs(c)
    checkpoints(c, c.reader.inside("ckpt_args"), epochs)
    arguments(c, c.reader.inside("ssl_args"), method)
    _subject(c)
    c.result.entries = c.reader.finish()
    return c.result


def _seed(c: File) -> None:
    seed = c.value(c.reader, "seed", int)
    if seed == -1:
        c.give(c.reader, "seed", "seed", 0, "every run can be repeated; another seed, another draw")
    elif seed is not None:
        c.give(c.reader, "seed", "seed", seed)


def _compute(c: File, cfg: Reader) -> int:
    """How many processes the file has in mind, on all machines."""
    accelerator = _named(c, cfg, "accelerator")
    _named(c, cfg, "precision")
    devices = _devices(c, cfg, accelerator)
    nodes = c.value(cfg, "num_nodes", int, default=1)
    if nodes < 1:
        cfg.refuse("num_nodes", "is no number of machines")
    elif nodes > 1:
        start = f"torchrun --nnodes={nodes} --nproc-per-node={devices} -m selfsight run FILE"
        why = "torchrun starts the processes of several machines, with the same whole batch"
        cfg.tell("num_nodes", Fate.REPLACED, start, why)
    else:
        cfg.tell("num_nodes", Fate.TAKEN)
        c.result.processes = devices
    total = devices * max(1, nodes)
    why = "one process a device, joined by DistributedDataParallel"
    cfg.tell("strategy", Fate.REPLACED, _processes(total), why)
    if total > 1 and accelerator == "cuda":
        put(c.tree, "sync_batchnorm", True)  # there always on, unless the next keys say otherwise
    for key, (native, kind) in COMPUTE.items():
        c.same(cfg, key, native, kind)
    if c.tree.get("max_steps") == -1:  # there: no end but that of the epochs
        del c.tree["max_steps"]
        cfg.tell("max_steps", Fate.WITHOUT_EFFECT, why="epochs end the run")
    for key, why in WITHOUT_EFFECT.items():
        cfg.tell(key, Fate.WITHOUT_EFFECT, why=why)
    return total


def _devices(c: File, cfg: Reader, accelerator: str | None) -> int:
    """How many devices of one machine."""
    devices, why = c.value(cfg, "devices", int, str, list, default=1), ""
    count = len(devices) if isinstance(devices, list) else devices
    if count in (-1, "-1", "auto"):
        import torch

        count = 1 if accelerator == "cpu" else max(1, torch.cuda.device_count())
        why = "all of this machine; batch_size is per device: name how many for the same batch"
    elif isinstance(count, str) and count.isdigit():
        count = int(count)
    if not isinstance(count, int) or count < 1:
        cfg.refuse("devices", "is neither a number of devices nor a list of them")
        return 1
    cfg.tell("devices", Fate.REPLACED if why else Fate.TAKEN, _processes(count), why)
    return count


def _processes(count: int) -> str:
    return f"{count} processes" if count > 1 else "one process"


def _named(c: File, cfg: Reader, key: str) -> str | None:
    """A value of compute_cfg that has another name here."""
    native, names, why = NAMED[key]
    value = c.value(cfg, key, int, str)
    if value is None:
        return None
    here = names.get(str(value))
    if here is None:
        cfg.refuse(key, f"there is none here; known: {', '.join(names)}")
    else:
        c.give(cfg, key, native, here, why if here != str(value) else "")
    return here


def _batch(c: File, devices: int) -> None:
    size = c.value(c.reader, "batch_size", int)
    if size is None:
        c.reader.refuse("batch_size", "missing key; images of a step on each device")
        return
    steps = devices * max(1, c.tree.get("accumulate", 1))
    why = "the whole batch counts here, whatever number of processes shares it"
    c.give(c.reader, "batch_size", "batch_size", size * steps, why if steps > 1 else "")


def _workers(c: File) -> None:
    count = c.value(c.reader, "num_workers", int)
    if count is not None:
        why = "threads, which decode in this process" if count else "at least one thread"
        c.give(c.reader, "num_workers", "data.workers", count or 1, why)


def _method(c: File) -> Method | None:
    name = c.choice("ssl_method", METHODS)
    if name is None:
        return None
    method = METHODS[name]
    if c.pretraining:
        why = "" if method.name == name else "the same method under its name here"
        c.give(c.reader, "ssl_method", "method.name", method.name, why)
    else:
        c.reader.tell("ssl_method", Fate.WITHOUT_EFFECT, why=TRAINED_ELSEWHERE)
    return method


def _backbone(c: File, size: int) -> None:
    if c.same(c.reader, "backbone", "backbone.name", str) is None:
        c.reader.refuse("backbone", "missing key; such as resnet50@str")
    if not c.pretraining:  # for weights that do not say it themselves
        put(c.tree, "image_size", size)


def _subject(c: File) -> None:
    """pretrain_ckpt_path: the encoder that is measured."""
    key = "pretrain_ckpt_path"
    if c.pretraining:
        return c.ignore(c.reader, [key], "is for linear evaluation")
    c.result.protocol = "linear-augmented"
    where = c.value(c.reader, key, str)
    if where is None:
        return c.reader.refuse(key, "missing key; the encoder to measure")
    path, why = Path(where), ""
    if path.suffix == ".ckpt" and not path.exists() and path.with_suffix("").is_dir():
        path, why = path.with_suffix(""), "the run's folder has this name"
    c.result.subject = str(path)
    c.reader.tell(key, Fate.REPLACED if why else Fate.TAKEN, str(path), why)
