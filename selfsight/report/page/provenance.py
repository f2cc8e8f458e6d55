"""Where a run comes from: its configuration, versions, hashes, and the commands that repeat it."""

import shlex
from collections.abc import Iterator
from typing import Any

from selfsight import config as layers
from selfsight.config import Tree
from selfsight.errors import UserError
from selfsight.files import Damaged, read_json
from selfsight.pretraining.config import Composed, RunConfig, compose
from selfsight.pretraining.recipes import SHIPPED
from selfsight.report.page.panel import Panel, render
from selfsight.report.page.subject import Subject, as_typed
from selfsight.train.config import with_names
from selfsight.train.folder import DATA
from selfsight.yaml_text import read_yaml

MOST = 8  # keys of a command that names a recipe; with more it names the run's own config.yaml
FILLED_IN = ("run", "weights_sha256", "code")  # keys that no user types


def provenance_panel(subject: Subject) -> Panel:
    """Commands, versions, hashes and every value of the configuration."""
    composed, recipe = _nearest_recipe(subject.config)
    rows = [
        (key, as_typed(value), origin) for key, value, origin in origins(subject.config, composed)
    ]
    about = (
        f"config.yaml holds values and not who set them: a value that the shipped recipe {recipe}, "
        f"the nearest, also has is said to be set by it, and another one by the run."
        if recipe
        else "config.yaml holds values and not who set them: each that is not the default is said "
        "to be set by the run."
    )
    html = render(
        "provenance.html",
        commands=list(_commands(subject, composed, recipe)),
        environment=list(_environment(subject)),
        hashes=list(_hashes(subject)),
        own=[row for row in rows if not row[2].startswith("default")],
        usual=[row for row in rows if row[2].startswith("default")],
        about=about,
    )
    note = "Commands that repeat the run, versions, hashes, and all values of its configuration."
    return Panel("origin", "Where it comes from", html, note, folded=True)


def origins(config: RunConfig, composed: Composed | None) -> Iterator[tuple[str, Any, str]]:
    """(key, value, who set it): as `selfsight show`, where the run has the composed value."""
    known = {} if composed is None else {k: (v, o) for k, v, o in composed.rows()}
    for key, value in layers.flatten(config.tree()):
        there = known.get(key)
        same = there is not None and there[0] == value
        yield key, value, there[1] if same else "this run"


# The nearest recipe -------------------------------------------------------------------------------


def _nearest_recipe(config: RunConfig) -> tuple[Composed | None, str | None]:
    """The shipped recipe that most values agree with, and its name; else the defaults and None."""
    own = dict(layers.flatten(config.tree()))
    best, name = 0, None
    for file in sorted(SHIPPED.rglob("*.yaml")):
        tree = _raw(file, config.method.name)
        score = _agreement(own, tree) if tree else 0
        if score > best:
            best, name = score, file.relative_to(SHIPPED).with_suffix("").as_posix()
    try:
        if name is not None:
            return compose(name), name
        return compose(None, [f"method.name={config.method.name}"]), None
    except UserError:  # such as a recipe that needs data.path=..., or a method of the user's own
        return None, None


def _raw(file: Any, method: str) -> Tree | None:
    """The values that a recipe of this method writes; None for one that is not to be compared:
    composing one that starts from weights by name might fetch them."""
    text = file.read_text(encoding="utf-8")
    if method not in text or "timm:" in text:
        return None
    tree = with_names(read_yaml(file))
    base = tree.pop("base", None)
    if base is not None:
        below = _raw(SHIPPED / f"{base}.yaml", "")
        tree = layers.merge(below, tree) if below else tree
    return tree if tree.get("method", {}).get("name") == method else None


def _agreement(own: dict[str, Any], tree: Tree) -> int:
    """How many written values agree, less those that do not; names of presets are left out."""
    leaves = [(k, v) for k, v in layers.flatten(tree) if k in own]
    return sum(1 if own[key] == value else -1 for key, value in leaves)


# Commands -----------------------------------------------------------------------------------------


def _commands(
    subject: Subject, composed: Composed | None, recipe: str | None
) -> Iterator[tuple[str, str]]:
    yield "The same configuration again, in a new folder:", _pretrain(subject, composed, recipe)
    seen = set()
    for record in subject.results:
        if record["evaluated"] == "encoder":
            line = _evaluate(subject, record)
            if line not in seen:
                yield f"The evaluation {record['protocol']} again:", line
            seen.add(line)
    yield "This page again:", f"selfsight report {shlex.quote(str(subject.run))}"


def _pretrain(subject: Subject, composed: Composed | None, recipe: str | None) -> str:
    """The recipe with the keys that differ, where that gives the same configuration; else the run's
    own config.yaml."""
    new = shlex.quote(f"{subject.run}-again")
    usual = f"selfsight pretrain {shlex.quote(str(subject.run / 'config.yaml'))} --run {new}"
    if composed is None or recipe is None:
        return usual
    known = {key: value for key, value, _ in composed.rows()}
    own = dict(layers.flatten(subject.config.tree()))
    keys = [
        f"{key}={as_typed(value)}"
        for key, value in own.items()
        if key not in FILLED_IN and known.get(key, ...) != value
    ]
    if len(keys) > MOST:
        return usual
    try:
        again = compose(recipe, keys, subject.config.run).config
    except UserError:
        return usual
    same = not layers.differences(again.identity(), subject.config.identity())
    words = " ".join(shlex.quote(key) for key in keys)
    return (
        f"selfsight pretrain {recipe} {words + ' ' if words else ''}--run {new}" if same else usual
    )


def _evaluate(subject: Subject, record: dict[str, Any]) -> str:
    kind = record.get("kind", record["protocol"])
    words = [f"selfsight {kind}", shlex.quote(str(subject.run))]
    if record["protocol"] != kind:
        words.append(f"--protocol {shlex.quote(record['protocol'])}")
    keys = subject.keys_of(record)
    overlap = record.get("overlap") or {}
    if overlap.get("allowed") and (overlap.get("paths") or overlap.get("contents")):
        keys["allow_overlap"] = True
    return " ".join([*words, *(shlex.quote(f"{k}={as_typed(v)}") for k, v in keys.items())])


# Environment and hashes ---------------------------------------------------------------------------


def _environment(subject: Subject) -> Iterator[tuple[str, str]]:
    for line in subject.head:
        words = line.split()
        if words[:1] == ["git"]:
            yield "git revision", " ".join(words[1:])
        elif len(words) > 2 and len(words) % 2 == 0:
            yield from zip(words[::2], words[1::2], strict=True)
        elif line:
            yield "note", line
    titles = {
        "device": "device",
        "processes": "processes",
        "threads": "threads of each",
        "seconds": "seconds of pretraining",
        "images_per_second": "images/s",
        "peak_memory_mib": "peak memory, MiB",
    }
    for key, title in titles.items():
        if key in subject.cost:
            yield title, str(subject.cost[key])


def _hashes(subject: Subject) -> Iterator[tuple[str, str]]:
    if "weights_sha256" in subject.described:
        yield "weights of the encoder (SHA-256)", subject.described["weights_sha256"]
    try:
        stored = read_json(subject.run / DATA)
    except (OSError, Damaged):
        return
    for key in ("names", "labels", "contents"):
        if isinstance(stored.get(key), str):
            yield f"{key} of the training images", stored[key]
