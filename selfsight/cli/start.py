"""Commands that come before a pretraining."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfsight.cli.app import TRAIN, Overrides, What, app
from selfsight.cli.files import open_foreign
from selfsight.cli.images import ImageSource, data_config
from selfsight.errors import UserError

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
    from selfsight.logging.log import Progress
    from selfsight.suggest import plan

    with Progress() as progress:
        made = plan.suggest(data_config(source), output, minutes, device, progress.images)
    _print(made)


def _print(made: "Suggestion") -> None:
    from selfsight.suggest.plan import next_commands, summary

    for line in (*summary(made), "Next:", *(f"  {line}" for line in next_commands(made))):
        print(line)


@app.command(rich_help_panel=TRAIN)
def slurm(
    what: What,
    overrides: Overrides = None,
    run: Annotated[str | None, typer.Option(help="folder of the run")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="machines")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="of each machine, a process for each")] = 1,
    cpus: Annotated[int, typer.Option(min=1, help="cores of each process")] = 8,
    time: Annotated[str | None, typer.Option(help="limit of a job: 12:00:00")] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm's partition")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm's account")] = None,
    before: Annotated[
        int, typer.Option(min=1, help="seconds before the limit at which the run saves and ends")
    ] = 180,
) -> None:
    """Print a Slurm job that pretrains, and continues when its time has ended."""
    from selfsight.suggest.slurm import Allocation, job_script

    if open_foreign(what) is not None:
        raise UserError(
            f"'{what}': a file of another system; make a native one with `selfsight convert`"
        )
    allocation = Allocation(nodes, gpus, cpus, time, partition, account, before)
    print(job_script(what, overrides, run, allocation), end="")
