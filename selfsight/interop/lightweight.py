"""Lightweight-SSL's typed INI files; the name of the parent folder is the phase.

`pretrain/simclr.ini` pretrains. A file in any other folder (`linear_eval`) trains a linear
classifier on a frozen encoder: Selfsight's protocol `linear-augmented`.
"""

from pathlib import Path

from selfsight.interop import ini
from selfsight.interop.lightweight_images import Keys, read_images
from selfsight.interop.lightweight_sections import (
    NOT_EVALUATED,
    read_arguments,
    read_checkpoints,
    read_logs,
)
from selfsight.interop.lightweight_tables import COMPUTE, METHODS, NAMED, Method
from selfsight.interop.report import Converted
from selfsight.interop.section import REPLACED, TAKEN, UNUSED, Section


def recognises(path: Path, text: str) -> bool:
    """Whether the text has `key = value@type` lines, or the file's name ends in .ini."""
    return path.suffix == ".ini" or any(map(ini.is_typed, text.splitlines()))


def convert(path: Path, overrides: list[str]) -> Converted:
    """The native recipe, or the evaluation. Raises: UserError that lists all mistakes."""
    parsed = ini.parse(path.read_text(encoding="utf-8"), str(path))
    ini.override(parsed, overrides)
    folder = path.absolute().parent.name
    out = Converted("lightweight-ssl", "pretrain" if folder == "pretrain" else "linear-augmented")
    r: Keys = Section.of_file(parsed.tree, out, str(path), parsed.lines)
    seed = r.value("seed", "@int")
    if seed is not None:
        why = "every run can be repeated; write another seed for another run" if seed == -1 else ""
        r.set("seed", "seed", 0 if seed == -1 else seed, why)
    epochs = r.copy("epochs", "epochs", "@int") or (100 if out.pretrains else 90)
    if (r.copy("epoch_start", "start_epoch", "@int") or 0) > max(0, epochs):
        r.refuse("epoch_start", f"must be at most epochs={epochs}")
    _batch(r, _compute(r.inside("compute_cfg")))
    workers = r.value("num_workers", "@int")
    if workers is not None:
        why = "threads of this process decode images" if workers else "at least one thread decodes"
        r.set("num_workers", "data.workers", workers or 1, why)
    method = _method(r)
    if r.copy("backbone", "backbone.name", "@str") is None:
        r.refuse("backbone", "missing key; for example resnet50@str")
    size = read_images(r)
    if not out.pretrains:  # for weights whose file does not hold their image size
        out.put("image_size", size)
    read_logs(r)
    read_checkpoints(r, folder, epochs)
    read_arguments(r, method)
    _subject(r)
    out.entries = r.finish()
    return out


def _compute(r: Keys) -> int:
    """compute_cfg; returns the number of processes on all machines."""
    accelerator, out = _named(r, "accelerator"), r.out
    _named(r, "precision")
    devices, nodes = _devices(r, accelerator), r.value("num_nodes", "@int", 1)
    if nodes < 1:
        r.refuse("num_nodes", "must be at least 1")
    elif nodes > 1:
        start = f"torchrun --nnodes={nodes} --nproc-per-node={devices} -m selfsight run FILE"
        why = "torchrun starts the processes of several machines; the whole batch stays the same"
        r.record("num_nodes", REPLACED, start, why)
    else:
        r.record("num_nodes", TAKEN)
        out.processes = devices
    total = devices * max(1, nodes)
    why = "one process per device, joined by DistributedDataParallel"
    r.record("strategy", REPLACED, _processes(total), why)
    if total > 1 and accelerator == "cuda":
        out.put("sync_batchnorm", True)  # Lightweight-SSL's default, unless sync_batchnorm is given
    r.read(COMPUTE)
    if out.tree.get("max_steps") == -1:  # no limit
        del out.tree["max_steps"]
        r.record("max_steps", UNUSED, why="epochs end the run")
    return total


def _devices(r: Keys, accelerator: str | None) -> int:
    """The number of devices of one machine."""
    devices, why = r.value("devices", "@int or @str or @list", 1), ""
    count = len(devices) if isinstance(devices, list) else devices
    if count in (-1, "-1", "auto"):
        import torch

        count = 1 if accelerator == "cpu" else max(1, torch.cuda.device_count())
        why = "all of this machine; batch_size is per device: write a number to fix the batch"
    elif isinstance(count, str) and count.isdigit():
        count = int(count)
    if not isinstance(count, int) or count < 1:
        r.refuse("devices", "expected a number of devices (at least 1), a list of them, or -1")
        return 1
    r.record("devices", REPLACED if why else TAKEN, _processes(count), why)
    return count


def _processes(count: int) -> str:
    return f"{count} processes" if count > 1 else "one process"


def _named(r: Keys, key: str) -> str | None:
    """A key of compute_cfg whose values have other names in Selfsight."""
    native, names, why = NAMED[key]
    value = r.value(key, "@int or @str")
    if value is None:
        return None
    ours = names.get(str(value))
    if ours is None:
        r.refuse(key, f"no such {key}. Known: {', '.join(names)}")
    else:
        r.set(key, native, ours, why if ours != str(value) else "")
    return ours


def _batch(r: Keys, devices: int) -> None:
    size = r.value("batch_size", "@int")
    if size is None:
        r.refuse("batch_size", "missing key; write the number of images per step and device")
        return
    steps = devices * max(1, r.out.tree.get("accumulate", 1))
    why = "the number of images of all processes together" if steps > 1 else ""
    r.set("batch_size", "batch_size", size * steps, why)


def _method(r: Keys) -> Method | None:
    name = r.choose("ssl_method", METHODS, "ssl_method", needed=True)
    if name is None:
        return None
    method = METHODS[name]
    if r.out.pretrains:
        why = "" if method.name == name else "Selfsight's name of the method"
        r.set("ssl_method", "method.name", method.name, why)
    else:
        r.ignore(NOT_EVALUATED, "ssl_method")
    return method


def _subject(r: Keys) -> None:
    """pretrain_ckpt_path: the encoder to measure."""
    key, out = "pretrain_ckpt_path", r.out
    if out.pretrains:
        return r.ignore("only for linear evaluation", key)
    out.protocol = "linear-augmented"
    where = r.value(key, "@str")
    if where is None:
        return r.refuse(key, "missing key; write the encoder to measure")
    path, why = Path(where), ""
    if path.suffix == ".ckpt" and not path.exists() and path.with_suffix("").is_dir():
        path, why = path.with_suffix(""), "the folder of the run with this name"
    out.subject = str(path)
    return r.record(key, REPLACED if why else TAKEN, str(path), why)
