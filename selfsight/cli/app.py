"""What the commands share: the application, common arguments, messages."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from selfsight import __version__
from selfsight.cli.said import is_first_rank, this_command

if TYPE_CHECKING:
    from selfsight.evaluate.protocols import Result

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Pretrain image encoders without labels, and measure honestly what they learned.",
)

# The panels of `selfsight --help`, in their order.
TRAIN, EVALUATE, USE = "Train", "Evaluate", "Use an encoder"
DATA, COMPARE = "Data", "Compare"
OTHER, LISTS = "Other systems", "What is shipped"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"selfsight {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="print the version"),
    ] = False,
) -> None:
    pass


def complete_recipe(incomplete: str) -> list[str]:
    """The recipes that begin like this, for completion in a shell."""
    from selfsight.pretraining.recipes import recipes

    return [name for name in recipes() if name.startswith(incomplete)]


What = Annotated[
    str,
    typer.Argument(
        help="a recipe (see `selfsight recipes`) or a YAML file",
        autocompletion=complete_recipe,
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value with dotted keys: method.temperature=0.2")
]


def list_names(names: list[str], title: Callable[[str], str]) -> None:
    for name in names:
        print(f"{name:{max(map(len, names))}}  {title(name)}")


def print_from_first(results: "list[Result]") -> None:
    from selfsight.report.console import print_results

    if is_first_rank():
        print_results(results)


@contextmanager
def continuing() -> Iterator[None]:
    """A signal ends the command with the line that continues it."""
    from selfsight.train.signals import Interrupted

    try:
        yield
    except Interrupted as stop:
        if is_first_rank():
            print(f"{stop} Resume with: {this_command()}", file=sys.stderr)
        raise typer.Exit(128 + stop.signal_number) from None
