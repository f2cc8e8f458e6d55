"""The command line: parses arguments, calls one function of the package, prints what it returns."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tacit.errors import UserError

if TYPE_CHECKING:
    from tacit.measure import Result

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
Protocol = Annotated[
    str, typer.Option(help="a shipped protocol (see `tacit protocols`) or a YAML file")
]
Results = Annotated[str | None, typer.Option("--run", help="folder of the results")]


@app.command()
def pretrain(
    what: What,
    overrides: Overrides = None,
    run: Annotated[str | None, typer.Option(help="folder of the run")] = None,
) -> None:
    """Pretrain an encoder; the same command again continues a stopped run."""
    from tacit import run as jobs
    from tacit.run_config import compose

    config = compose(what, overrides, run).config
    with _continuing():
        folder = jobs.pretrain(config)
    if _is_first_rank():
        print(f"Done: {folder / 'encoder.safetensors'}. Measure it with: tacit knn {folder}")


@app.command()
def knn(where: Subject, keys: EvaluationKeys = None, run: Results = None) -> None:
    """Classify test images by their nearest training images; beside an untrained encoder."""
    from tacit import measure

    _print(measure.knn(where, keys, run))


@app.command()
def linear(where: Subject, keys: EvaluationKeys = None, run: Results = None) -> None:
    """Linear classifier on cached features: all labels, then 1 and 5 labels per class."""
    from tacit import measure

    _print(measure.linear(where, keys, run))


@app.command(name="linear-augmented")
def linear_augmented(
    where: Subject,
    keys: EvaluationKeys = None,
    run: Results = None,
    protocol: Protocol = "linear-augmented",
) -> None:
    """Linear classifier on a frozen encoder, trained with crop and flip; continues if stopped."""
    from tacit import measure

    with _continuing():
        _print(measure.linear_augmented(where, keys, run, protocol))


@app.command()
def finetune(
    where: Subject,
    keys: EvaluationKeys = None,
    run: Results = None,
    protocol: Protocol = "finetune",
) -> None:
    """Train the whole network as a classifier, beside one from scratch; continues if stopped."""
    from tacit import measure

    with _continuing():
        _print(measure.finetune(where, keys, run, protocol))


@app.command()
def protocols() -> None:
    """List the shipped protocols of `linear-augmented` and `finetune`."""
    from tacit.measure import config

    _list(config.protocols(), config.title)


@app.command()
def bench(
    grid: Annotated[str, typer.Argument(help="a shipped grid (see `tacit grids`) or a YAML file")],
    keys: Annotated[
        list[str] | None, typer.Argument(help="key=value of every pretraining: data.path=...")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="folder (default: runs/bench-GRID)")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="cells at a time (default: one a GPU, one a core)")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:1")] = "auto",
    compare: Annotated[
        tuple[str, str] | None, typer.Option(help="two rows to compare, seed by seed")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="of --compare (default: the one that ranks)")
    ] = None,
) -> None:
    """Run a grid of pretrainings and evaluations, what is missing of it, and print its table."""
    from tacit.grid import bench as work
    from tacit.grid.plan import read_grid
    from tacit.grid.rows import compare_rows, rows
    from tacit.grid.table import to_rich, write_all
    from tacit.printing import console

    config = read_grid(grid, keys)
    folder = output or Path(f"runs/bench-{Path(grid).stem}")
    say = partial(console(stderr=True).print, soft_wrap=True, markup=False)
    try:
        cells, about = work.bench(config, folder, jobs, device, say)
    except work.Stopped:
        print(f"Stopped; what is done is saved. Resume with: {_this_command()}", file=sys.stderr)
        raise typer.Exit(128 + signal.SIGINT) from None
    write_all(folder, cells, about)
    found = rows(cells)
    console().print(to_rich(found, about))
    if compare:
        line = compare_rows(cells, *compare, column or found[0].main or "")
        console().print(line, soft_wrap=True, markup=False)
    print(f"Wrote {folder}/table.md, table.csv, table.json")
    if any(cell.error for cell in cells):
        raise typer.Exit(1)


@app.command()
def grids() -> None:
    """List the shipped grids."""
    from tacit.grid import plan

    _list(plan.grids(), plan.title)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="folders of two or more runs")],
) -> None:
    """Print what differs between runs, in configuration and in results."""
    from tacit import compare as comparing
    from tacit.printing import console

    console().print(comparing.render(comparing.compare(runs)))


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
    from tacit.printing import print_columns
    from tacit.run_config import compose

    rows = compose(what, overrides).rows()
    dim = [origin.startswith("default") for _, _, origin in rows]
    print_columns(("key", "value", "set by"), [[*map(str, row)] for row in rows], 1, dim)


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from tacit import run_config

    _list(run_config.recipes(), run_config.recipe_title)


@app.command()
def methods() -> None:
    """List the methods: paper, year, what each needs, its recipes."""
    from tacit import run_config
    from tacit.methods import METHODS
    from tacit.printing import print_columns

    shipped = [name.partition("/") for name in run_config.recipes()]
    rows = []
    for name, method in METHODS.items():
        paper = method.paper()
        where = ", ".join(folder for folder, _, recipe in shipped if recipe == name)
        needs = ", ".join(method.needs)
        rows.append([name, str(paper.year), paper.arxiv, paper.title, needs, where])
    print_columns(("method", "year", "arXiv", "paper", "needs", "recipes"), rows, 3)


@app.command()
def schema() -> None:
    """Print the JSON Schema of configuration files, for editors."""
    import json

    from tacit.run_config import json_schema

    print(json.dumps(json_schema(), indent=2))


def _list(names: list[str], title: Callable[[str], str]) -> None:
    for name in names:
        print(f"{name:{max(map(len, names))}}  {title(name)}")


def _print(results: "list[Result]") -> None:
    from tacit.printing import print_results

    if _is_first_rank():
        print_results(results)


@contextmanager
def _continuing() -> Iterator[None]:
    """A signal ends the command with the line that continues it."""
    from tacit.train.session import Interrupted

    try:
        yield
    except Interrupted as stop:
        if _is_first_rank():
            print(f"{stop} Resume with: {_this_command()}", file=sys.stderr)
        raise typer.Exit(128 + stop.signal_number) from None


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
