"""UP's YAML with what a plain reading forgets: the lines of keys, and which anchors are used."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from selfsight import config as layers
from selfsight.config import Tree
from selfsight.errors import UserError


@dataclass
class Document:
    """A file.

    Attributes:
        tree: aliases and merge keys resolved.
        lines: dotted key -> line in the file.
        anchors: key at the top -> whether an alias of its anchor follows, if its value has one.
    """

    tree: Tree = field(default_factory=dict)
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


def read_document(path: Path) -> Document:
    """Raises: UserError with name, line and reason for what is not YAML, or not of keys."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read '{path}': {error}") from None
    for place, line in enumerate(text.splitlines(), 1):
        if line.strip() == "...":  # as on UP's page
            raise UserError(f"{path} line {place}: '...': write what it stands for, or remove it")
    document = Document()
    loader = _Marking(text)
    try:
        root = loader.get_single_node()
        if isinstance(root, yaml.MappingNode):
            _mark(root, "", document.lines, frozenset())
            anchors = {key.value: loader.anchored.get(id(node)) for key, node in root.value}
            document.anchors = {key: a in loader.used for key, a in anchors.items() if a}
    except RecursionError:
        raise UserError(f"{path}: not valid YAML: an alias stands inside its own anchor") from None
    except yaml.YAMLError:
        pass  # said below
    finally:
        loader.dispose()
    document.tree = layers.parse_yaml(text, str(path))
    if not isinstance(document.tree, dict):
        found = type(document.tree).__name__
        raise UserError(f"{path}: expected 'key: value' lines, found {found}")
    return document


def _mark(node: yaml.Node, prefix: str, lines: dict[str, int], above: frozenset[int]) -> None:
    """The line of each key below a node; of an alias's content, where the content stands."""
    if id(node) in above:
        raise RecursionError
    above |= {id(node)}
    if isinstance(node, yaml.MappingNode):
        merged = [below for key, below in node.value if key.value == "<<"]
        for below in merged:  # first, since keys beside it go over its keys
            for one in below.value if isinstance(below, yaml.SequenceNode) else [below]:
                _mark(one, prefix, lines, above)
        below = [(key.value, key, one) for key, one in node.value if key.value != "<<"]
    elif isinstance(node, yaml.SequenceNode):
        below = [(place, one, one) for place, one in enumerate(node.value)]
    else:
        return
    for name, at, one in below:
        lines[f"{prefix}{name}"] = at.start_mark.line + 1
        _mark(one, f"{prefix}{name}.", lines, above)
