"""UP's `runtime`, `saver`, `hooks` and `ema`: where, from what, and what happens beside."""

from pathlib import Path

from selfsight.interop.up_values import NOTHING, REPLACED, TAKEN, Keys

SEED = 131  # where a file names none
RUN_FILES = ("config.yaml", "encoder.safetensors")  # of a run here
ONE = "one program does all"


def read_runtime(r: Keys) -> None:
    """Seed, device, precision."""
    tasks = r.value("task_names")
    names = tasks if isinstance(tasks, list) else [tasks]
    if tasks is not None and not set(map(str, names)) <= {"ssl", "cls"}:
        r.refuse("task_names", "only ssl (and cls, for its classifiers) are here")
    elif tasks is not None:
        r.tell("task_names", TAKEN, why="pretraining and what follows it")
    r.carry("random_seed", "seed", Keys.whole, SEED)
    device = r.choose("device", ("cuda", "cpu"), "device")
    if device:
        r.tell("device", TAKEN, r.d.put("device", device))
    asked = r.value("fp16")
    if asked is False:
        r.tell("fp16", TAKEN, r.d.put("precision", "fp32"))
    elif asked is not None:
        why = "bf16, which needs no loss scale, where the hardware has it"
        r.tell("fp16", REPLACED, r.d.put("precision", "auto"), why)
    r.ignore("of each process its random numbers follow from the seed and its place", "rank_init")
    for key in ("aligned", "async_norm", "special_bn_init", "iter_base"):
        r.only(key, (False,), "off", "is not here; remove it")
    for inner in map(r.inside, ("model_helper", "runner")):
        inner.only("type", ("base",), ONE, "only base is here")
        inner.ignore(ONE, "kwargs")


# Saver --------------------------------------------------------------------------------------------


def read_saver(r: Keys) -> None:
    """auto_resume > overrides > resume_model > pretrain_model, as UP documents it; overrides are
    in the file's values already."""
    d, folder = r.d, r.text("save_dir")
    if folder is not None:
        d.run = folder
        r.tell("save_dir", TAKEN, f"run={folder}", "each configuration needs a folder of its own")
    r.text("results_dir")
    if d.pretrains or folder is None:
        r.tell("results_dir", NOTHING, why="results lie in the run's folder, of a pretraining none")
    else:
        r.tell("results_dir", REPLACED, f"{folder}/results.json", "results lie in the run's folder")
    begun, resuming = _begun(folder), r.flag("auto_resume", False)
    if resuming:
        r.tell("auto_resume", TAKEN, why="the same command goes on from its last checkpoint")
    elif begun:
        why = f"save_dir={folder} holds checkpoints that a run goes on from"
        r.refuse("auto_resume", f"{why}: set it to true, or name another save_dir")
    else:
        r.tell("auto_resume", REPLACED, why="a run always goes on from its own checkpoints")
    resume = _resume(r, folder, resuming and begun)
    _pretrained(r, resume)
    r.ignore("predictions are not saved", "save_result")
    r.ignore(ONE, "task_type")


def _begun(folder: str | None) -> bool:
    """Whether a run of this folder, or an evaluation below it, has saved checkpoints."""
    places = (f"{folder}/checkpoints", f"{folder}/evaluations") if folder is not None else ()
    return any(next(Path(p).rglob("step-*.pt"), None) for p in places if Path(p).is_dir())


def _resume(r: Keys, folder: str | None, going_on: bool) -> str | None:
    """`resume_model`, which is returned."""
    resume = r.text("resume_model")
    if going_on:
        r.tell("resume_model", NOTHING, why="auto_resume found a checkpoint, which goes first")
    elif resume and folder and Path(resume).resolve().is_relative_to(Path(folder).resolve()):
        r.tell("resume_model", REPLACED, f"run={folder}", "the newest checkpoint of its folder")
    elif resume and r.d.pretrains:
        why = "the whole state of that run of Selfsight's; a checkpoint of UP's has another"
        r.tell("resume_model", REPLACED, r.d.put("resume", subject_of(resume)), why)
    elif resume is not None:
        why = "an evaluation goes on in its own folder: set save_dir to that"
        r.refuse("resume_model", f"{why}; for weights alone use pretrain_model")
    return resume


def _pretrained(r: Keys, resume: str | None) -> None:
    """`pretrain_model`: what a pretraining begins from, and what an evaluation measures."""
    weights, d = r.text("pretrain_model"), r.d
    if d.pretrains and resume is not None:
        r.tell("pretrain_model", NOTHING, why="resume_model goes first")
    elif d.pretrains and weights is not None:
        why = "the encoder's; what else a method has begins at random"
        r.tell("pretrain_model", REPLACED, d.put("weights", subject_of(weights)), why)
    elif weights is not None:
        d.subject = subject_of(weights)
        why = "the run of Selfsight's in that folder" if d.subject != weights else ""
        r.tell("pretrain_model", REPLACED if why else TAKEN, f"evaluates {d.subject}", why)
    elif not d.pretrains:
        why = "without it UP measured a random encoder"
        r.refuse("pretrain_model", f"name the checkpoint to evaluate; {why}")


def subject_of(weights: str) -> str:
    """A checkpoint, or the run of Selfsight's that took the place of the folder where UP had it."""
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
    "grad_clipper": "the norm of all gradients together",
}


def read_hooks(r: Keys) -> None:
    """`hooks`, a list of types."""
    for hook in r.each("hooks"):
        kind = hook.kind(HOOKS, "hook")
        if kind is None:
            continue
        k, why = hook.inside("kwargs"), HOOKS[kind]
        if kind == "grad_clipper":
            hook.tell("type", TAKEN, why=why)
            _clipping(k)
        elif kind == "train_val_logger":
            hook.tell("type", REPLACED, why=why)
            _logger(k, why)
        elif kind == "auto_checkpoint":
            hook.tell("type", TAKEN, why=why)
        elif kind == "auto_save_best":
            hook.tell("type", NOTHING if r.d.pretrains else REPLACED, why=why)
        else:
            hook.tell("type", NOTHING, why=why)
            k.ignore(why, "freq", "enable", "checkpoint_patterns", "dc_cfg")


def _logger(k: Keys, why: str) -> None:
    k.carry("freq", "log_every", Keys.whole)
    if k.text("summary_writer") == "tensorboard":
        k.tell("summary_writer", TAKEN, k.d.put("log.tensorboard", True))
    else:
        k.tell("summary_writer", NOTHING, why=why)
    k.ignore(why, "logdir", "skip_first_k")


def _clipping(k: Keys) -> None:
    k.only("mode", ("pre_defined",), "max_norm", "the norm is given here: use pre_defined")
    if not k.carry("max_norm", "clip_gradient"):
        k.refuse("max_norm", "expected the largest norm of all gradients together")
    k.only("norm_type", (2,), "the L2 norm", "only the L2 norm is here")
    k.ignore("of other modes", "momentum", "tolerance", "display_freq")


def read_ema(r: Keys) -> None:
    """`ema`, which averages the weights that UP tests."""
    if r.flag("enable"):
        r.refuse("enable", "weights are not averaged here; set it to false")
    r.tell("enable", TAKEN, why="no average")
    r.ignore("there is no average", "kwargs", "ema_type")
