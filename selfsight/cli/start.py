"""Commands that come before a pretraining."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfsight.cli.app import TRAIN, app
from selfsight.cli.images import ImageSource, data_config

if TYPE_CHECKING:
    from selfsight.suggest.plan import Suggestion


@app.command(rich_help_panel=TRAIN)
def init(
    source: ImageSource,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="the recipe (default: recipes/NAME.yaml)"),
    ] = None,
    minutes: Annotated[float, typer.Option(help="that the training may take")] = 30.0,
    device: Annotated[str, typer.Option(help="cuda, mps or cpu")] = "auto",
) -> None:
    """Look at images and at this machine, and write a recipe that fits both."""
    from selfsight.suggest import plan
    from selfsight.train.log import Progress

    with Progress() as progress:
        made = plan.suggest(data_config(source), output, minutes, device, progress.images)
    _print(made)


def _print(made: "Suggestion") -> None:
    from selfsight.suggest.plan import next_commands, summary

    for line in (*summary(made), "Next:", *(f"  {line}" for line in next_commands(made))):
        print(line)
