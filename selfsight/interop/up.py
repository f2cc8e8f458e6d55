"""United Perception's configuration of self-supervision (`task_names: ssl`) as a native one."""

import os
import re
from pathlib import Path
from typing import Any

from selfsight import config as layers
from selfsight.config import Tree
from selfsight.data.sources.open import with_source
from selfsight.evaluate.classifiers import FineTuned, LinearHeads
from selfsight.interop.report import Converted
from selfsight.interop.up_data import read_dataset
from selfsight.interop.up_net import CLASSES, phase_of, read_net, wrapper_of
from selfsight.interop.up_run import read_ema, read_hooks, read_runtime, read_saver
from selfsight.interop.up_trainer import read_trainer
from selfsight.interop.up_values import NOTHING, TAKEN, Draft, Keys
from selfsight.interop.up_yaml import Document, read_document
from selfsight.train.engine import TrainConfig
from selfsight.train.optim import OptimizerConfig, ScheduleConfig

SECTIONS = ("num_classes", "runtime", "dataset", "trainer", "saver", "hooks", "ema", "net")
MARKS = {"runtime", "dataset", "trainer", "saver", "net"}  # one of them is in every file
OURS = {"base", "data", "method", "views", "backbone", "evaluate", "run"}
OURS |= {"weights", "resume", "save_best", "save_as"}
NATIVE = OURS | set(TrainConfig.model_fields)
# further keys of an evaluation
MEASURED = {"fraction", "shots", "images", "untrained", "allow_overlap", "drop_path", "image_size"}
# phase -> its protocol, and what it trains
EVALUATIONS: dict[str, tuple[str, Any]] = {
    "linear-augmented": ("linear-augmented-sgd", LinearHeads.Config),
    "finetune": ("finetune", FineTuned.Config),
}


def recognises(path: Path, text: str) -> bool:
    """Whether the text has UP's sections; a broken file may still be one."""
    keys = set(re.findall(r"^([A-Za-z_]\w*):", text, re.MULTILINE))
    return len(keys & MARKS) > 1 or (bool(keys & MARKS) and not keys & NATIVE)


def convert(path: Path, overrides: list[str]) -> Converted:
    """The native recipe, or the evaluation, that a file asks for.

    Args:
        overrides: 'key=value' in UP's keys, or in Selfsight's for what UP has none, which then go over
            what the file says.
    Raises: UserError that lists every unknown key and every value that cannot be had here.
    """
    document = read_document(path)
    given, native = _sorted(overrides)
    tree = _overridden(document.tree, given)
    net = tree.get("net")
    processes = int(os.environ.get("WORLD_SIZE", 1))  # that torchrun has started
    draft = Draft(phase_of(net), wrapper_of(net), processes)
    if "device=cpu" in native:  # where batch norm has no statistics over all processes
        draft.put("device", "cpu")
    root = Keys(tree, draft, str(path), document.lines)
    _read(root)
    _definitions(root, document)
    if not draft.pretrains:
        _as_evaluation(draft)
    _lay_over(draft, native)
    return Converted(
        dialect="up",
        phase=draft.phase,
        tree=draft.tree,
        run=draft.run,
        subject=draft.subject,
        protocol=None if draft.pretrains else EVALUATIONS[draft.phase][0],
        entries=root.finish(),
    )


def _read(root: Keys) -> None:
    """All sections; the data before the trainer, whose rates depend on the batch."""
    root.ignore(CLASSES, "num_classes")
    read_runtime(root.inside("runtime"))
    read_dataset(root.inside("dataset"))
    trainer, saver = root.inside("trainer"), root.inside("saver")
    if trainer:
        read_trainer(trainer)
    read_net(root)
    if saver or not root.d.pretrains:
        read_saver(saver)
    read_hooks(root)
    read_ema(root.inside("ema"))


# Overrides ----------------------------------------------------------------------------------------


def _sorted(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Those in UP's keys, and those in Selfsight's."""
    ours = [w for w in overrides if re.split(r"[.=]", w)[0] in NATIVE | MEASURED]
    return [w for w in overrides if w not in ours], ours


def _overridden(tree: Tree, words: list[str]) -> Tree:
    """The file's tree under 'key=value'."""
    for word in words:
        hook = re.fullmatch(r"hooks\.(\w+)-([\w.]+=.*)", word, re.DOTALL)
        for layer in layers.parse_overrides([hook[2] if hook else word]):
            tree = _into_hook(tree, hook[1], layer) if hook else layers.merge(tree, layer)
    return tree


def _into_hook(tree: Tree, kind: str, layer: Tree) -> Tree:
    """UP's 'hooks.TYPE-a.b': into the hook of a type, which is added if it is not there."""
    hooks = list(tree.get("hooks") or [])
    same = [isinstance(hook, dict) and hook.get("type") == kind for hook in hooks]
    if not any(same):
        hooks, same = [*hooks, {"type": kind}], [*same, True]
    merged = [layers.merge(h, layer) if at else h for h, at in zip(hooks, same, strict=True)]
    return {**tree, "hooks": merged}


def _lay_over(d: Draft, words: list[str]) -> None:
    """Selfsight's own keys over the converted ones."""
    for layer in layers.parse_overrides(words):
        if isinstance(layer.get("data"), dict):
            layer = {**layer, "data": with_source(layer["data"])}
        d.run = layer.pop("run", d.run)
        d.tree = layers.merge(d.tree, layer)


# The whole ----------------------------------------------------------------------------------------


def _definitions(root: Keys, document: Document) -> None:
    """Names at the top that are no sections: blocks that aliases stand for."""
    for key, value in root.tree.items():
        if key in SECTIONS:
            continue
        if document.anchors.get(key):
            root.tell(key, TAKEN, why="read where its alias stands")
        elif isinstance(value, dict) and "type" in value:
            root.tell(key, NOTHING, why="defined, and no alias of it follows")


def _as_evaluation(d: Draft) -> None:
    """All that the protocol under the tree sets and the file leaves out gets a neutral value."""
    neutral = {"optimizer": OptimizerConfig, "schedule": ScheduleConfig}
    for key, config in {**neutral, "method": EVALUATIONS[d.phase][1]}.items():
        if key in d.tree or key == "method":
            d.tree[key] = {**config().model_dump(mode="json"), **d.tree.get(key, {})}
    if d.phase == "finetune":
        d.tree.setdefault("drop_path", 0.0)
    views = d.tree.get("views")
    if views and "size" in views[0]:
        d.tree.setdefault("image_size", views[0]["size"])
