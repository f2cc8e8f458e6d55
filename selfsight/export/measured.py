"""The results of a model card: what results.json says of the encoder, and of what it is compared
with."""

import os
from collections.abc import Callable
from typing import Any

from selfsight.evaluate.interval import wilson
from selfsight.evaluate.protocols.results import measured_as
from selfsight.export.subject import Subject

# By their names in results.json: the title, and whether it is a share of the test images, counted
# once; else it is a mean over draws of the labels.
METRICS = {
    "k20": ("kNN, k = 20", True),
    "k200": ("kNN, k = 200", True),
    "top1": ("top-1", True),
    "top5": ("top-5", True),
    "shots1": ("1 label a class", False),
    "shots5": ("5 labels a class", False),
}
NAMES = {
    "encoder": "this encoder",
    "start": "what it started from",
    "untrained": "untrained encoder",
    "pixels": "pixels",
}
NOTHING = "Nothing was measured: no evaluation of this encoder was found."
Escape = Callable[[object], str]


def results(subject: Subject, plain: Escape, of_source: Callable[[dict[str, Any]], str]) -> str:
    """The tables, one an evaluation, as Markdown."""
    ours = [
        record
        for record in subject.records
        if record["evaluated"] == "encoder" and record.get("weights_sha256") == subject.sha256
    ]
    if not ours:
        return NOTHING
    parts = [_one(subject, record, plain, of_source) for record in ours]
    parts.append(
        "The 95 % intervals are Wilson's, over the test images of one seed: they say nothing of "
        "other seeds. ± is the standard deviation over draws of the labels."
    )
    return "\n\n".join(parts)


def _one(
    subject: Subject,
    record: dict[str, Any],
    plain: Escape,
    of_source: Callable[[dict[str, Any]], str],
) -> str:
    data = record["data"]
    settings = _settings(record.get("settings") or {})
    title = (
        f"**{plain(record['protocol'])}** (version {plain(record.get('version'))}, seed "
        f"{plain(record.get('seed'))}{plain(settings)}) on {plain(of_source(data))}: "
        f"{_count(data.get('train'))} training images, {_count(data.get('test'))} test images"
    )
    rows = ["| features | metric | test accuracy, % | 95 % interval |", "|---|---|---|---|"]
    for name in NAMES:
        same = record if name == "encoder" else measured_as(record, subject.records, name)
        rows += _rows(same, plain) if same else []
    lines = [title, "\n".join(rows), _cost(record), _overlap(record, plain)]
    return "\n\n".join(line for line in lines if line)


def _rows(record: dict[str, Any], plain: Escape) -> list[str]:
    lines, count = [], record["data"].get("test")
    for key, (title, counted) in METRICS.items():
        value = record["metrics"].get(key)
        if value is None:
            continue
        shown, interval = f"{100 * value:.1f}", "-"
        spread = record["metrics"].get(f"{key}_std")
        if spread is not None:
            shown += f" ± {100 * spread:.1f}"
        if counted and isinstance(count, int) and count > 0 and 0 <= value <= 1:
            low, high = wilson(value, count)
            interval = f"{100 * low:.1f} to {100 * high:.1f}"
        lines.append(f"| {NAMES[record['evaluated']]} | {title} | {shown} | {interval} |")
    return lines


def _settings(settings: dict[str, Any]) -> str:
    """What else defines the evaluation; not names of files."""
    shown = [
        f"{key}={value}"
        for key, value in settings.items()
        if isinstance(value, (int, float)) or (isinstance(value, str) and os.sep not in value)
    ]
    return "".join(f", {text}" for text in shown)


def _cost(record: dict[str, Any]) -> str:
    cost = [
        f"{key.removesuffix('_seconds').replace('_', ' ')} {value:,.1f} s"
        for key, value in (record.get("cost") or {}).items()
        if isinstance(value, (int, float)) and key.endswith("_seconds")
    ]
    return f"Cost: {', '.join(cost)}." if cost else ""


def _overlap(record: dict[str, Any], plain: Escape) -> str:
    found = record.get("overlap") or {}
    if not {"paths", "contents"} <= found.keys():
        return "Test images were not compared with training images."
    line = (
        f"Test images that are also training images: {_count(found['paths'])} by path, "
        f"{_count(found['contents'])} by content"
    )
    compared = found.get("compared_with")
    if isinstance(compared, list) and compared:
        line += f" (compared with: {', '.join(map(plain, compared))})"
    return line + (" (allowed)." if found.get("allowed") else ".")


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "an unknown number of"
