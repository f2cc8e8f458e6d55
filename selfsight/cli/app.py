"""What the commands share: the application, their common arguments, how they speak."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from selfsight.evaluate.protocols import Result

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Pretrain image encoders without labels, and measure honestly what they learned.",
)

What = Annotated[
    str, typer.Argument(help="a shipped recipe (see `selfsight recipes`) or a YAML file")
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


def is_first_rank() -> bool:
    """Whether this is the only process, or the one of torchrun's that speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def this_command() -> str:
    """What was typed, so that it can be typed again."""
    import shlex

    program = "python -m selfsight" if sys.argv[0].endswith("__main__.py") else "selfsight"
    return f"{program} {shlex.join(sys.argv[1:])}"
