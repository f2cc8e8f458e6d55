"""Commands that measure an encoder."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfsight.cli.app import EVALUATE, app, continuing, print_from_first
from selfsight.cli.files import Opts, open_foreign

if TYPE_CHECKING:
    from selfsight.evaluate.protocols import Result

EvaluationKeys = Annotated[
    list[str] | None,
    typer.Argument(help="key=value: data.path=..., fraction=0.1, device=cpu, allow_overlap=true"),
]
Target = Annotated[
    Path,
    typer.Argument(
        help="a run's folder or checkpoint, encoder.safetensors, or another library's checkpoint "
        "(then with backbone.name=...)"
    ),
]
Results = Annotated[str | None, typer.Option("--run", help="folder of the results")]
Classifier = Annotated[
    Path | None,
    typer.Option(help="test this classifier (a folder below RUN/evaluations/) and train none"),
]
Protocol = Annotated[
    str, typer.Option(help="a shipped protocol (see `selfsight protocols`) or a YAML file")
]


@app.command(rich_help_panel=EVALUATE)
def knn(where: Target, keys: EvaluationKeys = None, run: Results = None) -> None:
    """Classify test images by their nearest training images; beside an untrained encoder."""
    from selfsight.evaluate import protocols as measure

    print_from_first(measure.knn(where, keys, run))


@app.command(rich_help_panel=EVALUATE)
def linear(
    where: Target, keys: EvaluationKeys = None, run: Results = None, opts: Opts = False
) -> None:
    """Linear classifier on cached features: all labels, then 1 and 5 labels per class."""
    from selfsight.evaluate import protocols as measure

    _evaluate("linear", where, keys, run, opts, lambda: measure.linear(where, keys, run))


@app.command(name="linear-augmented", rich_help_panel=EVALUATE)
def linear_augmented(
    where: Target,
    keys: EvaluationKeys = None,
    run: Results = None,
    protocol: Protocol = "linear-augmented",
    classifier: Classifier = None,
    opts: Opts = False,
) -> None:
    """Linear classifier on a frozen encoder, trained with crop and flip; continues if stopped."""
    _train_and_test("linear-augmented", where, keys, run, protocol, classifier, opts)


@app.command(rich_help_panel=EVALUATE)
def finetune(
    where: Target,
    keys: EvaluationKeys = None,
    run: Results = None,
    protocol: Protocol = "finetune",
    classifier: Classifier = None,
    opts: Opts = False,
) -> None:
    """Train the whole network as a classifier, beside one from scratch; continues if stopped."""
    _train_and_test("finetune", where, keys, run, protocol, classifier, opts)


def _train_and_test(
    command: str,
    where: Path,
    keys: list[str] | None,
    run: str | None,
    protocol: str,
    classifier: Path | None,
    opts: bool,
) -> None:
    """Train and test a classifier, or only test the one that is given."""
    from selfsight.evaluate import protocols as measure

    train = {"linear-augmented": measure.linear_augmented, "finetune": measure.finetune}[command]

    def native() -> "list[Result]":
        if classifier is not None:
            return measure.retest(where, classifier, keys, run)
        return train(where, keys, run, protocol)

    _evaluate(command, where, keys, run, opts, native)


def _evaluate(
    command: str,
    where: Path,
    keys: list[str] | None,
    run: str | None,
    opts: bool,
    native: "Callable[[], list[Result]]",
) -> None:
    """Evaluate an encoder by `native`, or as a file of another system says, and print the table."""
    file = open_foreign(where, keys, opts)
    with continuing():
        print_from_first(native() if file is None else file.evaluate(command, run))
