"""United Perception's configuration of self-supervision (`task_names: ssl`) as a native one."""

import os
import re
from pathlib import Path
from typing import Any

from tacit import config as layers
from tacit.config import Tree
from tacit.data.sources import with_source
from tacit.dialects.report import Converted, Reader
from tacit.dialects.up_data import read_dataset
from tacit.dialects.up_net import TWO_VIEWS, phase_of, read_net, wrapper_of
from tacit.dialects.up_optim import OPTIMIZERS
from tacit.dialects.up_run import read_ema, read_hooks, read_runtime, read_saver
from tacit.dialects.up_trainer import read_trainer
from tacit.dialects.up_values import NOTHING, TAKEN, Draft, ignore
from tacit.dialects.up_yaml import Document, read_document, read_file
from tacit.evaluate.classify import FineTuned, LinearHeads
from tacit.train.engine import TrainConfig
from tacit.train.optim import OptimizerConfig, ScheduleConfig

SECTIONS = ("num_classes", "runtime", "dataset", "trainer", "saver", "hooks", "ema", "net")
MARKS = {"runtime", "dataset", "trainer", "saver", "net"}  # one of them is in every file
OURS = {"base", "data", "method", "views", "backbone", "evaluate", "run"}
NATIVE = OURS | set(TrainConfig.model_fields)
# further keys of an evaluation
MEASURED = {"fraction", "shots", "images", "untrained", "allow_overlap", "drop_path", "image_size"}
PROTOCOLS = {"linear-augmented": "linear-augmented-sgd", "finetune": "finetune"}
# keys that a protocol sets and a file may leave out, with the value that they have without either
NEUTRAL: dict[str, dict[str, Any]] = {
    "linear-augmented": {"schedule": ScheduleConfig(), "method": LinearHeads.Config()},
    "finetune": {"schedule": ScheduleConfig(), "method": FineTuned.Config()},
}


def recognises(path: Path, text: str) -> bool:
    """Whether the text has UP's sections; a broken file may still be one."""
    keys = set(re.findall(r"^([A-Za-z_]\w*):", text, re.MULTILINE))
    return len(keys & MARKS) > 1 or (bool(keys & MARKS) and not keys & NATIVE)


def convert(path: Path, overrides: list[str]) -> Converted:
    """The native recipe, or the evaluation, that a file asks for.

    Args:
        overrides: 'key=value' in UP's keys, or in Tacit's for what UP has none, which then go over
            what the file says.
    Raises: UserError that lists every unknown key and every value that cannot be had here.
    """
    document = read_document(read_file(path), str(path))
    given, native = _sorted(overrides)
    tree = _overridden(document.tree, given)
    net = tree.get("net")
    draft = Draft(phase_of(net), _processes())
    draft.adaptive = _adaptive(tree)
    if "device=cpu" in native:  # where batch norm has no statistics over all processes
        draft.put("device", "cpu")
    root = Reader(tree, str(path), document.lines)
    ignore(root, "the data say how many classes there are", "num_classes")
    read_runtime(root.inside("runtime"), draft)
    if draft.pretrains or net:
        read_net(root, draft)
    root.each("net")
    read_dataset(root.inside("dataset"), draft, wrapper_of(net) in TWO_VIEWS)
    if "trainer" in root:
        read_trainer(root.inside("trainer"), draft)
    if "saver" in root or not draft.pretrains:
        read_saver(root.inside("saver"), draft)
    read_hooks(root, draft)
    read_ema(root.inside("ema"), draft)
    _definitions(root, document)
    entries = root.finish(SECTIONS)
    protocol = None if draft.pretrains else _evaluation(draft)
    _lay_over(draft, native)
    return Converted(
        dialect="up",
        phase=draft.phase,
        tree=draft.tree,
        run=draft.run,
        subject=draft.subject,
        protocol=protocol,
        entries=entries,
    )


def _processes() -> int:
    """That torchrun has started, or will by the same command."""
    try:
        return max(1, int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError:
        return 1


def _adaptive(tree: Tree) -> bool:
    """Whether the optimizer normalises its steps, before anything is checked."""
    node: Any = tree
    for key in ("trainer", "optimizer", "type"):
        node = node.get(key) if isinstance(node, dict) else None
    return isinstance(node, str) and OPTIMIZERS.get(node, ("sgd",))[0] != "sgd"


# Overrides ----------------------------------------------------------------------------------------


def _sorted(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Those in UP's keys, and those in Tacit's."""
    ours = [w for w in overrides if re.split(r"[.=]", w)[0] in NATIVE | MEASURED]
    return [w for w in overrides if w not in ours], ours


def _overridden(tree: Tree, words: list[str]) -> Tree:
    """The file's tree under 'key=value'."""
    for word in words:
        key, _, value = word.partition("=")
        hook = re.fullmatch(r"hooks\.(\w+)-([\w.]+)", key)
        if hook:
            tree = _into_hook(tree, hook[1], hook[2], value)
            continue
        for layer in layers.parse_overrides([word]):
            tree = layers.merge(tree, layer)
    return tree


def _lay_over(d: Draft, words: list[str]) -> None:
    """Tacit's own keys over the converted ones."""
    for layer in layers.parse_overrides(words):
        if isinstance(layer.get("data"), dict):
            layer = {**layer, "data": with_source(layer["data"])}
        d.run = layer.pop("run", d.run)
        d.tree = layers.merge(d.tree, layer)


def _into_hook(tree: Tree, kind: str, key: str, value: str) -> Tree:
    """UP's 'hooks.TYPE-a.b': into the hook of a type, which is added if it is not there."""
    (layer,) = layers.parse_overrides([f"{key}={value}"])
    hooks = list(tree.get("hooks") or [])
    if not any(isinstance(h, dict) and h.get("type") == kind for h in hooks):
        hooks.append({"type": kind})
    same = [isinstance(h, dict) and h.get("type") == kind for h in hooks]
    merged = [layers.merge(h, layer) if at else h for h, at in zip(hooks, same, strict=True)]
    return {**tree, "hooks": merged}


# Definitions --------------------------------------------------------------------------------------


def _definitions(root: Reader, document: Document) -> None:
    """Names at the top that are no sections: blocks that aliases stand for."""
    for key, value in root.tree.items():
        if key in SECTIONS:
            continue
        block = isinstance(value, dict) and "type" in value
        used = document.anchors.get(key)
        if used:
            root.tell(key, TAKEN, why="read where its alias stands")
        elif used is not None and block:
            root.tell(key, NOTHING, why="defined, and no alias of it follows")
        elif block and key not in document.anchors:
            root.tell(key, NOTHING, why="has no anchor, so nothing can name it")


# Evaluations --------------------------------------------------------------------------------------


def _evaluation(d: Draft) -> str:
    """The protocol under the tree, which then says nothing that the file does not mean."""
    protocol = PROTOCOLS[d.phase]
    config = NEUTRAL[d.phase]
    method = config["method"].model_dump(mode="json")
    d.tree["method"] = {**method, **d.tree.get("method", {})}
    if "schedule" in d.tree:
        d.tree["schedule"] = {**config["schedule"].model_dump(mode="json"), **d.tree["schedule"]}
    if "optimizer" in d.tree:
        plain = OptimizerConfig().model_dump(mode="json")
        d.tree["optimizer"] = {**plain, **d.tree["optimizer"]}
    if d.phase == "finetune":
        d.tree.setdefault("drop_path", 0.0)
    views = d.tree.get("views")
    if views and "image_size" not in d.tree:
        d.tree["image_size"] = views[0]["size"]
    return protocol
