"""Runs side by side: what differs in their configurations, and in what was measured."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.text import Text

from selfsight import config as layers
from selfsight.data.config import LOADING_KEYS
from selfsight.errors import UserError
from selfsight.evaluate.protocols import read_results
from selfsight.logging.log import read_metrics
from selfsight.pretraining.config import RunConfig, read_run_config
from selfsight.report.render import ABSENT, is_accuracy, number, table

# If one of these keys differs, losses and online probes cannot be compared.
TASK = ("method.", "views.", "data.", "batch_size")


@dataclass(frozen=True)
class Line:
    """One metric of all runs; None for a run that does not have it.

    Attributes:
        what: protocol and metric, with the settings that differ between the protocol's lines.
        spreads: standard deviations over draws, where the protocol draws.
        comparable: whether differences to the first run are meaningful.
    """

    what: str
    values: tuple[float | None, ...]
    spreads: tuple[float | None, ...]
    percent: bool
    comparable: bool = True


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        config: (key, a value for each run) of the keys that differ; `run` aside.
        lines: pretraining first, then the evaluations of the encoder.
        notes: warnings and conclusions, one sentence each.
    """

    runs: tuple[Path, ...]
    config: tuple[tuple[str, tuple[Any, ...]], ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def compare(runs: list[Path]) -> Comparison:
    """Compare configurations and results of runs.

    Raises: UserError for fewer than two runs, for a folder that is not a run, and for a run without
        results.
    """
    runs = [Path(run) for run in runs]
    if len(runs) < 2:
        raise UserError("compare needs two runs or more: selfsight compare RUN RUN ...")
    config = _different_keys([read_run_config(run).tree() for run in runs])
    records = [_newest(run) for run in runs]
    keys = {key for key, _ in config if not RunConfig.key_may_change(key)}
    same_task = not any(key.startswith(TASK) for key in keys)
    lines, apart = _evaluations(records)
    return Comparison(
        tuple(runs),
        tuple(config),
        (*_pretraining(runs, same_task), *lines),
        (*_about_config(keys), *apart, *_overlaps(runs, records)),
    )


def _different_keys(trees: list[dict[str, Any]]) -> list[tuple[str, tuple[Any, ...]]]:
    leaves = [dict(layers.flatten(tree)) for tree in trees]
    keys = dict.fromkeys(key for flat in leaves for key in flat if key != "run")
    found = [(key, tuple(flat.get(key, ABSENT) for flat in leaves)) for key in keys]
    return [(key, values) for key, values in found if any(v != values[0] for v in values)]


def _about_config(keys: set[str]) -> list[str]:
    """Which conclusions are valid, given the keys that differ and can change a result."""
    if not keys:
        return ["The configurations differ at most in keys that change results by rounding alone."]
    if keys == {"seed"}:
        return ["The runs differ only in their seed: what differs in the results is seed noise."]
    if "seed" in keys:
        return ["The seed differs too: a difference comes from the other keys and from seed noise."]
    return ["All runs have the same seed: they cannot show how much of a difference is seed noise."]


# Results ------------------------------------------------------------------------------------------


def _pretraining(runs: list[Path], same_task: bool) -> list[Line]:
    """The last logged loss and online probe, and the minutes."""
    last = [(read_metrics(run / "metrics.jsonl") or [{}])[-1] for run in runs]
    none = (None,) * len(runs)
    seconds = [record.get("seconds") for record in last]
    minutes = tuple(None if s is None else s / 60 for s in seconds)
    loss = tuple(record.get("loss") for record in last)
    probe = tuple(record.get("probe_top1") for record in last)
    lines = [
        Line("pretraining: last loss", loss, none, percent=False, comparable=same_task),
        Line("pretraining: online probe top1", probe, none, percent=True, comparable=same_task),
        Line("pretraining: minutes", minutes, none, percent=False),
    ]
    return [line for line in lines if any(value is not None for value in line.values)]


def _newest(run: Path) -> dict[str, dict[str, Any]]:
    """The encoder's newest record under each set of comparable conditions."""
    records = [r for r in read_results(run) if r["evaluated"] == "encoder"]
    if not records:
        raise UserError(f"'{run}' has no results; measure it with: selfsight knn {run}")
    return {json.dumps(_conditions(record), sort_keys=True): record for record in records}


def _conditions(record: Mapping[str, Any]) -> dict[str, Any]:
    """Protocol, version, data and settings as one flat dict; equal ones are comparable."""
    data = {k: v for k, v in record["data"].items() if k not in LOADING_KEYS}
    tree = {"protocol": record["protocol"], "version": record["version"], "data": data}
    return {**dict(layers.flatten(tree)), **dict(layers.flatten(record.get("settings") or {}))}


def _evaluations(records: list[dict[str, dict[str, Any]]]) -> tuple[list[Line], list[str]]:
    """A line for each metric under each set of conditions, and notes about differing conditions."""
    lines, notes = [], []
    all_conditions = {key: json.loads(key) for by_key in records for key in by_key}
    images = sorted({c["data.test"] for c in all_conditions.values() if "data.test" in c})
    if len(images) == 1:
        notes.append(f"Measured on {images[0]:,} test images.")
    for protocol in dict.fromkeys(c["protocol"] for c in all_conditions.values()):
        same = {k: c for k, c in all_conditions.items() if c["protocol"] == protocol}
        differing = [key for key, _ in _different_keys(list(same.values()))]
        for key, conditions in same.items():
            found = [by_key.get(key, {}).get("metrics", {}) for by_key in records]
            shown = ", ".join(f"{k}={conditions.get(k, ABSENT)}" for k in differing)
            lines += _lines(f"{protocol} [{shown}]" if shown else protocol, found)
        partly = any(key not in by_key for by_key in records for key in same)
        if partly and differing:
            notes.append(
                f"{protocol}: measured under different {', '.join(differing)}; "
                "on separate lines, since they cannot be compared."
            )
    return lines, notes


def _overlaps(runs: list[Path], records: list[dict[str, dict[str, Any]]]) -> list[str]:
    """Warnings about results that were measured with test images among the training images."""
    counts = {
        (str(run), record["protocol"]): max(overlap.get("paths", 0), overlap.get("contents", 0))
        for run, by_key in zip(runs, records, strict=True)
        for record in by_key.values()
        if (overlap := record.get("overlap"))
    }
    return [
        f"{run}: {protocol}: {count} test images are also training images."
        for (run, protocol), count in counts.items()
        if count
    ]


def _lines(title: str, found: list[dict[str, float]]) -> list[Line]:
    lines = []
    for metric in dict.fromkeys(name for metrics in found for name in metrics):
        if metric.endswith("_std"):
            continue
        values = tuple(metrics.get(metric) for metrics in found)
        spreads = tuple(metrics.get(f"{metric}_std") for metrics in found)
        accuracy = is_accuracy(metric)
        lines.append(Line(f"{title} {metric}", values, spreads, accuracy, comparable=accuracy))
    return lines


# Printing -----------------------------------------------------------------------------------------


def render(comparison: Comparison) -> Group:
    """Print the two tables and the notes on a rich console."""
    names = _names(comparison.runs)
    parts: list[Any] = []
    if comparison.config:
        rows = [[key, *map(str, values)] for key, values in comparison.config]
        parts += [table(["key", *names], rows, box=box.SIMPLE_HEAD), ""]
    rows = [
        [line.what, *(_cell(line, i) for i in range(len(line.values)))] for line in comparison.lines
    ]
    meaning = "Accuracies in %; in brackets the difference to the first run."
    if any(spread is not None for line in comparison.lines for spread in line.spreads):
        meaning += " ±: standard deviation over drawn subsets."
    results = table(["result", *names], rows, box=box.SIMPLE_HEAD)
    return Group(*parts, results, "", *(Text(note) for note in (meaning, *comparison.notes)))


def _names(runs: tuple[Path, ...]) -> list[str]:
    """The names of the folders; their whole paths if two names are equal."""
    names = [run.name or str(run) for run in runs]
    pairs = zip(runs, names, strict=True)
    return [str(run) if names.count(name) > 1 else name for run, name in pairs]


def _cell(line: Line, i: int) -> str:
    """'91.2 ± 0.4 (+1.3)'."""
    value, first = line.values[i], line.values[0]
    text = number(value, line.spreads[i], line.percent)
    if i and None not in (value, first) and line.comparable:
        difference = value - first
        text += f" ({100 * difference:+.1f})" if line.percent else f" ({difference:+.2g})"
    return text
