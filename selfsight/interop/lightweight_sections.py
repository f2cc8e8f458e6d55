"""Lightweight-SSL's sections: wandb_args, ckpt_args, ssl_args."""

import math
import re
from pathlib import Path

from selfsight.interop.lightweight_file import TRAINED_ELSEWHERE, File
from selfsight.interop.lightweight_tables import LOGGERS, SSL_ARGS, WANDB_ARGS, Method
from selfsight.interop.report import Fate, Reader, put


def logs(c: File) -> None:
    logger = c.choice("log_type", LOGGERS, needed=False)
    if logger is not None:
        c.give(c.reader, "log_type", f"log.{logger}", {} if logger == "wandb" else True)
    args = c.reader.inside("wandb_args")
    for key, native in WANDB_ARGS.items():
        value = c.value(args, key, bool if key == "offline" else str)
        if logger != "wandb":
            c.ignore(args, [key], "is for log_type=wandb")
        elif value is not None:
            c.give(args, key, f"log.wandb.{native}", value)


def checkpoints(c: File, args: Reader, epochs: int) -> None:
    every = max(1, c.same(args, "every_n_epochs", "checkpoint.every_epochs", int) or 1)
    keep = c.value(args, "save_top_k", int, default=1)
    if keep == -1:
        c.give(args, "save_top_k", "checkpoint.keep", max(1, math.ceil(epochs / every)))
    elif keep < -1:
        args.refuse("save_top_k", "is a number of checkpoints, or -1 for all")
    elif "save_top_k" in args:
        why = "the newest; the best encoder has a file of its own, see monitor"
        c.give(args, "save_top_k", "checkpoint.keep", max(1, keep), why)
    monitored = c.value(args, "monitor", str) is not None
    if monitored and c.pretraining:
        why = "best.safetensors, by kNN on training images, after each saved epoch"
        put(c.tree, "evaluate.every_epochs", every)
        c.give(args, "monitor", "save_best", True, why)
    elif monitored:
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
        if only:
            args.refuse("only_eval", "is for linear evaluation, not for a file in pretrain/")
        c.ignore(args, ["only_eval"], "is for linear evaluation")
        why = "pretraining reads none; a stopped run continues from its own checkpoints"
        c.ignore(args, ["ckpt_path"], why)
    elif not only:
        args.tell("only_eval", Fate.TAKEN, "train, then test")
        c.ignore(args, ["ckpt_path"], "is for only_eval=True")
    elif where is None:
        args.refuse("ckpt_path", "missing key; with only_eval, the trained classifier")
    else:
        c.result.classifier = where
        args.tell("only_eval", Fate.TAKEN, "--classifier")
        args.tell("ckpt_path", Fate.TAKEN, f"--classifier {where}")


def arguments(c: File, args: Reader, method: Method | None) -> None:
    """[ssl_args]: the optimizer, its schedule and the method's own."""
    if method is None or not c.pretraining:
        return c.ignore(args, SSL_ARGS, TRAINED_ELSEWHERE)
    c.tree["optimizer"] = {**method.optimizer}
    names = {**SSL_ARGS, **method.arguments}
    momentum = args.tree.get("momentum")
    if method.teacher and isinstance(momentum, (int, float)) and momentum >= 0.99:
        names["momentum"] = "method.momentum"
    for key, native in names.items():
        if native:
            c.same(args, key, native, int if native.endswith(("_dim", "_size")) else float)
        else:
            c.ignore(args, [key], f"{method.name} has no such thing")
    if "lr" in args:
        put(c.tree, "optimizer.lr_scaling", "none")  # there, lr is for the whole batch
    head, predictor = args.tree.get("proj_hidden_dim"), args.tree.get("pred_hidden_dim")
    if method.name == "byol" and head is not None and predictor not in (None, head):
        args.refuse("pred_hidden_dim", "byol's predictor is as wide as proj_hidden_dim")
    return None


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
