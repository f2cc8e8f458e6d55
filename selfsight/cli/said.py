"""What every command says in stderr, and which process says it. Imports nothing that takes long."""

import os
import shlex
import sys

from selfsight.errors import printable


def say(text: str) -> None:
    """A line for each problem; lines that begin with spaces belong to the one before."""
    for line in printable(text).splitlines():
        print(line if line.startswith("  ") else f"selfsight: {line}", file=sys.stderr)


def is_first_rank() -> bool:
    """Whether this is the only process, or the one of torchrun's that speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def this_command() -> str:
    """What was typed, so that it can be typed again."""
    program = "python -m selfsight" if sys.argv[0].endswith("__main__.py") else "selfsight"
    return f"{program} {shlex.join(sys.argv[1:])}"
