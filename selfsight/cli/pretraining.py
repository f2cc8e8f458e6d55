"""Commands that pretrain."""

from typing import TYPE_CHECKING, Annotated

import typer

from selfsight.cli.app import Overrides, What, app, continuing, is_first_rank
from selfsight.interop.cli.jobs import Opts, compose_job, composed, in_its_words, read_job
from selfsight.interop.cli.processes import share_out

if TYPE_CHECKING:
    from selfsight.interop.report import Converted


@app.command()
def pretrain(
    what: What,
    overrides: Overrides = None,
    run: Annotated[str | None, typer.Option(help="folder of the run")] = None,
    opts: Opts = False,
) -> None:
    """Pretrain an encoder; the same command again continues a stopped run."""
    pretrain_job(read_job(what, overrides, opts), what, overrides, run)


def pretrain_job(
    job: "Converted | None", what: str, overrides: list[str] | None, run: str | None
) -> None:
    """Pretrain as a recipe says, or another system's file, in as many processes as that asks for.

    Args:
        job: what `read_job` has read of it.
    """
    from selfsight.pretraining import job as jobs

    with continuing(), in_its_words(job):
        config = compose_job(job, what, overrides, run).config
        if job is not None:
            share_out(job.processes, config.device)
        folder = jobs.pretrain(config)
    if is_first_rank():
        print(f"Done: {folder / 'encoder.safetensors'}. Measure it with: selfsight knn {folder}")


@app.command()
def profile(
    what: What,
    overrides: Overrides = None,
    seconds: Annotated[float, typer.Option(min=1, help="of training")] = 60,
) -> None:
    """Train for a minute, keep nothing, and print where the time goes and what would help."""
    from selfsight.pretraining import profile as profiling
    from selfsight.report.console import print_profile

    print_profile(profiling.profile(composed(what, overrides).config, seconds))
