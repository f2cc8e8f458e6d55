"""The command line: parses arguments, calls one function of the package, prints what it returns."""

import os
import signal
import sys

# In the order of the help; each registers its commands.
from selfsight.cli import pretraining, evaluation, tables, data, lists  # isort: skip  # noqa: F401
import selfsight.interop.cli.commands  # noqa: F401
from selfsight.cli.app import app
from selfsight.errors import UserError


def main() -> None:
    """Entry point: a user's mistake is told in plain lines on stderr, with exit code 2."""
    try:
        app(prog_name="selfsight")
    except UserError as error:
        for line in str(error).splitlines():
            print(line if line.startswith("  ") else f"selfsight: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("selfsight: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a folder that cannot be written, a full disk
        if error.filename is None:
            raise
        print(f"selfsight: '{error.filename}': {error.strerror}", file=sys.stderr)
        sys.exit(2)
