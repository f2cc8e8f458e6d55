"""What the results of a run say, in one sentence, and as a table with intervals."""

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from selfsight.evaluate.interval import wilson
from selfsight.evaluate.protocols.results import VERSIONS, main_metric, measured_as
from selfsight.report.page.panel import Panel, render
from selfsight.report.page.subject import Subject, as_typed

# As results.json calls what was evaluated, and as a sentence does.
FLOORS = {"start": "the encoder that it started from", "untrained": "untrained", "pixels": "pixels"}
_AGAINST = {"start": "at the start", "untrained": "untrained", "pixels": "for raw pixels"}
_THAN = {
    "start": "what it started from",
    "untrained": "an untrained encoder",
    "pixels": "raw pixels",
}
_TITLES = {
    "knn": "kNN (k = 20)",
    "linear": "linear classifier",
    "linear-augmented": "linear classifier on augmented images",
    "finetune": "fine-tuning",
}


@dataclass(frozen=True)
class Score:
    """One accuracy.

    Attributes:
        evaluated: encoder, start, untrained or pixels.
        value, low, high: the accuracy and Wilson's 95 % interval, fractions of the test images.
        images: how many test images.
    """

    evaluated: str
    value: float
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class Measured:
    """One protocol's accuracies: the encoder's first, then those of what it is compared with.

    Attributes:
        title: of the protocol, with what differs from the usual: labels, keys, images, version.
        worse_than: what the encoder is clearly worse than; like: what it is neither better nor
            worse than, beyond what the draw of the test images explains.
        elsewhere: whether it was measured on other images than the run's own; older: whether by an
            earlier version of the protocol.
    """

    title: str
    scores: tuple[Score, ...]
    worse_than: tuple[str, ...]
    like: tuple[str, ...]
    elsewhere: bool
    older: bool

    @property
    def encoder(self) -> Score:
        return self.scores[0]


def measured(subject: Subject) -> list[Measured]:
    """All that the encoder was measured by: on the run's own images before others, by a protocol as
    it is now before an earlier version of it, and of equals the highest accuracy first."""
    records = [record for record in subject.results if record["evaluated"] == "encoder"]
    found = [_measured(subject, record) for record in records]
    return sorted(found, key=lambda m: (m.elsewhere, m.older, -m.encoder.value))


def _measured(subject: Subject, record: dict[str, Any]) -> Measured:
    encoder = _score(record)
    floors = [x for name in FLOORS if (x := measured_as(record, subject.results, name))]
    scores = [encoder, *map(_score, floors)]
    found = [(score.evaluated, _compared(encoder, score, record)) for score in scores[1:]]
    worse, like = (tuple(name for name, sign in found if sign == x) for x in (-1, 0))
    elsewhere = any(key.startswith("data.") for key in subject.keys_of(record))
    title = _title(subject, record)
    return Measured(title, tuple(scores), worse, like, elsewhere, _is_older(record))


def _is_older(record: dict[str, Any]) -> bool:
    kind = record.get("kind", record["protocol"])
    return record.get("version") != VERSIONS.get(kind)


def _score(record: dict[str, Any]) -> Score:
    value, images = main_metric(record), int(record["data"]["test"])
    return Score(record["evaluated"], value, *wilson(value, images), images)


def _compared(encoder: Score, other: Score, record: dict[str, Any]) -> int:
    """1 for a clearly better encoder, -1 for a clearly worse one, 0 where the draw of the test
    images explains the difference."""
    gain = record.get("gain")
    if other.evaluated == "start" and gain:
        low, high = gain["low"], gain["high"]
    else:
        low, high = newcombe(encoder, other)
    return (low > 0) - (high < 0)


def newcombe(a: Score, b: Score) -> tuple[float, float]:
    """The 95 % interval of the difference a - b, as if of independent test images.

    Newcombe, Interval estimation for the difference between independent proportions, Stat. Med. 17
    (1998), method 10: of the Wilson intervals, so that 1 of 1 against 0 of 1, or 40 of 40
    against 36, proves nothing.
    """
    difference = a.value - b.value
    low = math.hypot(a.value - a.low, b.high - b.value)
    high = math.hypot(a.high - a.value, b.value - b.low)
    return difference - low, difference + high


def _title(subject: Subject, record: dict[str, Any]) -> str:
    name = record["protocol"]
    kind = _TITLES.get(record.get("kind", name), name)
    title = kind if name in _TITLES else f"{kind}, protocol {name}"
    labels = (record.get("settings") or {}).get("labels")
    if labels is not None:
        title += f" with {labels:,} labels"
    if _is_older(record):
        title += f", version {record.get('version')} of the protocol"
    of_labels = ("fraction", "shots", "images")
    keys = {k: v for k, v in subject.keys_of(record).items() if k not in of_labels}
    return title + "".join(f", {key}={as_typed(value)}" for key, value in keys.items())


def sentence(subject: Subject) -> str:
    """The verdict. Nothing is claimed that results.json does not hold."""
    found = measured(subject)
    if not found:
        return _unmeasured(subject)
    best, encoder = found[0], found[0].encoder
    said = (
        f"{best.title} on this encoder gets {percent(encoder.value)} of "
        f"{encoder.images:,} test images right (95\N{NO-BREAK SPACE}% interval "
        f"{percent(encoder.low, bare=True)} to {percent(encoder.high)})"
    )
    others = [f"{percent(s.value)} {_AGAINST[s.evaluated]}" for s in best.scores[1:]]
    said += f", against {_and(others)}" if others else ""
    said += f", after {cost}" if (cost := spent(subject)) else ""
    first = [
        f"{words} {_and([_THAN[name] for name in names], 'or')}"
        for words, names in (
            ("worse than", best.worse_than),
            ("not clearly better than", best.like),
        )
        if names
    ]
    if first:
        return f"{_and(first).capitalize()}: {said}."
    return f"{said if said.startswith('kNN') else said[0].upper() + said[1:]}."


def _unmeasured(subject: Subject) -> str:
    cost = spent(subject)
    if subject.network is None and not subject.finished:
        after = f" after {cost}" if cost else ""
        return f"No encoder is saved yet{after}, so nothing is known of what it learned."
    return (
        f"Not measured yet: what this encoder learned{f' in {cost}' if cost else ''} is not known."
    )


def to_measure(subject: Subject) -> str:
    """The command that measures the run."""
    labelled = subject.seen is None or subject.seen.split == "test"
    more = "" if labelled else " data.path=LABELLED_IMAGES"
    return f"selfsight knn {shlex.quote(str(subject.run))}{more}"


def spent(subject: Subject) -> str:
    """'41 seconds of pretraining on cpu x86_64, 2 cores', as far as it is known."""
    seconds = subject.cost.get("seconds")
    if seconds is None:
        seconds = next((r["seconds"] for r in reversed(subject.metrics) if "seconds" in r), None)
    if seconds is None:
        return ""
    device = subject.cost.get("device")
    count = subject.cost.get("processes", 1)
    where = f" on {f'{count} x ' if count > 1 else ''}{device}" if device else ""
    return f"{duration(seconds)} of pretraining{where}"


def duration(seconds: float) -> str:
    """In the unit that reads best.

    >>> duration(41.2), duration(600), duration(20_000)
    ('41 seconds', '10 minutes', '5.6 hours')
    """
    if seconds < 10:
        return f"{seconds:.1f} seconds"
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def percent(value: float, bare: bool = False) -> str:
    """'96.1 %', which is not broken at the end of a line; '96.1' if bare."""
    return f"{100 * value:.1f}" + ("" if bare else "\N{NO-BREAK SPACE}%")


def _and(parts: list[str], word: str = "and") -> str:
    return f" {word} ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def results_panel(subject: Subject) -> Panel | None:
    """Bars of all accuracies with their intervals; None without results."""
    found = measured(subject)
    if not found:
        return None
    return Panel(
        "results",
        "Results",
        render("results.html", groups=list(_rows(found))),
        "Accuracy on the test images, in %. The thin line is its 95 % interval over the draw of "
        "test images (Wilson); other seeds of the pretraining would move it further.",
    )


def _rows(found: list[Measured]) -> Iterator[dict[str, Any]]:
    names = {"encoder": "this encoder", **FLOORS}
    for group in found:
        rows = [(names[score.evaluated], score) for score in group.scores]
        yield {"title": group.title, "rows": rows, "images": group.encoder.images}
