"""Commands that measure an encoder."""

from pathlib import Path
from typing import Annotated

import typer

from selfsight.cli.app import app, continuing, list_names, print_from_first
from selfsight.interop.cli.jobs import Opts, evaluate_job, read_job

EvaluationKeys = Annotated[
    list[str] | None,
    typer.Argument(help="key=value: data.path=..., fraction=0.1, device=cpu, allow_overlap=true"),
]
Subject = Annotated[
    Path,
    typer.Argument(
        help="a finished run's folder, an encoder.safetensors, or a checkpoint of another library "
        "(then with backbone.name=...)"
    ),
]
Results = Annotated[str | None, typer.Option("--run", help="folder of the results")]
Classifier = Annotated[
    Path | None,
    typer.Option(help="train none, only test this one: a folder below RUN/evaluations/"),
]
Protocol = Annotated[
    str, typer.Option(help="a shipped protocol (see `selfsight protocols`) or a YAML file")
]


@app.command()
def knn(where: Subject, keys: EvaluationKeys = None, run: Results = None) -> None:
    """Classify test images by their nearest training images; beside an untrained encoder."""
    from selfsight.evaluate import protocols as measure

    print_from_first(measure.knn(where, keys, run))


@app.command()
def linear(
    where: Subject, keys: EvaluationKeys = None, run: Results = None, opts: Opts = False
) -> None:
    """Linear classifier on cached features: all labels, then 1 and 5 labels per class."""
    from selfsight.evaluate import protocols as measure

    job = read_job(where, keys, opts)
    if job is not None:
        return evaluate_job(job, "linear", run)
    print_from_first(measure.linear(where, keys, run))


@app.command(name="linear-augmented")
def linear_augmented(
    where: Subject,
    keys: EvaluationKeys = None,
    run: Results = None,
    protocol: Protocol = "linear-augmented",
    classifier: Classifier = None,
    opts: Opts = False,
) -> None:
    """Linear classifier on a frozen encoder, trained with crop and flip; continues if stopped."""
    from selfsight.evaluate import protocols as measure

    job = read_job(where, keys, opts)
    if job is not None:
        return evaluate_job(job, "linear-augmented", run)
    if classifier is not None:
        return print_from_first(measure.retest(where, classifier, keys, run))
    with continuing():
        print_from_first(measure.linear_augmented(where, keys, run, protocol))


@app.command()
def finetune(
    where: Subject,
    keys: EvaluationKeys = None,
    run: Results = None,
    protocol: Protocol = "finetune",
    classifier: Classifier = None,
    opts: Opts = False,
) -> None:
    """Train the whole network as a classifier, beside one from scratch; continues if stopped."""
    from selfsight.evaluate import protocols as measure

    job = read_job(where, keys, opts)
    if job is not None:
        return evaluate_job(job, "finetune", run)
    if classifier is not None:
        return print_from_first(measure.retest(where, classifier, keys, run))
    with continuing():
        print_from_first(measure.finetune(where, keys, run, protocol))


@app.command()
def protocols() -> None:
    """List the shipped protocols of `linear-augmented` and `finetune`."""
    from selfsight.evaluate.protocols import config

    list_names(config.protocols(), config.title)
