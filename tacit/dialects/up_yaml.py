"""UP's YAML with what a plain reading forgets: the lines of keys, and which anchors are used."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tacit import config as layers
from tacit.config import Tree
from tacit.errors import UserError


@dataclass
class Document:
    """A file.

    Attributes:
        tree: aliases and merge keys resolved.
        lines: dotted key -> line in the file.
        anchors: key at the top -> whether an alias of its anchor follows, if its value has one.
    """

    tree: Tree
    lines: dict[str, int] = field(default_factory=dict)
    anchors: dict[str, bool] = field(default_factory=dict)


class _Marking(yaml.SafeLoader):
    """Composes nodes, and notes which have an anchor and which anchors were used."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.anchored: dict[int, str] = {}  # id of a node -> its anchor
        self.used: set[str] = set()

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            self.used.add(event.anchor)
            return super().compose_node(parent, index)
        node = super().compose_node(parent, index)
        if event.anchor:
            self.anchored[id(node)] = event.anchor
        return node


def read_document(text: str, name: str) -> Document:
    """Raises: UserError with name, line and reason for what is not YAML, or not of keys."""
    try:
        tree = layers.parse_yaml(text, name)
    except RecursionError:
        raise UserError(f"{name}: not valid YAML: an alias stands inside its own anchor") from None
    if not isinstance(tree, dict):
        raise UserError(f"{name}: expected 'key: value' lines, found {type(tree).__name__}")
    loader = _Marking(text)
    try:
        root = loader.get_single_node()
    finally:
        loader.dispose()
    document = Document(tree)
    _mark(root, "", document.lines, frozenset())
    for key, node in root.value:
        anchor = loader.anchored.get(id(node))
        if anchor:
            document.anchors[key.value] = anchor in loader.used
    if _circular(tree, frozenset()):
        raise UserError(f"{name}: not valid YAML: an alias stands inside its own anchor")
    return document


def _mark(node: yaml.Node, prefix: str, lines: dict[str, int], above: frozenset[int]) -> None:
    """The line of each key below a node; of an alias's content, where the content stands."""
    if id(node) in above:
        return
    above |= {id(node)}
    if isinstance(node, yaml.MappingNode):
        for key, below in node.value:
            if key.value == "<<":
                for merged in below.value if isinstance(below, yaml.SequenceNode) else [below]:
                    _mark(merged, prefix, lines, above)
        for key, below in node.value:
            path = f"{prefix}{key.value}"
            if key.value != "<<":
                lines[path] = key.start_mark.line + 1
                _mark(below, f"{path}.", lines, above)
    elif isinstance(node, yaml.SequenceNode):
        for place, below in enumerate(node.value):
            lines[f"{prefix}{place}"] = below.start_mark.line + 1
            _mark(below, f"{prefix}{place}.", lines, above)


def _circular(tree: Any, above: frozenset[int]) -> bool:
    if not isinstance(tree, (dict, list)):
        return False
    if id(tree) in above:
        return True
    below = tree.values() if isinstance(tree, dict) else tree
    return any(_circular(one, above | {id(tree)}) for one in below)


def read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read '{path}': {error}") from None
