"""Lightweight-SSL's sections: wandb_args, ckpt_args, ssl_args."""

import math
import re
from pathlib import Path

from selfsight.interop.lightweight_images import Keys
from selfsight.interop.lightweight_tables import LOGGERS, SSL_ARGS, WANDB_ARGS, Method
from selfsight.interop.section import REPLACED, TAKEN

NOT_EVALUATED = "describes the pretraining, which is recorded in the encoder's own file"


def read_logs(r: Keys) -> None:
    """log_type and [wandb_args]."""
    logger = r.choose("log_type", LOGGERS, "log_type")
    if logger is not None:
        r.set("log_type", f"log.{logger}", {} if logger == "wandb" else True)
    args = r.inside("wandb_args")
    if logger == "wandb":
        args.read(WANDB_ARGS)
    else:
        args.ignore("only for log_type=wandb", *(row[1] for row in WANDB_ARGS))


def read_checkpoints(r: Keys, folder: str, epochs: int) -> None:
    """[ckpt_args]; `folder`: the name of the file's folder."""
    args, out = r.inside("ckpt_args"), r.out
    every = max(1, args.copy("every_n_epochs", "checkpoint.every_epochs", "@int") or 1)
    keep = args.value("save_top_k", "@int", 1)
    if keep == -1:
        args.set("save_top_k", "checkpoint.keep", max(1, math.ceil(epochs / every)))
    elif keep < -1:
        args.refuse("save_top_k", "must be at least 0, or -1 for all checkpoints")
    elif "save_top_k" in args:
        why = "the newest; the best encoder has its own file, see monitor"
        args.set("save_top_k", "checkpoint.keep", max(1, keep), why)
    monitored = args.value("monitor", "@str") is not None
    if monitored and out.pretrains:
        why = "best.safetensors, by kNN on training images, after each saved epoch"
        out.put("evaluate.every_epochs", every)
        args.set("monitor", "save_best", True, why)
    elif monitored:
        why = "test images do not choose an epoch; the last step is measured"
        args.record("monitor", REPLACED, "the last step", why)
    _names(args, folder)
    _only_eval(args)


def _names(r: Keys, folder: str) -> None:
    """dirpath and filename: the run's folder, and another name for its encoder."""
    out, stem = r.out, Path(r.file).stem
    parent, template = r.value("dirpath", "@str", "runs"), r.value("filename", "@str", "")
    name = template.split("{")[0].strip("-_. /") or stem
    name = name if out.pretrains else f"{name}-{folder}"
    out.run = str(Path(parent) / name)
    r.record("dirpath", REPLACED, f"run={out.run}", "each run has its own folder")
    if not out.pretrains:
        why = "the classifier is in its folder evaluations/"
        r.record("filename", REPLACED, f"run={out.run}", why)
    elif template:
        native, why = _template(Path(template).name)
        r.set("filename", "save_as", native or stem, why)


def _template(text: str) -> tuple[str, str]:
    """Lightning's file name template as save_as, and how the name differs.

    '{epoch}-{lin_acc1:.2f}' becomes 'epoch={epoch}-lin_acc1={probe:.2f}'.
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
    why = "the encoder's name at the end of training; epochs are counted from 1"
    return result, f"{why}; {', '.join(lost)} is not measured" if lost else why


def _only_eval(r: Keys) -> None:
    only, where = r.value("only_eval", "@bool", False), r.value("ckpt_path", "@str")
    if r.out.pretrains:
        if only:
            r.refuse("only_eval", "only for linear evaluation; remove it from files in pretrain/")
        r.ignore("only for linear evaluation", "only_eval")
        r.ignore("a stopped pretraining continues from its own checkpoints", "ckpt_path")
    elif not only:
        r.record("only_eval", TAKEN, "train, then test")
        r.ignore("only for only_eval=True", "ckpt_path")
    elif where is None:
        r.refuse("ckpt_path", "missing key; only_eval needs the trained classifier")
    else:
        r.out.classifier = where
        r.record("only_eval", TAKEN, "--classifier")
        r.record("ckpt_path", TAKEN, f"--classifier {where}")


def read_arguments(r: Keys, method: Method | None) -> None:
    """[ssl_args]: the optimizer, its schedule, and the method's own keys."""
    args, out = r.inside("ssl_args"), r.out
    if method is None or not out.pretrains:
        args.ignore(NOT_EVALUATED, *SSL_ARGS)
        return
    out.tree["optimizer"] = {**method.optimizer}
    names = {**SSL_ARGS, **method.arguments}
    momentum = args.tree.get("momentum")
    if method.teacher and isinstance(momentum, (int, float)) and momentum >= 0.99:
        names["momentum"] = "method.momentum"
    for key, native in names.items():
        if native:
            whole = native.endswith(("_dim", "_size"))
            args.copy(key, native, "@int" if whole else "@float")
        else:
            args.ignore(f"{method.name} has no such argument", key)
    if "lr" in args:
        out.put("optimizer.lr_scaling", "none")  # lr is for the whole batch
    hidden, predictor = args.tree.get("proj_hidden_dim"), args.tree.get("pred_hidden_dim")
    if method.name == "byol" and hidden is not None and predictor not in (None, hidden):
        why = f"byol's predictor is as wide as proj_hidden_dim; write {hidden}"
        args.refuse("pred_hidden_dim", why)
