"""UP's `runtime`, `saver`, `hooks` and `ema`: where, from what, and what happens beside."""

from pathlib import Path
from typing import Any

from tacit.dialects.report import Reader
from tacit.dialects.up_values import (
    NOTHING,
    REPLACED,
    TAKEN,
    Draft,
    anything,
    carry,
    choose,
    flag,
    ignore,
    number,
    only,
    text,
    value,
    whole,
)

SEED = 131  # where a file names none
RUN_FILES = ("config.yaml", "encoder.safetensors")  # of a run here
ONE = "one program does all"


def read_runtime(r: Reader, d: Draft) -> None:
    """Seed, device, precision."""
    tasks = anything(r, "task_names")
    if tasks is not None:
        names = tasks if isinstance(tasks, list) else [tasks]
        if set(map(str, names)) <= {"ssl", "cls"}:
            r.tell("task_names", TAKEN, why="pretraining and what follows it")
        else:
            r.refuse("task_names", "only ssl (and cls, for its classifiers) are here")
    carry(r, d, "random_seed", "seed", whole, SEED)
    device = choose(r, "device", ("cuda", "cpu"), "device")
    if device:
        r.tell("device", TAKEN, d.put("device", device))
    _half(r, d)
    ignore(r, "of each process its random numbers follow from the seed and its place", "rank_init")
    for key in ("aligned", "async_norm", "special_bn_init", "iter_base"):
        only(r, key, (False,), "off", "is not here; remove it")
    for key in ("model_helper", "runner"):
        inner = r.inside(key)
        only(inner, "type", ("base",), ONE, "only base is here")
        ignore(inner, ONE, "kwargs")


def _half(r: Reader, d: Draft) -> None:
    asked = value(r, "fp16")
    if asked is False:
        r.tell("fp16", TAKEN, d.put("precision", "fp32"))
    elif asked is not None:
        why = "bf16, which needs no loss scale, where the hardware has it"
        r.tell("fp16", REPLACED, d.put("precision", "auto"), why)


# Saver --------------------------------------------------------------------------------------------


def read_saver(r: Reader, d: Draft) -> None:
    """auto_resume > overrides > resume_model > pretrain_model, as UP documents it; overrides are
    in the file's values already."""
    folder = text(r, "save_dir")
    if folder is not None:
        d.run = folder
        r.tell("save_dir", TAKEN, f"run={folder}", "each configuration needs a folder of its own")
    text(r, "results_dir")
    results = "" if d.pretrains or folder is None else f"{folder}/results.json"
    why = "results lie in the run's folder" if results else "pretraining has no results"
    r.tell("results_dir", REPLACED if results else NOTHING, results, why)
    begun = _begun(folder)
    resuming = flag(r, "auto_resume", False)
    if resuming:
        r.tell("auto_resume", TAKEN, why="the same command goes on from its last checkpoint")
    elif begun:
        why = f"save_dir={folder} holds checkpoints that a run goes on from"
        r.refuse("auto_resume", f"{why}: set it to true, or name another save_dir")
    else:
        r.tell("auto_resume", REPLACED, why="a run always goes on from its own checkpoints")
    _weights(r, d, folder, resuming and begun)
    ignore(r, "predictions are not saved", "save_result")
    ignore(r, ONE, "task_type")


def _begun(folder: str | None) -> bool:
    """Whether a run of this folder, or an evaluation below it, has saved checkpoints."""
    if folder is None:
        return False
    places = (f"{folder}/checkpoints", f"{folder}/evaluations")
    return any(next(Path(p).rglob("step-*.pt"), None) for p in places if Path(p).is_dir())


def _weights(r: Reader, d: Draft, folder: str | None, going_on: Any) -> None:
    """`resume_model` and `pretrain_model`."""
    resume, weights = text(r, "resume_model"), text(r, "pretrain_model")
    if going_on:
        r.tell("resume_model", NOTHING, why="auto_resume found a checkpoint, which goes first")
    elif resume is not None and folder is not None and _inside(resume, folder):
        r.tell("resume_model", REPLACED, f"run={folder}", "the newest checkpoint of its folder")
    elif resume is not None:
        why = "a run goes on in its own folder: set save_dir to that"
        r.refuse("resume_model", f"{why}; for weights alone use pretrain_model")
    if d.pretrains and resume is not None:
        r.tell("pretrain_model", NOTHING, why="resume_model goes first")
    elif d.pretrains and weights is not None:
        why = "the encoder's; what else a method has begins at random"
        r.tell("pretrain_model", REPLACED, d.put("weights", subject_of(weights)), why)
    elif d.pretrains:
        r.tell("pretrain_model", NOTHING, why="it is empty")
    elif weights is not None:
        d.subject = subject_of(weights)
        why = "the run of Tacit's in that folder" if d.subject != weights else ""
        r.tell("pretrain_model", REPLACED if why else TAKEN, f"evaluates {d.subject}", why)
    else:
        why = "without it UP measured a random encoder"
        r.refuse("pretrain_model", f"name the checkpoint to evaluate; {why}")


def _inside(file: str, folder: str) -> bool:
    return Path(file).resolve().is_relative_to(Path(folder).resolve())


def subject_of(weights: str) -> str:
    """A checkpoint, or the run of Tacit's that took the place of the folder where UP had it."""
    path = Path(weights)
    if not path.exists():
        for folder in (path.parent, path.parent.parent):
            if all((folder / name).is_file() for name in RUN_FILES):
                return str(folder)
    return weights


# Hooks --------------------------------------------------------------------------------------------

HOOKS = {
    "auto_save_best": "no epoch is chosen by the test images; the last one counts",
    "train_val_logger": "metrics.jsonl and the progress line",
    "auto_checkpoint": "SIGTERM and Ctrl-C save before they end a run",
    "memory_checkpoint": "saves memory only; accumulate=N does so here",
    "memory_empty": "memory is not emptied by hand",
    "grad_clipper": "",
}


def read_hooks(r: Reader, d: Draft) -> None:
    """`hooks`, a list of types."""
    for hook in r.each("hooks"):
        kind = choose(hook, "type", HOOKS, "hook")
        k = hook.inside("kwargs")
        if kind == "grad_clipper":
            hook.tell("type", TAKEN, "clip_gradient")
            _clipping(k, d)
        elif kind == "train_val_logger":
            hook.tell("type", REPLACED, why=HOOKS[kind])
            carry(k, d, "freq", "log_every", whole)
            if text(k, "summary_writer") == "tensorboard":
                k.tell("summary_writer", TAKEN, d.put("log.tensorboard", True))
            else:
                ignore(k, HOOKS[kind], "summary_writer")
            ignore(k, HOOKS[kind], "logdir", "skip_first_k")
        elif kind == "auto_checkpoint":
            hook.tell("type", TAKEN, why=HOOKS[kind])
        elif kind == "auto_save_best":
            fate = NOTHING if d.pretrains else REPLACED
            why = "pretraining has no test" if d.pretrains else HOOKS[kind]
            hook.tell("type", fate, why=why)
        elif kind:
            hook.tell("type", NOTHING, why=HOOKS[kind])
            ignore(k, HOOKS[kind], "freq", "enable", "checkpoint_patterns", "dc_cfg")
        elif "kwargs" in hook:
            hook.tell("kwargs", NOTHING, why="of a hook that is refused")


def _clipping(k: Reader, d: Draft) -> None:
    only(k, "mode", ("pre_defined",), "max_norm", "the norm is given here: use pre_defined")
    norm = number(k, "max_norm")
    if norm:
        k.tell("max_norm", TAKEN, d.put("clip_gradient", norm))
    else:
        k.refuse("max_norm", "expected the largest norm of all gradients together")
    only(k, "norm_type", (2,), "the L2 norm", "only the L2 norm is here")
    ignore(k, "of other modes", "momentum", "tolerance", "display_freq")


def read_ema(r: Reader, d: Draft) -> None:
    """`ema`, which averages the weights that UP tests."""
    if flag(r, "enable"):
        r.refuse("enable", "weights are not averaged here; set it to false")
    r.tell("enable", TAKEN, why="no average")
    ignore(r, "there is no average", "kwargs", "ema_type")
