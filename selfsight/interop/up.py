"""United Perception's YAML files of self-supervision (`task_names: ssl`)."""

import os
import re
from pathlib import Path
from typing import Any

from selfsight import config as layers
from selfsight.config import Tree
from selfsight.data.config import with_source
from selfsight.evaluate.classifiers import FineTuned, LinearHeads
from selfsight.interop.report import Converted
from selfsight.interop.section import TAKEN, Section
from selfsight.interop.up_data import read_dataset
from selfsight.interop.up_draft import Draft, Keys
from selfsight.interop.up_net import CLASSES, phase_of, read_net, wrapper_of
from selfsight.interop.up_run import read_ema, read_hooks, read_runtime, read_saver
from selfsight.interop.up_trainer import read_trainer
from selfsight.interop.up_yaml import read_document
from selfsight.train.engine import TrainConfig
from selfsight.train.optim import OptimizerConfig, ScheduleConfig

SECTIONS = ("num_classes", "runtime", "dataset", "trainer", "saver", "hooks", "ema", "net")
MARKS = {"runtime", "dataset", "trainer", "saver", "net"}  # every file of UP has one of these
NATIVE = {"base", "data", "method", "views", "backbone", "evaluate", "run"} | {
    *("weights", "resume", "extend", "save_best", "save_as"),
    *TrainConfig.model_fields,
}
# native keys that only evaluations have
MEASURED = {"fraction", "shots", "images", "untrained", "allow_overlap", "drop_path", "image_size"}
# phase -> its protocol, and the configuration of what it trains
EVALUATIONS: dict[str, tuple[str, Any]] = {
    "linear-augmented": ("linear-augmented-sgd", LinearHeads.Config),
    "finetune": ("finetune", FineTuned.Config),
}


def recognises(path: Path, text: str) -> bool:
    """Whether the text has UP's sections; it may still hold mistakes."""
    keys = set(re.findall(r"^([A-Za-z_]\w*):", text, re.MULTILINE))
    return len(keys & MARKS) > 1 or (bool(keys & MARKS) and not keys & NATIVE)


def convert(path: Path, overrides: list[str]) -> Converted:
    """The native recipe, or the evaluation, that a file describes.

    Args:
        overrides: 'key=value' in UP's keys, or in Selfsight's, which replace what the file sets.
    Raises: UserError that lists every unknown key and every refused value.
    """
    document = read_document(path)
    native = [w for w in overrides if re.split(r"[.=]", w)[0] in NATIVE | MEASURED]
    tree = _override(document.tree, [w for w in overrides if w not in native])
    net = tree.get("net")
    ranks = int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
    draft = Draft("up", phase_of(net), wrapper=wrapper_of(net), ranks=ranks)
    if "device=cpu" in native:  # where batch norm cannot share statistics
        draft.put("device", "cpu")
    root: Keys = Section.of_file(tree, draft, str(path), document.lines)
    _read(root)
    _definitions(root, document.aliased)
    if not draft.pretrains:
        _complete_evaluation(draft)
    _override_native(draft, native)
    draft.entries = root.finish()
    return draft


def _read(root: Keys) -> None:
    """All sections; the data before the trainer, whose learning rate depends on the batch."""
    root.ignore(CLASSES, "num_classes")
    read_runtime(root.inside("runtime"))
    read_dataset(root.inside("dataset"))
    trainer, saver = root.inside("trainer"), root.inside("saver")
    if trainer:
        read_trainer(trainer)
    read_net(root)
    if saver or not root.out.pretrains:
        read_saver(saver)
    read_hooks(root)
    read_ema(root.inside("ema"))


def _definitions(root: Keys, aliased: set[str]) -> None:
    """Other top-level keys: blocks for aliases."""
    for key, value in root.tree.items():
        if key not in SECTIONS and key in aliased:
            root.record(key, TAKEN, why="read where an alias refers to it")
        elif key not in SECTIONS and isinstance(value, dict) and "type" in value:
            root.ignore("no alias refers to this block", key)


def _complete_evaluation(draft: Draft) -> None:
    """Give a neutral value to what the protocol sets and the file leaves out."""
    protocol, method = EVALUATIONS[draft.phase]
    draft.protocol = protocol
    configs = {"optimizer": OptimizerConfig, "schedule": ScheduleConfig, "method": method}
    for key, config in configs.items():
        if key in draft.tree or key == "method":
            draft.tree[key] = {**config().model_dump(mode="json"), **draft.tree.get(key, {})}
    if draft.phase == "finetune":
        draft.tree.setdefault("drop_path", 0.0)
    views = draft.tree.get("views")
    if views and "size" in views[0]:
        draft.tree.setdefault("image_size", views[0]["size"])


# Overrides ----------------------------------------------------------------------------------------


def _override(tree: Tree, words: list[str]) -> Tree:
    """Merge 'key=value' in UP's keys into the file's tree.

    'hooks.TYPE-a.b=value' changes the hook of a type, and adds it if the file does not have it.
    """
    for word in words:
        hook = re.fullmatch(r"hooks\.(\w+)-([\w.]+=.*)", word, re.DOTALL)
        for layer in layers.parse_overrides([hook[2] if hook else word]):
            tree = _merge_hook(tree, hook[1], layer) if hook else layers.merge(tree, layer)
    return tree


def _merge_hook(tree: Tree, kind: str, layer: Tree) -> Tree:
    hooks = list(tree.get("hooks") or [])
    same = [isinstance(hook, dict) and hook.get("type") == kind for hook in hooks]
    if not any(same):
        hooks, same = [*hooks, {"type": kind}], [*same, True]
    merged = [layers.merge(h, layer) if at else h for h, at in zip(hooks, same, strict=True)]
    return {**tree, "hooks": merged}


def _override_native(draft: Draft, words: list[str]) -> None:
    """Merge 'key=value' in Selfsight's keys into the converted tree."""
    for layer in layers.parse_overrides(words):
        if isinstance(layer.get("data"), dict):
            layer = {**layer, "data": with_source(layer["data"])}
        draft.run = layer.pop("run", draft.run)
        draft.tree = layers.merge(draft.tree, layer)
