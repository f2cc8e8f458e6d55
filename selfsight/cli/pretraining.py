"""Commands that pretrain."""

from typing import Annotated

import typer

from selfsight.cli.app import TRAIN, Overrides, What, app, continuing
from selfsight.cli.files import ConfigFile, Opts, composed, open_file
from selfsight.cli.said import is_first_rank


@app.command(rich_help_panel=TRAIN)
def pretrain(
    what: What,
    overrides: Overrides = None,
    run: Annotated[str | None, typer.Option(help="folder of the run")] = None,
    opts: Opts = False,
) -> None:
    """Pretrain an encoder; the same command again continues a stopped run."""
    pretrain_file(open_file(what, overrides, opts), run)


def pretrain_file(file: ConfigFile, run: str | None) -> None:
    """Pretrain as a file says, and print where the encoder is."""
    from selfsight.pretraining import job

    with continuing(), file.translated():
        config = file.compose(run).config
        file.start_processes(config.device)
        folder = job.pretrain(config)
    if is_first_rank():
        print(f"Done: {folder / 'encoder.safetensors'}. Measure it with: selfsight knn {folder}")


@app.command(rich_help_panel=TRAIN)
def profile(
    what: What,
    overrides: Overrides = None,
    seconds: Annotated[float, typer.Option(min=1, help="duration of the training")] = 60,
) -> None:
    """Train for a minute, keep nothing, and print which part of a step takes how long."""
    from selfsight.pretraining import profile as profiling
    from selfsight.report.console import print_profile

    with composed(what, overrides) as found:
        print_profile(profiling.profile(found.config, seconds))
