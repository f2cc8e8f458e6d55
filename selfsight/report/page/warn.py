"""What a reader should know before believing a run, a sentence each."""

from collections.abc import Iterator

from selfsight.errors import UserError
from selfsight.files import Damaged, read_json
from selfsight.methods import METHODS
from selfsight.report.page.subject import Subject, as_typed
from selfsight.report.page.verdict import measured, percent
from selfsight.train.collapse import CollapseJudge


def warnings(subject: Subject) -> list[str]:
    """All warnings, the gravest first; [] without any."""
    return [
        *_diverged(subject),
        *_collapsed(subject),
        *_unfinished(subject),
        *_overlap(subject),
        *_not_better(subject),
        *_missing(subject),
        *_broken(subject),
    ]


def _diverged(subject: Subject) -> Iterator[str]:
    path = subject.run / "nonfinite.json"
    if not path.is_file():
        return
    try:
        step = read_json(path).get("step")
    except (OSError, Damaged, UserError):
        step = None
    at = f" at step {step:,}" if isinstance(step, int) else ""
    yield f"The loss was not finite{at}: the training diverged, see nonfinite.json."


def _collapsed(subject: Subject) -> Iterator[str]:
    """As the training judges it, from the same measurements."""
    name = subject.config.method.name
    method = METHODS.get(name)
    judge = CollapseJudge(name, method.remedy if method else "lower optimizer.lr")
    for record in subject.metrics if method is None or method.remedy else []:
        kind = "embedding" if "embedding_std" in record else "feature"
        if None in (record.get(f"{kind}_std"), record.get(f"{kind}_rank")):
            continue  # of a step that was not measured, or whose value was not finite
        verdict = judge.verdict(record)
        if verdict:
            yield f"{verdict}. First certain at epoch {record['epoch']:.1f}."


def _unfinished(subject: Subject) -> Iterator[str]:
    if subject.finished:
        return
    done = subject.metrics[-1] if subject.metrics else None
    reached = f"it has reached step {done['step']:,}" if done else "it has logged no step"
    encoder = f", and the encoder of step {subject.step:,} is shown" if subject.step else ""
    yield f"The run is not finished: {reached}{encoder}."


def _overlap(subject: Subject) -> Iterator[str]:
    found = {}
    for record in subject.results:
        overlap = record.get("overlap") or {}
        count = max(overlap.get("paths", 0), overlap.get("contents", 0))
        if record["evaluated"] == "encoder" and count:
            found.setdefault(count, []).append(record["protocol"])
    for count, protocols in found.items():
        names = ", ".join(dict.fromkeys(protocols))
        yield f"{count:,} test images of {names} are also training images: no generalisation."
    seen = subject.seen.overlap if subject.seen else {}
    count = max(seen.get("paths", 0), seen.get("contents", 0))
    if count and not found:
        yield f"{count:,} of the test images shown are also training images."


def _not_better(subject: Subject) -> Iterator[str]:
    names = {"untrained": "untrained", "pixels": "raw pixels", "start": "what it started from"}
    for group in measured(subject):
        by_name = {score.evaluated: score for score in group.scores}
        for name in (*group.worse_than, *group.like):
            worse, n = name in group.worse_than, group.encoder.images
            yield (
                f"{group.title}: the encoder is {'worse' if worse else 'not clearly better'} than "
                f"{names[name]} ({percent(group.encoder.value)} against "
                f"{percent(by_name[name].value)}"
                f"{'' if worse else f'; with {n:,} test images such a difference is noise'})."
            )


def _missing(subject: Subject) -> Iterator[str]:
    if subject.others:
        yield (
            f"{subject.others:,} results in results.json are of other weights than this encoder's, "
            f"and are not shown."
        )
    kinds = {r.get("kind", r["protocol"]) for r in subject.results if r["evaluated"] == "encoder"}
    if not kinds and subject.network is not None:
        yield "There are no results of this encoder."
    yield from subject.left_out
    yield from _shown(subject)


def _shown(subject: Subject) -> Iterator[str]:
    """Which images are shown, if not all test images of the run's own data."""
    if subject.seen is None:
        return
    keys = subject.keys_of({"data": subject.seen.data})
    if keys:
        said = ", ".join(f"{key}={as_typed(value)}" for key, value in keys.items())
        yield f"The images shown are those of {said}."
    if subject.seen.why:
        reason = subject.seen.why.split("; ")[0]  # without what to type, which is for evaluations
        shown, total = len(subject.seen.images), subject.seen.total
        which = f"{shown:,} of the {total:,}" if shown < total else "those"
        yield f"The images shown are {which} of the training split: {reason}."


def _broken(subject: Subject) -> Iterator[str]:
    if subject.bad_images:
        first = subject.bad_images[0].replace("\t", ": ")
        count = len(subject.bad_images)
        yield (
            f"{count:,} broken image{'s were' if count > 1 else ' was'} replaced in training, such "
            f"as {first}; bad_images.txt lists all."
        )
