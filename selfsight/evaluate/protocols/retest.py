"""Testing a classifier that `linear-augmented` or `finetune` has trained, without training one."""

import time
from pathlib import Path

import torch

from selfsight import config as layers
from selfsight.encoders.artifact import weights_hash
from selfsight.errors import UserError
from selfsight.evaluate.protocols.config import TrainedConfig
from selfsight.evaluate.protocols.context import open_context
from selfsight.evaluate.protocols.results import Result
from selfsight.evaluate.protocols.target import open_target
from selfsight.evaluate.protocols.trained_classifier import test_classifier
from selfsight.files import Damaged, read_json
from selfsight.train.checkpoint import Checkpoints
from selfsight.train.folder import DATA

KEYS = ("data.", "device", "precision", "allow_overlap")  # what may differ from its training


def retest(
    where: str | Path,
    classifier: str | Path,
    overrides: list[str] | None = None,
    folder: str | None = None,
) -> list[Result]:
    """Top-1 and top-5 on the test split of a classifier as it is on the disk.

    Args:
        where: the encoder that it was trained on.
        classifier: its folder, such as RUN/evaluations/linear-augmented-ab12cd/encoder, or one of
            the files in the folder's checkpoints/.
        overrides: 'key=value' of data, device and precision; the rest is the classifier's.
    Raises: UserError if the folder holds no classifier, or one of another encoder.

    >>> run = selfsight.pretrain("digits/simclr", run="runs/a", max_steps=1, quiet=True)
    >>> first = selfsight.finetune(run, fraction=0.1, max_steps=1, quiet=True)
    >>> again = retest("runs/a", next(Path("runs/a/evaluations").glob("*/encoder")))
    >>> again[0].metrics["top1"] == first[0].metrics["top1"]
    True
    """
    target = open_target(where, overrides or [], folder)
    home = _folder(Path(classifier))
    tree = layers.validate(TrainedConfig, layers.read_yaml(home / "config.yaml")).tree()
    given = [text for text in overrides or [] if text.startswith(KEYS)]
    config = layers.validate(TrainedConfig, layers.fold(tree, given))
    if config.weights_sha256 != target.weights_sha256:
        raise UserError(f"'{classifier}': was trained on another encoder than '{where}'")
    if len(getattr(config.method, "lr_factors", (1,))) > 1:
        raise UserError(f"'{classifier}': holds several classifiers; its own evaluation chose one")
    if not any((home / "checkpoints").glob("step-*.pt")):
        raise UserError(f"'{classifier}': has not been trained yet; it holds no checkpoint")
    with open_context(target, config) as context:
        began = time.perf_counter()
        before = weights_hash(target.encoder.build())
        classes = context.splits.train.classes
        _same_classes(home, classes, str(classifier))
        metrics, _ = test_classifier(context, target.encoder, home, len(classes), None, before)
        cost = {"seconds": time.perf_counter() - began}
        settings = {"classifier": str(home)}
        record = (config.protocol, config.kind, "encoder", metrics, settings, cost, before)
        return context.keep([context.result(*record)])


def _same_classes(home: Path, classes: list[str], named: str) -> None:
    """The data have the classes, in their order, that the classifier was trained on. Version 0.1.0
    did not record them: of its classifiers the number alone is compared.

    Raises: UserError if they are others.
    """
    file = home / DATA
    if file.is_file():
        trained = read_json(file).get("classes")
        if not isinstance(trained, list):
            raise Damaged(file, "it does not name the classes")
        fits = trained == classes
        one, other = _differing(trained, classes)
    else:
        _, state = Checkpoints(home / "checkpoints").load(torch.device("cpu"))
        weights = [v for k, v in state["method"].items() if k.startswith("head") and v.ndim == 2]
        one, other = f"{len(weights[0])} classes", f"{len(classes)}"
        fits = len(weights[0]) == len(classes)
    if not fits:
        raise UserError(
            f"--classifier {named}: was trained on other classes ({one} -> {other}); name the data "
            f"with those by data.path=..., or train a classifier on these: leave out --classifier"
        )


def _differing(before: list[str], now: list[str]) -> tuple[str, str]:
    """What differs between two lists of classes, for a message."""
    if len(before) != len(now):
        return f"{len(before)} classes", f"{len(now)}"
    return next(((a, b) for a, b in zip(before, now, strict=True) if a != b), ("", ""))


def _folder(path: Path) -> Path:
    """The folder of a classifier's training."""
    home = path.parent.parent if path.is_file() and path.parent.name == "checkpoints" else path
    if home.name == "encoder" and (home / "config.yaml").is_file():  # not that of `untrained`
        return home
    raise UserError(
        f"--classifier {path}: holds no classifier that Selfsight trained; give for example "
        f"RUN/evaluations/linear-augmented-ab12cd/encoder"
    )
