"""Write a converted file: a recipe, or an evaluation that begins with the keys of `HEAD`."""

import json
from pathlib import Path
from typing import get_args

import yaml

from selfsight import config as layers
from selfsight.errors import UserError
from selfsight.interop.report import Converted, Phase

HEAD = ("phase", "subject", "protocol", "classifier", "run")
NAME = "native"
MARK = ", by selfsight convert. Run it with: selfsight run FILE"


def to_yaml(converted: Converted, origin: str) -> str:
    """The file's text; `read` and `selfsight run` take it.

    Args:
        origin: the file that was converted.
    """
    head = f"# {origin} ({converted.dialect}){MARK}\n"
    tree = {"phase": converted.phase} if converted.phase != "pretrain" else {}
    tree |= {key: getattr(converted, key) for key in HEAD[1:] if getattr(converted, key)}
    plain = json.loads(json.dumps(tree | converted.tree))
    return head + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def is_converted(path: Path) -> bool:
    """Whether the file is one that `to_yaml` made."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline().rstrip("\n").endswith(MARK)


def read(path: Path, overrides: list[str]) -> Converted | None:
    """The evaluation that a YAML file with the key `phase` describes; None for another file."""
    if path.suffix.lower() not in (".yaml", ".yml") or not path.is_file():
        return None
    tree = layers.read_yaml(path)
    if "phase" not in tree:
        return None
    for layer in layers.parse_overrides(overrides):
        tree = layers.merge(tree, layer)
    head = {key: tree.pop(key, None) for key in HEAD}
    known = [phase for phase in get_args(Phase) if phase != "pretrain"]
    if head["phase"] not in known:
        hint = layers.near(str(head["phase"]), known) or f" Known: {', '.join(known)}"
        raise UserError(f"{path}: phase={head['phase']}: is not an evaluation.{hint}")
    if head["subject"] is None:
        raise UserError(f"{path}: Missing key 'subject': the encoder to measure")
    return Converted(NAME, tree=tree, **head)


def arguments(tree: layers.Tree) -> list[str]:
    """A tree as 'key=value', one for each key of its top, which any command takes."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in tree.items()]
