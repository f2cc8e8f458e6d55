"""The images of an evaluation: two labelled splits without common images, and the labels that may
be used."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfsight import agreement, distributed
from selfsight.data.bad import BadImages
from selfsight.data.by_machine import by_machine
from selfsight.data.config import LOADING_KEYS, DataConfig
from selfsight.data.identity import fingerprint
from selfsight.data.images import Images
from selfsight.data.labels import align
from selfsight.data.measure import settled
from selfsight.data.source import Source, cache_beside, decoding
from selfsight.data.sources.open import open_source, with_range
from selfsight.errors import UserError
from selfsight.evaluate import subsets
from selfsight.evaluate.overlap import Fingerprints, Overlap, compare, fingerprints
from selfsight.evaluate.protocols.config import Evaluation, Labels
from selfsight.evaluate.protocols.target import EvaluationTarget
from selfsight.files import write_json, write_text
from selfsight.logging.log import console, print_notes

MANY = 200_000  # images; reading more takes so long that a line announces it


@dataclass(frozen=True)
class Splits:
    """Train and test images.

    Attributes:
        digests: a hash of the content of each split.
        overlap: what they share, for results.json.
    """

    train: Images
    test: Images
    digests: tuple[str, str]
    overlap: dict[str, Any]

    @property
    def key(self) -> str:
        """A hash of the content, the labels and the classes of both: what was trained or measured
        on other data has another."""
        digest = hashlib.sha256(json.dumps([self.digests, self.train.classes]).encode())
        for images in (self.train, self.test):
            digest.update(images.labels.cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def describe(self, config: Evaluation) -> dict[str, Any]:
        """For the record: the keys of the data and the number of images."""
        counts = {"train": len(self.train), "test": len(self.test)}
        return {**config.data.model_dump(mode="json", exclude={"patience"}), **counts}


def open_splits(config: Evaluation, target: EvaluationTarget, device: torch.device) -> Splits:
    """Open both, and compare the test split with the training split and, where the encoder was
    pretrained on other images, with those.

    Raises: UserError if there are no labels, if classes differ, or for a shared image unless
        allow_overlap.
    """
    train, test = by_machine(
        lambda: _open_both(config, target),
        lambda both: {f"{k} {n}": v for n, s in enumerate(both) for k, v in fingerprint(s).items()},
    )
    if distributed.rank() == 0:
        print_notes(train)
    data = agreement.by_first(lambda: settled(config.data, train))
    bad = BadImages(None, len(train), data.max_bad)
    images = (Images(train, data, device, bad, lazy=True), Images(test, data, device, lazy=True))
    digests, overlap, broken = agreement.by_first(
        lambda: (*_compare(config, target, *images), images[0].broken())
    )
    if broken and distributed.rank() == 0:
        example = bad.lines[0].replace("\t", ": ")
        line = f"{len(broken)} broken training images are left out, such as {example}"
        console.print(line, soft_wrap=True, markup=False)
    return Splits(images[0].without(broken), images[1], digests, overlap)


def _open_both(config: Evaluation, target: EvaluationTarget) -> tuple[Source, Source]:
    """The train and the test split, their labels numbered alike."""
    where = _named(config.data)
    cache = cache_beside(target.folder)
    train = open_source(config.data, "train", cache)
    data = config.data if train is None else with_range(config.data, train)
    test = open_source(data, "test", cache)
    if train is None or train.classes is None:
        raise UserError(
            f"{where}: has no labels to measure against; name a labelled set with data.path=..."
        )
    if test is None:
        raise UserError(
            f"{where}: has no test split, and its classes have too few images to divide; name test "
            f"images with data.test_path=..."
        )
    if test.classes is None:
        raise UserError(
            f"{where}: its test split has no labels; name labelled test images with "
            f"data.test_path=..."
        )
    try:
        align(test, train.classes)
    except ValueError as error:
        raise UserError(
            f"{where}: train and test split have different classes "
            f"({len(train.classes)} and {len(test.classes)}); of the test split, {error}"
        ) from None
    return train, test


def _named(data: DataConfig) -> str:
    return f"data.path={data.path}" if data.path else f"data.source={data.source}"


def _compare(
    config: Evaluation, target: EvaluationTarget, train: Images, test: Images
) -> tuple[tuple[str, str], dict[str, Any]]:
    """The digests of both splits and the record of what they share."""
    if len(train) + len(test) > MANY:
        console.print(f"Reading {len(train) + len(test):,} images to compare the two splits")
    cache = cache_beside(target.folder)
    a, b = fingerprints(train, cache), fingerprints(test, cache)
    found = {"training": compare(a, b)}
    before = _pretraining(config, target)
    if before is not None:
        found["pretraining"] = compare(before, b)
    for what, overlap in found.items():
        _refuse(config, what, overlap)
    worst = max(found.values(), key=lambda o: (o.paths + o.contents, o.similar))
    record = {
        "paths": worst.paths,
        "contents": worst.contents,
        "similar": worst.similar,
        "allowed": config.allow_overlap,
        "compared_with": list(found),
    }
    mark = decoding(train.source).mark()  # other pixels of the same files are other images
    return (a.digest + mark, b.digest + mark), record


def _pretraining(config: Evaluation, target: EvaluationTarget) -> Fingerprints | None:
    """Fingerprints of the pretraining images; None if the evaluation's are the same, or if gone."""
    data = target.pretraining_data
    if data is None:
        return None
    then, now = (keys.model_dump(exclude=set(LOADING_KEYS)) for keys in (data, config.data))
    if then == now:
        return None
    try:
        cache = cache_beside(target.folder)
        source = open_source(data, "train", cache)
        bad = BadImages(None, len(source), 1.0)
        return fingerprints(Images(source, data, torch.device("cpu"), bad, lazy=True), cache)
    except UserError:
        return None  # moved or deleted since: the record lists what was compared


def _refuse(config: Evaluation, what: str, overlap: Overlap) -> None:
    if config.allow_overlap or not overlap.paths + overlap.contents:
        return
    count = max(overlap.paths, overlap.contents)
    raise UserError(
        f"{_named(config.data)}: {count} test images are among the {what} images, such as "
        f"{overlap.example}; use another test split, or set allow_overlap=true, which the result "
        f"will say"
    )


def labelled(config: Labels, train: Images, seed: int) -> subsets.LabelSubset:
    """The training images whose labels may be used."""
    if config.images is not None:
        return subsets.listed(train.source, config.images)
    return subsets.draw(train.labels.cpu().numpy(), seed, config.fraction, config.shots)


def write_subset(
    config: Labels, subset: subsets.LabelSubset, train: Images, seed: int, folder: Path
) -> None:
    """Write subset.txt, which `images=` reads, and subset.json, unless all are used."""
    if config.which() and distributed.rank() == 0:
        names = [train.source.name(int(i)) for i in subset.rows]
        write_text(folder / "subset.txt", "".join(f"{name}\n" for name in names))
        about = {**config.which(), "seed": seed, "images": len(names), "sha256": subset.sha256}
        write_json(folder / "subset.json", about)


def subset_record(config: Labels, subset: subsets.LabelSubset) -> dict[str, Any]:
    """Label-subset entries for results.json; {} when all labels are used."""
    if not config.which():
        return {}
    return {**config.which(), "labels": len(subset.rows), "subset_sha256": subset.sha256}
