"""Messages on stderr, and which process prints them. Imports nothing that takes long."""

import os
import shlex
import sys

from selfsight.errors import printable


def say(text: str) -> None:
    """A line for each problem; lines that begin with spaces belong to the one before."""
    for line in printable(text).splitlines():
        print(line if line.startswith("  ") else f"selfsight: {line}", file=sys.stderr)


def is_first_rank() -> bool:
    """Whether this process prints: the only one, or rank 0 under torchrun."""
    return int(os.environ.get("RANK", "0")) == 0


def this_command() -> str:
    """The command line as the user typed it, for `Continue with:`."""
    program = "python -m selfsight" if sys.argv[0].endswith("__main__.py") else "selfsight"
    return f"{program} {shlex.join(sys.argv[1:])}"
