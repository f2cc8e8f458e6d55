"""The result of a conversion: the native configuration, and the result for each original key."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from selfsight.config import Tree

Phase = Literal["pretrain", "linear", "linear-augmented", "finetune"]  # commands of Selfsight


class Fate(StrEnum):
    """The result for a key. A refused key has none: the conversion fails and lists it."""

    TAKEN = "taken over"  # the native key means the same
    REPLACED = "replaced"  # a native key or value with a similar meaning takes its place
    WITHOUT_EFFECT = "without effect"  # the original did not read it, or Selfsight does not need it


@dataclass(frozen=True)
class Entry:
    """One key of the original file."""

    key: str  # dotted
    value: Any
    fate: Fate
    by: str = ""  # the native key=value, if there is one
    why: str = ""  # reason or explanation
    where: str = ""  # file, and line if known


@dataclass
class Converted:
    """A file of another system as a native configuration."""

    dialect: str  # name of the original format
    phase: Phase  # the command that runs it
    tree: Tree = field(default_factory=dict)  # a recipe, or an evaluation's changes to its protocol
    run: str | None = None  # folder of the run, or of the evaluation's results
    subject: str | None = None  # of an evaluation: the checkpoint to measure
    protocol: str | None = None  # of an evaluation: the shipped protocol that `tree` changes
    classifier: str | None = None  # of an evaluation: test this trained classifier, train none
    processes: int = 1  # number of processes on one machine that the file asks for
    entries: list[Entry] = field(default_factory=list)  # one for each key, in the file's order

    @property
    def pretrains(self) -> bool:
        return self.phase == "pretrain"

    def put(self, key: str, value: Any) -> str:
        """Set a dotted native key; returns 'key=value', for `Entry.by`."""
        *parents, leaf = key.split(".")
        node = self.tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
        return f"{key}={shown(value)}"


def shown(value: Any) -> str:
    """A value as it is written in YAML."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)
