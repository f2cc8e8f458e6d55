"""Lightweight-SSL's sections: wandb_args, ckpt_args, ssl_args."""

import math
import re
from pathlib import Path

from tacit.config import near
from tacit.dialects.lightweight_file import TRAINED_ELSEWHERE, File
from tacit.dialects.lightweight_tables import LOGGERS, SSL_ARGS, WANDB_ARGS, Method
from tacit.dialects.report import Fate, Reader, put


def logs(c: File) -> None:
    logger = c.value(c.reader, "log_type", str)
    if logger is not None and logger not in LOGGERS:
        hint = near(logger, LOGGERS) or f" Known: {', '.join(LOGGERS)}"
        c.reader.refuse("log_type", f"no such logger.{hint}")
    elif logger is not None:
        on = {} if logger == "wandb" else True
        c.reader.tell("log_type", Fate.TAKEN, put(c.tree, f"log.{logger}", on))
    args = c.reader.inside("wandb_args")
    for key, (native, kind) in WANDB_ARGS.items():
        value = c.value(args, key, kind)
        if value is None:
            continue
        if logger == "wandb" and value != "":
            args.tell(key, Fate.TAKEN, put(c.tree, f"log.wandb.{native}", value))
        else:
            why = "it is empty" if logger == "wandb" else "is for log_type=wandb"
            args.tell(key, Fate.WITHOUT_EFFECT, why=why)


def checkpoints(c: File, args: Reader, epochs: int) -> None:
    every = c.flat("every_n_epochs", "checkpoint.every_epochs", int, reader=args)
    keep = c.value(args, "save_top_k", int)
    if keep is not None:
        whole = keep == -1
        number = math.ceil(epochs / max(1, every or 1)) if whole else max(1, keep)
        why = "the newest; the best encoder has a file of its own, see monitor"
        said = put(c.tree, "checkpoint.keep", number)
        fate = Fate.TAKEN if whole else Fate.REPLACED
        args.tell("save_top_k", fate, said, "" if whole else why)
    monitor = c.value(args, "monitor", str)
    if monitor == "":
        args.tell("monitor", Fate.WITHOUT_EFFECT, why="it is empty")
    elif monitor is not None and c.pretraining:
        why = "best.safetensors, by kNN on training images, after each saved epoch"
        put(c.tree, "evaluate.every_epochs", max(1, every or 1))
        args.tell("monitor", Fate.REPLACED, put(c.tree, "save_best", True), why)
    elif monitor is not None:
        why = "no epoch is chosen by the test images; the last step is what is measured"
        args.tell("monitor", Fate.REPLACED, "the last step", why)
    _names(c, args)
    _only_eval(c, args)


def _names(c: File, args: Reader) -> None:
    """dirpath and filename: the run's folder, and a name for the encoder in it."""
    parent = c.value(args, "dirpath", str, default="runs") or "runs"
    template = c.value(args, "filename", str) or ""
    name = re.split(r"\{", template)[0].strip("-_. /") or c.path.stem
    if not c.pretraining:
        name = f"{name}-{c.folder}"
    c.result.run = str(Path(parent) / name)
    why = "a folder for each run: no two share one"
    args.tell("dirpath", Fate.REPLACED, f"run={c.result.run}", why)
    if not c.pretraining:
        why = "the classifier lies below evaluations/ there"
        args.tell("filename", Fate.REPLACED, f"run={c.result.run}", why)
    elif template:
        native, why = _template(Path(template).name)
        said = put(c.tree, "save_as", native or c.path.stem)
        args.tell("filename", Fate.REPLACED, said, why)


def _only_eval(c: File, args: Reader) -> None:
    only = c.value(args, "only_eval", bool, default=False)
    where = c.value(args, "ckpt_path", str)
    if c.pretraining:
        why = "pretraining reads none; a stopped run continues from its own checkpoints"
        args.tell("ckpt_path", Fate.WITHOUT_EFFECT, why=why)
        args.tell("only_eval", Fate.WITHOUT_EFFECT, why="is for linear evaluation")
        if only:
            args.refuse("only_eval", "is for linear evaluation, not for a file in pretrain/")
        return
    if only and not where:
        args.refuse("ckpt_path", "missing key; with only_eval, the trained classifier")
        return
    if only:
        c.result.classifier = where
        args.tell("only_eval", Fate.TAKEN, "--classifier")
        args.tell("ckpt_path", Fate.TAKEN, f"--classifier {where}")
        return
    args.tell("only_eval", Fate.TAKEN, "train, then test")
    args.tell("ckpt_path", Fate.WITHOUT_EFFECT, why="is for only_eval=True")


def arguments(c: File, args: Reader, method: Method | None) -> None:
    """[ssl_args]: the optimizer, its schedule and the method's own."""
    if not c.pretraining:
        for key in SSL_ARGS:
            args.take(key)
            args.tell(key, Fate.WITHOUT_EFFECT, why=TRAINED_ELSEWHERE)
        return
    if method is None:
        for key in SSL_ARGS:
            args.take(key)
            args.tell(key, Fate.WITHOUT_EFFECT)
        return
    c.tree["optimizer"] = {**method.optimizer}
    names = {**SSL_ARGS, **method.arguments}
    momentum = args.tree.get("momentum")
    if method.teacher and isinstance(momentum, (int, float)) and momentum >= 0.99:
        names["momentum"] = "method.momentum"
    for key, native in names.items():
        if not native:
            args.take(key)
            args.tell(key, Fate.WITHOUT_EFFECT, why=f"{method.name} has no such thing")
            continue
        kind = int if native.endswith(("_dim", "_size")) else float
        c.flat(key, native, kind, reader=args)
    if "lr" in args:
        put(c.tree, "optimizer.lr_scaling", "none")  # there, lr is for the whole batch
    if method.name == "byol" and args.tree.get("pred_hidden_dim") not in (
        None,
        args.tree.get("proj_hidden_dim"),
    ):
        args.refuse("pred_hidden_dim", "byol's predictor is as wide as proj_hidden_dim")


def _template(text: str) -> tuple[str, str]:
    """Lightning's file name template as save_as, and what is different.

    '{epoch}-{lin_acc1:.2f}' there becomes epoch=99-lin_acc1=38.70.
    """
    lost = []

    def native(found: re.Match) -> str:
        lead, name, form = found[1], found[2], found[3] or ""
        known = {"epoch": "epoch", "step": "step", "lin_acc1": "probe"}.get(name)
        if known is None and name.endswith("loss") and name != "lin_loss":
            known = "loss"
        if known is None:
            lost.append(name)
            return ""
        return f"{lead}{name}={{{known}{form}}}"

    result = re.sub(r"([-_. ]*)\{([\w/]+)(:[^}]*)?\}", native, text)
    why = "the encoder's name when all is done; epochs are counted from 1"
    return result, f"{why}; {', '.join(lost)} is not measured here" if lost else why
