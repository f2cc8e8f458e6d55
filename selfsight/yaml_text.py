"""YAML that anyone may have written, and key=value arguments, as plain data: bounded in time and
memory, each mistake one line."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from selfsight.errors import UserError
from selfsight.files import Damaged, read_text

Tree = dict[str, Any]
# Keys whose values are paths or names: on the command line their text is taken as it is, since YAML
# would read 2024 as a number, 2024-01-02 as a date, and `photos #2` as `photos`.
PATHS = ("data.path", "data.test_path", "data.image_dir", "data.test_image_dir")
TEXTS = (*PATHS, "run", "weights", "resume", "images", "save_as")
TEXTS += ("log.wandb.name", "log.wandb.project", "log.wandb.entity", "log.wandb.folder")
TEXTS += ("log.trackio.name", "log.trackio.project", "log.trackio.space_id")
TEXTS += ("log.mlflow.name", "log.mlflow.experiment", "log.mlflow.tracking_uri")
LONGEST_YAML = 2**20  # characters
MOST_VALUES = 100_000  # of a YAML text, with those that aliases stand for


class _Loader(yaml.SafeLoader):
    """Safe YAML where 1e-3 is a number and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not isinstance(key, str):
                reason = "a key is a list or a mapping"
                raise yaml.constructor.ConstructorError(None, None, reason, key_node.start_mark)
            if key != "<<" and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$|^[-+]?\.[0-9]+[eE][-+]?[0-9]+$"
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML text. Raises: UserError with the name, the line and the reason."""
    if len(text) > LONGEST_YAML:
        raise UserError(
            f"{name}: {len(text):,} characters of YAML, at most {LONGEST_YAML:,} are read"
        )
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _expanded(node, {}, name)
        return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise UserError(f"{name}: not valid YAML: nested too deeply") from None
    except ValueError as error:  # of values that look like a date or a number, such as 2024-99-99
        raise UserError(f"{name}: not valid YAML: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{name}{where}: not valid YAML: {reason}") from None


def _expanded(node: yaml.Node | None, known: dict[int, int], name: str) -> int:
    """How many values a node stands for, with those of its aliases.

    Raises: UserError if aliases multiply to more than MOST_VALUES, or lead back to their anchor.
    """
    if id(node) in known or not isinstance(node, yaml.CollectionNode):
        if known.get(id(node)) == 0:  # it is being counted
            raise UserError(f"{name}: not valid YAML: an anchor contains its own alias")
        return known.get(id(node), 1)
    known[id(node)] = 0
    below = (part for pair in node.value for part in (pair if isinstance(pair, tuple) else [pair]))
    known[id(node)] = count = 1 + sum(_expanded(part, known, name) for part in below)
    if count > MOST_VALUES:
        raise UserError(
            f"{name}: its aliases stand for more than {MOST_VALUES:,} values; write them out, or "
            f"remove aliases of aliases"
        )
    return count


def read_user_text(path: Path) -> str:
    """The text of a file that a user wrote. Raises: UserError if it cannot be read."""
    try:
        return read_text(path)
    except Damaged as error:
        raise UserError(f"Cannot read '{path}': {error.reason}") from None
    except OSError as error:
        raise UserError(f"Cannot read '{path}': {error.strerror}") from None


def read_yaml(path: Path) -> Tree:
    """The mapping in a YAML file; an empty file is an empty mapping."""
    tree = parse_yaml(read_user_text(path), str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected 'key: value' lines, found {type(tree).__name__}")
    return tree


def parse_overrides(arguments: Iterable[str]) -> list[Tree]:
    """['a.b=1', ...] as layers, to be merged in this order.

    One layer holds them all, unless a key changes a part of a value that was given before it: in
    `views=simclr views.0.size=64`, the second key starts a second layer, on top of the preset.
    """
    layers: list[Tree] = [{}]
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w-]*(\.[\w-]+)*", key):
            raise UserError(f"'{argument}' is not key=value (for example method.temperature=0.2)")
        parsed = _text(key, value) if key in TEXTS else parse_yaml(value, f"'{argument}'")
        if not _set(layers[-1], key.split("."), parsed):
            layers.append({})
            _set(layers[-1], key.split("."), parsed)
    return layers


def _text(key: str, value: str) -> Any:
    """The value of one of TEXTS: as it is, except for a list in brackets, a text in quotes, and
    nothing or null of a key that is no path of images."""
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if value[:1] == "[" and value[-1:] == "]" and not Path(value).exists():
        try:  # the base loader reads no numbers: [2023, 2024] are two folders
            return yaml.load(value, Loader=yaml.BaseLoader)
        except yaml.YAMLError:
            quoted = True  # parse_yaml raises it with its reason
    if quoted:
        return parse_yaml(value, key)
    if not value and key == PATHS[0]:
        raise UserError(f"{key}=: is empty; name a file or folder, or leave the key out")
    return None if not value or (value in ("null", "~") and key not in PATHS) else value


def _set(tree: Tree, parts: list[str], value: Any) -> bool:
    """Set the value of a dotted key; False if a parent of the key is not a mapping, or if a name
    would replace keys that were set before, as in `backbone.drop_path=0.1 backbone=resnet50`."""
    *parents, leaf = parts
    for part in parents:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            return False
    if isinstance(tree.get(leaf), dict) and isinstance(value, str):
        return False
    tree[leaf] = value
    return True
