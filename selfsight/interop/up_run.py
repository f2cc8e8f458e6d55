"""UP's `runtime`, `saver`, `hooks` and `ema`."""

from pathlib import Path

from selfsight.interop.report import Fate
from selfsight.interop.section import REPLACED, TAKEN, UNUSED
from selfsight.interop.up_draft import Keys

RUN_FILES = ("config.yaml", "encoder.safetensors")  # of a run of Selfsight
ONE = "there is one training program"
RUNTIME = (
    ("rename", "device", "device", {"cuda": "cuda", "cpu": "cpu"}),
    ("copy", "random_seed", "seed", "whole", 131),
    ("ignore", "each process derives its random numbers from the seed and its rank", "rank_init"),
    *(
        ("fixed", key, (False,), "this is not supported")
        for key in ("aligned", "async_norm", "special_bn_init", "iter_base")
    ),
    *(
        ("within", key, (("fixed", "type", ("base",), ONE), ("ignore", ONE, "kwargs")))
        for key in ("model_helper", "runner")
    ),
)


def read_runtime(r: Keys) -> None:
    """Seed, device, precision."""
    tasks = r.value("task_names")
    names = tasks if isinstance(tasks, list) else [tasks]
    if tasks is not None and not set(map(str, names)) <= {"ssl", "cls"}:
        r.refuse("task_names", "only ssl, and cls for its classifiers, are supported")
    elif tasks is not None:
        r.record("task_names", TAKEN, why="pretraining and its evaluations")
    half = r.value("fp16")
    if half is False:
        r.set("fp16", "precision", "fp32")
    elif half is not None:
        why = "bfloat16 where the hardware supports it; it needs no scaling of the loss"
        r.set("fp16", "precision", "auto", why)
    r.read(RUNTIME)


# Saver --------------------------------------------------------------------------------------------


def read_saver(r: Keys) -> None:
    """UP's precedence is auto_resume > overrides > resume_model > pretrain_model; the values that
    are read here already include overrides."""
    out, folder = r.out, r.value("save_dir", "text")
    if folder is not None:
        out.run = folder
        why = "each configuration needs its own folder"
        r.record("save_dir", TAKEN, f"run={folder}", why)
    r.value("results_dir", "text")
    if out.pretrains or folder is None:
        why = "results are written to the run's folder; a pretraining has none"
        r.ignore(why, "results_dir")
    else:
        why = "results are written to the run's folder"
        r.record("results_dir", REPLACED, f"{folder}/results.json", why)
    started, resuming = _has_checkpoints(folder), r.value("auto_resume", "flag", False)
    if resuming:
        r.record("auto_resume", TAKEN, why="the same command continues from its last checkpoint")
    elif started:
        why = f"save_dir={folder} holds checkpoints, from which the run would continue"
        r.refuse("auto_resume", f"{why}; write auto_resume: true, or another save_dir")
    else:
        r.record("auto_resume", REPLACED, why="a run always continues from its own checkpoints")
    resume = _resume(r, folder, resuming and started)
    _pretrained(r, resume)
    r.ignore("predictions are not saved", "save_result")
    r.ignore(ONE, "task_type")


def _has_checkpoints(folder: str | None) -> bool:
    """Whether a run in this folder, or an evaluation below it, has saved checkpoints."""
    places = (f"{folder}/checkpoints", f"{folder}/evaluations") if folder is not None else ()
    return any(next(Path(p).rglob("step-*.pt"), None) for p in places if Path(p).is_dir())


def _resume(r: Keys, folder: str | None, continues: bool) -> str | None:
    """Read `resume_model`; returns its value."""
    resume = r.value("resume_model", "text")
    if continues:
        why = "auto_resume found a checkpoint, which has precedence"
        r.ignore(why, "resume_model")
    elif resume and folder and Path(resume).resolve().is_relative_to(Path(folder).resolve()):
        r.record("resume_model", REPLACED, f"run={folder}", "the newest checkpoint of its folder")
    elif resume and r.out.pretrains:
        why = "the whole state of a run of Selfsight; checkpoints of UP hold another state"
        r.set("resume_model", "resume", subject_of(resume), why)
    elif resume is not None:
        why = "an evaluation continues in its own folder: write that folder as save_dir"
        r.refuse("resume_model", f"{why}; to load only weights, use pretrain_model")
    return resume


def _pretrained(r: Keys, resume: str | None) -> None:
    """`pretrain_model`: the initial weights of a pretraining; what an evaluation measures."""
    weights, out = r.value("pretrain_model", "text"), r.out
    if out.pretrains and resume is not None:
        r.ignore("resume_model has precedence", "pretrain_model")
    elif out.pretrains and weights is not None:
        why = "weights of the encoder; other parts of the method start at random"
        r.set("pretrain_model", "weights", subject_of(weights), why)
    elif weights is not None:
        out.subject = subject_of(weights)
        why = "the run of Selfsight in that folder" if out.subject != weights else ""
        by = f"evaluates {out.subject}"
        r.record("pretrain_model", REPLACED if why else TAKEN, by, why)
    elif not out.pretrains:
        why = "without it UP measured a random encoder"
        r.refuse("pretrain_model", f"missing; write the checkpoint to evaluate ({why})")


def subject_of(weights: str) -> str:
    """A checkpoint; or, if it does not exist, the run of Selfsight in its folder."""
    path = Path(weights)
    if not path.exists():
        for folder in (path.parent, path.parent.parent):
            if all((folder / name).is_file() for name in RUN_FILES):
                return str(folder)
    return weights


# Hooks --------------------------------------------------------------------------------------------

_MEMORY = ("freq", "enable", "checkpoint_patterns", "dc_cfg")
_LOGGED = "metrics.jsonl and the progress line"
_LAST = "test images do not choose an epoch; the last one is measured"
_REDUCED, _RELEASED = (
    "saves memory only; encoder_parts=N also does",
    "memory is not released by hand",
)
# type -> fate (of an evaluation), reason, its kwargs
HOOKS: dict[str, tuple[Fate, str, tuple]] = {
    "auto_save_best": (REPLACED, _LAST, ()),
    "train_val_logger": (
        REPLACED,
        _LOGGED,
        (("copy", "freq", "log_every", "whole"), ("ignore", _LOGGED, "logdir", "skip_first_k")),
    ),
    "auto_checkpoint": (TAKEN, "SIGTERM and Ctrl-C save a checkpoint before the run ends", ()),
    "memory_checkpoint": (UNUSED, _REDUCED, (("ignore", _REDUCED, *_MEMORY),)),
    "memory_empty": (UNUSED, _RELEASED, (("ignore", _RELEASED, *_MEMORY),)),
    "grad_clipper": (
        TAKEN,
        "limits the norm of all gradients together",
        (
            ("fixed", "mode", ("pre_defined",), "the largest norm is written as max_norm"),
            ("copy", "max_norm", "clip_gradient"),
            ("fixed", "norm_type", (2,), "the norm is the L2 norm"),
            ("ignore", "only for other modes", "momentum", "tolerance", "display_freq"),
        ),
    ),
}


def read_hooks(r: Keys) -> None:
    """`hooks`, a list."""
    for hook in r.each("hooks"):
        kind = hook.kind(HOOKS, "hook")
        if kind is None:
            continue
        fate, why, rows = HOOKS[kind]
        best = kind == "auto_save_best" and r.out.pretrains
        hook.record("type", UNUSED if best else fate, why=why)
        k = hook.inside("kwargs")
        k.read(rows)
        if kind == "grad_clipper" and not k.value("max_norm"):
            k.refuse("max_norm", "expected the largest norm of all gradients together")
        if kind == "train_val_logger" and k.value("summary_writer", "text") == "tensorboard":
            k.set("summary_writer", "log.tensorboard", True)
        elif kind == "train_val_logger":
            k.ignore(why, "summary_writer")


def read_ema(r: Keys) -> None:
    """`ema`: the average of weights that UP tests."""
    if r.value("enable", "flag"):
        r.refuse("enable", "weights are not averaged; write false")
    r.record("enable", TAKEN, why="no average")
    r.ignore("there is no average", "kwargs", "ema_type")
