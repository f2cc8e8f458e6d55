"""Commands that pretrain."""

from typing import Annotated

import typer

from tacit.cli.app import Overrides, What, app, continuing, is_first_rank
from tacit.cli.jobs import Opts, composed, in_its_words, read_job


@app.command()
def pretrain(
    what: What,
    overrides: Overrides = None,
    run: Annotated[str | None, typer.Option(help="folder of the run")] = None,
    opts: Opts = False,
) -> None:
    """Pretrain an encoder; the same command again continues a stopped run."""
    from tacit import run as jobs

    with continuing(), in_its_words(read_job(what, overrides, opts)):
        folder = jobs.pretrain(composed(what, overrides, run, opts, trains=True).config)
    if is_first_rank():
        print(f"Done: {folder / 'encoder.safetensors'}. Measure it with: tacit knn {folder}")


@app.command()
def profile(
    what: What,
    overrides: Overrides = None,
    seconds: Annotated[float, typer.Option(min=1, help="of training")] = 60,
) -> None:
    """Train for a minute, keep nothing, and print where the time goes and what would help."""
    from tacit import profiling
    from tacit.printing import print_profile

    print_profile(profiling.profile(composed(what, overrides).config, seconds))
