"""The command line: parses arguments, calls one function of the package, prints what it returns."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tacit.errors import UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Pretrain image encoders without labels, and measure honestly what they learned.",
)

What = Annotated[str, typer.Argument(help="a shipped recipe (see `tacit recipes`) or a YAML file")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value with dotted keys: method.temperature=0.2")
]
DataOverrides = Annotated[
    list[str] | None, typer.Argument(help="data.key=value for other data, or device=cpu")
]
RunFolder = Annotated[Path, typer.Argument(help="the folder of a finished run")]


@app.command()
def pretrain(
    what: What,
    overrides: Overrides = None,
    run: Annotated[str | None, typer.Option(help="folder of the run")] = None,
) -> None:
    """Pretrain an encoder; the same command again continues a stopped run."""
    from tacit import run as jobs
    from tacit.run_config import compose
    from tacit.train.session import Interrupted

    config = compose(what, overrides, run).config
    try:
        folder = jobs.pretrain(config)
    except Interrupted as stop:
        if _is_first_rank():
            print(f"{stop} Resume with: {_this_command()}", file=sys.stderr)
        raise typer.Exit(128 + stop.signal_number) from None
    if _is_first_rank():
        print(f"Done: {folder / 'encoder.safetensors'}. Measure it with: tacit knn {folder}")


@app.command()
def knn(run: RunFolder, overrides: DataOverrides = None) -> None:
    """Classify test images by their nearest training images; beside an untrained encoder."""
    from tacit import measure

    measure.knn(run, overrides)
    _print_results(run)


@app.command()
def linear(run: RunFolder, overrides: DataOverrides = None) -> None:
    """Linear classifier on frozen features: all labels, then 1 and 5 labels per class."""
    from tacit import measure

    measure.linear(run, overrides)
    _print_results(run)


@app.command()
def views(
    what: What,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file")] = Path("views.png"),
    rows: Annotated[int, typer.Option(min=1, help="images")] = 8,
    epochs: Annotated[int, typer.Option(min=1, help="epochs, each with new views")] = 4,
) -> None:
    """Draw images and the views that a recipe makes of them."""
    from tacit import run as jobs
    from tacit.run_config import compose

    jobs.draw_views(compose(what, overrides).config, output, rows, epochs)
    print(f"Wrote {output}")


@app.command()
def show(what: What, overrides: Overrides = None) -> None:
    """Print every value of a configuration and who set it."""
    from rich.table import Table

    from tacit.run_config import compose

    table = Table(box=None, pad_edge=False)
    table.add_column("key", no_wrap=True)
    for title in ("value", "set by"):
        table.add_column(title, overflow="fold")
    for key, value, origin in compose(what, overrides).rows():
        style = "dim" if origin.startswith("default") else None
        table.add_row(key, str(value), origin, style=style)
    _console().print(table, markup=False)


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from tacit import run_config

    names = run_config.recipes()
    for name in names:
        print(f"{name:{max(map(len, names))}}  {run_config.recipe_title(name)}")


@app.command()
def methods() -> None:
    """List the methods: paper, year, what each needs, its recipes."""
    from rich.table import Table

    from tacit import run_config
    from tacit.methods import METHODS

    shipped = [name.partition("/") for name in run_config.recipes()]
    table = Table(box=None, pad_edge=False)
    for title in ("method", "year", "arXiv"):
        table.add_column(title, no_wrap=True)
    for title in ("paper", "needs", "recipes"):
        table.add_column(title, overflow="fold")
    for name, method in METHODS.items():
        paper = method.paper()
        where = ", ".join(folder for folder, _, recipe in shipped if recipe == name)
        needs = ", ".join(method.needs)
        table.add_row(name, str(paper.year), paper.arxiv, paper.title, needs, where)
    _console().print(table, markup=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of configuration files, for editors."""
    import json

    from tacit.run_config import json_schema

    print(json.dumps(json_schema(), indent=2))


COLUMNS = (  # title, protocol, metric
    ("kNN k=20", "knn", "k20"),
    ("kNN k=200", "knn", "k200"),
    ("linear top-1", "linear", "top1"),
    ("top-5", "linear", "top5"),
    ("1 label/class", "linear", "shots1"),
    ("5 labels/class", "linear", "shots5"),
)


def _print_results(folder: Path) -> None:
    """The newest results of the run as a table, in percent on the test split."""
    from rich.table import Table

    from tacit.measure import read_results

    records = {(r["protocol"], r["evaluated"]): r for r in read_results(folder)}
    last = list(records.values())[-1]
    data = last["data"]
    table = Table(
        title=f"{folder}: test accuracy in % ({data['test']} images, seed {last['seed']})",
        title_justify="left",
        caption="few labels: mean +- standard deviation over 10 draws",
        caption_justify="left",
    )
    table.add_column("features", no_wrap=True)
    for title, _, _ in COLUMNS:
        table.add_column(title, justify="right")
    for evaluated in ("encoder", "untrained", "pixels"):
        cells = []
        for _, protocol, metric in COLUMNS:
            metrics = records.get((protocol, evaluated), {}).get("metrics", {})
            cells.append(_percent(metrics, metric))
        table.add_row(evaluated, *cells, style="bold" if evaluated == "encoder" else None)
    _console().print(table)


def _console() -> Any:
    """As wide as the terminal; in a pipe, where no width is known, wide enough for a table."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=110)


def _percent(metrics: dict[str, Any], name: str) -> str:
    if name not in metrics:
        return "-"
    text = f"{100 * metrics[name]:.1f}"
    spread = metrics.get(f"{name}_std")
    return text if spread is None else f"{text} +- {100 * spread:.1f}"


def _is_first_rank() -> bool:
    """Whether this is the only process, or the one of torchrun's that speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def _this_command() -> str:
    """What was typed, so that it can be typed again."""
    import shlex

    program = "python -m tacit" if sys.argv[0].endswith("__main__.py") else "tacit"
    return f"{program} {shlex.join(sys.argv[1:])}"


def main() -> None:
    """Entry point: a user's mistake is told in plain lines on stderr, with exit code 2."""
    try:
        app(prog_name="tacit")
    except UserError as error:
        for line in str(error).splitlines():
            print(line if line.startswith("  ") else f"tacit: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("tacit: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
