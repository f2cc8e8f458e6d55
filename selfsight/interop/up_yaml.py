"""Read UP's YAML, with the line of each key, and with the blocks that aliases refer to."""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from selfsight import config as layers
from selfsight.config import Tree
from selfsight.errors import UserError
from selfsight.yaml_text import read_user_text


@dataclass
class Document:
    """A parsed file."""

    tree: Tree = field(default_factory=dict)  # aliases and merge keys resolved
    lines: dict[str, int] = field(default_factory=dict)  # dotted key -> its line number
    aliased: set[str] = field(default_factory=set)  # top-level keys that an alias refers to


def read_document(path: Path) -> Document:
    """Raises: UserError with file, line and reason if the file is not a YAML mapping."""
    text = read_user_text(path)
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() == "...":  # left out on UP's page
            raise UserError(
                f"{path} line {number}: '...': write the missing lines here, or remove the dots"
            )
    document = Document()
    document.tree = layers.parse_yaml(text, str(path))  # bounds what its aliases stand for
    if not isinstance(document.tree, dict):
        found = type(document.tree).__name__
        raise UserError(f"{path}: expected 'key: value' lines, found {found}")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if isinstance(root, yaml.MappingNode):
            visits: dict[int, int] = {}
            _visit(root, "", document.lines, visits, frozenset())
            document.aliased = {key.value for key, node in root.value if visits[id(node)] > 1}
    except RecursionError:
        raise UserError(f"{path}: not valid YAML: an anchor contains its own alias") from None
    return document


def _visit(
    node: yaml.Node, prefix: str, lines: dict[str, int], visits: dict[int, int], above: frozenset
) -> None:
    """Collect the line of each key below a node, and count how often each node is used.

    An alias composes to the node of its anchor, whose keys keep the lines of the anchor.
    """
    if id(node) in above:
        raise RecursionError
    above |= {id(node)}
    visits[id(node)] = visits.get(id(node), 0) + 1
    if isinstance(node, yaml.MappingNode):
        for merged in (value for key, value in node.value if key.value == "<<"):
            # first, because keys of this mapping replace merged ones
            for one in merged.value if isinstance(merged, yaml.SequenceNode) else [merged]:
                _visit(one, prefix, lines, visits, above)
        below = [(key.value, key, value) for key, value in node.value if key.value != "<<"]
    elif isinstance(node, yaml.SequenceNode):
        below = [(place, one, one) for place, one in enumerate(node.value)]
    else:
        return
    for name, key, value in below:
        lines[f"{prefix}{name}"] = key.start_mark.line + 1
        _visit(value, f"{prefix}{name}.", lines, visits, above)
