"""The records of results.json: metrics with their protocol, data, seed and cost."""

import json
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from selfsight.evaluate.gain import gain
from selfsight.files import (
    Damaged,
    are_numbers,
    read_json,
    sealed,
    set_aside,
    unsealed,
    write_json,
)
from selfsight.logging.log import say

# A change that moves a protocol's numbers raises its version.
VERSIONS = {"knn": 2, "linear": 2, "linear-augmented": 1, "finetune": 1}
RESULTS = "results.json"
MAIN = {"knn": "k20"}  # the metric that ranks encoders, if it is not top1


@dataclass(frozen=True)
class Result:
    """One record.

    Attributes:
        protocol, version: of the definition that it was measured by; kind: knn, linear,
            linear-augmented or finetune, which the protocol is one of.
        evaluated: encoder, start (what a run that did not start at random started from), untrained
            or pixels.
        metrics: name -> value, accuracies in [0, 1], all on the test split.
        settings: what else defines it: the share of labels, keys that differ from the protocol's.
        cost: seconds.
        gain: of the encoder over `start`, as `evaluate.gain.gain` gives it.
        overlap: images that the test split shares with the training split, and whether that was
            allowed.
    """

    protocol: str
    kind: str
    version: int
    evaluated: str
    metrics: dict[str, float]
    settings: dict[str, Any]
    seed: int
    cost: dict[str, float]
    weights_sha256: str | None
    data: dict[str, Any]
    overlap: dict[str, Any] = field(default_factory=dict)
    selfsight: str = ""
    gain: dict[str, float] = field(default_factory=dict)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder's results.json; [] if there is none. Raises: Damaged."""
    path = Path(folder) / RESULTS
    records, reason = _read(path)
    if reason:
        raise Damaged(path, reason)
    return records


def _read(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The records that are as they were written; why the others are not, None without others."""
    if not os.path.lexists(path):
        return [], None
    records, reason = [], None
    try:
        for record in read_json(path, list):
            try:
                records.append(_checked(record, path))
            except Damaged as error:
                reason = error.reason
    except Damaged as error:
        reason = error.reason
    except FileNotFoundError:
        reason = "it is a link to nothing"
    return records, reason


def _checked(record: Any, path: Path) -> dict[str, Any]:
    """A record without its checksum. Raises: Damaged."""
    kinds = {"protocol": str, "evaluated": str, "metrics": dict, "data": dict}
    if not isinstance(record, dict) or not all(
        isinstance(record.get(key), kind) for key, kind in kinds.items()
    ):
        raise Damaged(path, "it holds a record without protocol, metrics or data")
    maybe = (record.get(key) for key in ("settings", "cost", "overlap"))
    if not are_numbers(record["metrics"]) or not all(isinstance(v or {}, dict) for v in maybe):
        raise Damaged(path, f"a record of {record['protocol']!r:.40} holds values of another type")
    return unsealed(record, path)


def store(folder: Path, results: list[Result]) -> None:
    """Add records; an older record with the same protocol, seed, data and encoder is replaced.

    A damaged file is renamed, and what is whole of it stays.
    """
    new = [vars(result) for result in results]
    replaced = {_what(record) for record in new}
    records, reason = _read(folder / RESULTS)
    if reason:
        aside = set_aside(folder / RESULTS)
        say(
            f"'{folder / RESULTS}' is damaged: {reason}; kept as '{aside.name}', of its records "
            f"{len(records)} are whole and stay"
        )
    kept = [record for record in records if _what(record) not in replaced]
    write_json(folder / RESULTS, [sealed(record) for record in kept + new])


def _what(record: dict[str, Any]) -> str:
    keys = ("protocol", "version", "evaluated", "settings", "seed", "data", "weights_sha256")
    return json.dumps([record.get(k) for k in keys], sort_keys=True)


def measured_as(
    record: dict[str, Any], records: list[dict[str, Any]], evaluated: str
) -> dict[str, Any] | None:
    """The newest record of `evaluated` whose number may stand beside that of `record`."""
    keys = ("protocol", "version", "settings", "seed", "data")
    found = [
        other
        for other in records
        if other["evaluated"] == evaluated and all(other.get(k) == record.get(k) for k in keys)
    ]
    return found[-1] if found else None


def main_metric(record: dict[str, Any]) -> float:
    """The accuracy that a record is judged by."""
    return record["metrics"][MAIN.get(record.get("kind", record["protocol"]), "top1")]


def with_gain(results: list[Result], right: dict[str, Tensor], seed: int) -> list[Result]:
    """The records, that of the encoder with its gain over `start`.

    Args:
        right: by what was evaluated (M,) bool, the test images that the main metric counts.
    """
    if not {"encoder", "start"} <= right.keys():
        return results
    found = gain(right["encoder"], right["start"], seed)
    return [replace(r, gain=found) if r.evaluated == "encoder" else r for r in results]


def notes(results: list[Result]) -> list[str]:
    """What the records say, a sentence each: whether it was worth to train on from another encoder;
    an encoder that is no better than untrained; images in both splits."""
    lines = _over_start(results)
    by_name = {result.evaluated: result for result in results}
    encoder, untrained = by_name.get("encoder"), by_name.get("untrained")
    if encoder and untrained:
        a, b = main_metric(vars(encoder)), main_metric(vars(untrained))
        margin = noise(a, b, encoder.data["test"])
        if a - b <= margin:
            lines.append(
                f"{encoder.protocol}: the encoder scores no better than untrained "
                f"({a:.1%} against {b:.1%}; with {encoder.data['test']:,} test images a difference "
                f"up to {margin:.1%} is noise)"
            )
    shared = encoder.overlap if encoder else {}
    if shared.get("allowed") and (shared.get("paths") or shared.get("contents")):
        count = max(shared["paths"], shared["contents"])
        lines.append(
            f"{encoder.protocol}: {count} test images are also training images "
            f"(allow_overlap=true): this is no measure of generalisation"
        )
    return lines


def _over_start(results: list[Result]) -> list[str]:
    """Whether the encoder is better than the one that it started from."""
    by_name = {result.evaluated: result for result in results}
    encoder, start = by_name.get("encoder"), by_name.get("start")
    if not (encoder and start and encoder.gain):
        return []
    a, b, gain = main_metric(vars(encoder)), main_metric(vars(start)), encoder.gain
    if gain["low"] > 0:
        said = "training made the encoder better than what it started from"
    elif gain["high"] < 0:
        said = "training made the encoder worse than what it started from: use that one"
    else:
        said = "training made the encoder neither better nor worse than what it started from"
    low, high = 100 * gain["low"], 100 * gain["high"]
    return [
        f"{encoder.protocol}: {said} ({a:.1%} against {b:.1%}; 95 % interval of the difference "
        f"{low:+.1f} to {high:+.1f} points, over {gain['draws']:,.0f} draws of the "
        f"{encoder.data['test']:,} test images)"
    ]


def noise(a: float, b: float, n: int) -> float:
    """Half the 95 % interval of the difference of two accuracies on n images, as if independent:
    1.96 sqrt((a (1 - a) + b (1 - b)) / n)."""
    return 1.96 * math.sqrt((a * (1 - a) + b * (1 - b)) / n)
