"""What a conversion says: the native recipe, and the fate of each key of the original file."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from selfsight.config import Tree, near
from selfsight.errors import UserError

Phase = Literal["pretrain", "linear", "linear-augmented", "finetune"]  # commands of Selfsight


class Fate(StrEnum):
    """What became of a key. A refused key has no fate: the conversion is an error that lists it."""

    TAKEN = "taken over"  # the native key means the same
    REPLACED = "replaced"  # another key or another value does here what this one did there
    WITHOUT_EFFECT = "without effect"  # nothing there read it, or nothing it asks for is seen here


@dataclass(frozen=True)
class Entry:
    """One key of the original file."""

    key: str  # dotted
    value: Any
    fate: Fate
    by: str = ""  # the native key=value, if there is one
    why: str = ""  # of all that is not taken over as it was
    where: str = ""  # the file, and the line where it is known


@dataclass
class Converted:
    """A file of another system as a native one."""

    dialect: str
    phase: Phase  # the command that runs it
    tree: Tree  # pretrain: a recipe; else: keys of the evaluation, over those of the protocol
    run: str | None = None  # folder of the run, or of the evaluation's results
    subject: str | None = None  # of an evaluation: the checkpoint that is measured
    protocol: str | None = None  # of an evaluation: the shipped protocol under the tree
    classifier: str | None = None  # of an evaluation: train none, only test this one
    processes: int = 1  # that the file asks for, on one machine
    entries: list[Entry] = field(default_factory=list)  # one for each key, in the file's order


@dataclass
class _Log:
    """What all readers of one file share."""

    file: str
    lines: dict[str, int]
    asked: dict[str, set[str]] = field(default_factory=dict)  # prefix -> names that were looked up
    entries: dict[str, Entry] = field(default_factory=dict)
    taken: dict[str, Any] = field(default_factory=dict)  # read, and not told about yet
    problems: dict[str, str] = field(default_factory=dict)


class Reader:
    """A mapping of the original file, whose keys are read and told about one by one.

    `take` looks a value up, `tell` says what became of it, `refuse` notes that it cannot be had;
    `inside` and `each` read nested mappings. `finish` raises all that was refused, and the keys
    that nobody looked up, at once.
    """

    def __init__(
        self,
        tree: Tree,
        file: str,
        lines: dict[str, int] | None = None,
        prefix: str = "",
        log: _Log | None = None,
    ) -> None:
        """Args:
        file: for messages.
        lines: dotted key -> its line in the file, where known.
        prefix, log: of a nested mapping; for `inside` and `each`.
        """
        self.tree, self.prefix = tree, prefix
        self.log = log or _Log(file, lines or {})
        self.log.asked.setdefault(prefix, set())

    def __contains__(self, key: str) -> bool:
        return key in self.tree

    def __bool__(self) -> bool:
        return bool(self.tree)

    def path(self, key: str) -> str:
        """The dotted key in the file."""
        return f"{self.prefix}{key}"

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default; somebody must then `tell` what became of it."""
        self.log.asked[self.prefix].add(key)
        if key not in self.tree:
            return default
        path = self.path(key)
        if path not in self.log.entries:
            self.log.taken.setdefault(path, self.tree[key])
        return self.tree[key]

    def tell(self, key: str, fate: Fate, by: str = "", why: str = "") -> None:
        """What became of a key; of one that is not in the file nothing has to be told."""
        self.log.asked[self.prefix].add(key)
        if key not in self.tree:
            return
        path = self.path(key)
        self.log.taken.pop(path, None)
        self.log.entries[path] = Entry(path, self.tree[key], fate, by, why, self.where(path))

    def refuse(self, key: str, why: str) -> None:
        """Note that a value cannot be had here: why, and what to do instead; the first reason
        counts."""
        self.log.asked[self.prefix].add(key)
        path = self.path(key)
        self.log.taken.pop(path, None)
        shown = f"{path}={self.tree[key]}" if key in self.tree else path
        self.log.problems.setdefault(path, f"{self.where(path)}: {shown}: {why}")

    def inside(self, key: str) -> "Reader":
        """The mapping below a key; an empty one if the key is absent or holds nothing."""
        self.log.asked[self.prefix].add(key)
        below = self.tree.get(key)
        path = self.path(key)
        if below is not None and not isinstance(below, dict):
            self.refuse(key, "expected keys below it")
        if key in self.tree and not below and path not in self.log.problems:
            self.tell(key, Fate.WITHOUT_EFFECT, why="it is empty")
        return Reader(below if isinstance(below, dict) else {}, "", {}, f"{path}.", self.log)

    def each(self, key: str) -> "list[Reader]":
        """The mappings of a list below a key; none if the key is absent or holds nothing."""
        self.log.asked[self.prefix].add(key)
        below = self.tree.get(key)
        if not below:
            if key in self.tree:
                self.tell(key, Fate.WITHOUT_EFFECT, why="it is empty")
            return []
        if not isinstance(below, list) or not all(isinstance(one, dict) for one in below):
            self.refuse(key, "expected a list of mappings")
            return []
        path = self.path(key)
        return [Reader(one, "", {}, f"{path}.{n}.", self.log) for n, one in enumerate(below)]

    def where(self, path: str) -> str:
        """The file, with the line of a dotted key where it is known."""
        while path and path not in self.log.lines:  # of a value's part: the line of the value
            path = path.rpartition(".")[0]
        return f"{self.log.file}:{self.log.lines[path]}" if path else self.log.file

    def finish(self) -> list[Entry]:
        """The entries of the whole file, in its order.

        Raises: UserError that lists everything refused and every unknown key, a line each.
        """
        order = _keys(self.tree, self.prefix, self.log)
        told = {*self.log.entries, *self.log.problems, *self.log.taken}
        for path in order:
            if path not in told:
                self.log.problems[path] = self._unknown(path)
        if self.log.problems:
            raise UserError("\n".join(self.log.problems.values()))
        if self.log.taken:
            raise AssertionError(f"{list(self.log.taken)}: nobody told what became of it")
        return [self.log.entries[path] for path in order]

    def _unknown(self, path: str) -> str:
        prefixes = (p for p in self.log.asked if path.startswith(p))
        prefix = max(prefixes, key=len)
        name = path.removeprefix(prefix).partition(".")[0]
        names = sorted(self.log.asked[prefix])
        elsewhere = [f"{p}{n}" for p, asked in self.log.asked.items() for n in asked if n == name]
        hint = near(name, names)
        if not hint and elsewhere:
            hint = f" Did you mean '{elsewhere[0]}'?"
        if not hint and names:
            hint = f" Known here: {', '.join(names)}."
        return f"{self.where(path)}: unknown key '{path}'.{hint}"


def _keys(tree: Any, prefix: str, log: _Log) -> list[str]:
    """The dotted keys that need an entry: leaves, or whatever was told about as a whole."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, value in items:
        path = f"{prefix}{key}"
        whole = path in log.entries or path in log.taken or path in log.problems
        looked_into = any(asked.startswith(f"{path}.") for asked in log.asked)
        if not whole and looked_into and isinstance(value, (dict, list)) and value:
            found += _keys(value, f"{path}.", log)
        else:
            found.append(path)
    return found


def put(tree: Tree, key: str, value: Any) -> str:
    """Set a dotted native key in a tree; returns 'key=value', for `Entry.by`."""
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
    node[leaf] = value
    return f"{key}={shown(value)}"


def shown(value: Any) -> str:
    """A value as one writes it in YAML."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)
