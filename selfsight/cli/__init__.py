"""The command line: parses arguments, calls one function of the package, prints what it returns."""

import functools
import os
import signal
import sys

from selfsight.cli import pretraining, evaluation, data, tables  # isort: skip  # noqa: F401
from selfsight.cli.app import app
from selfsight.cli.files import plugins
from selfsight.errors import UserError


@functools.cache
def register_all() -> None:
    """Register the commands that are not yet: those of plug-ins, and last the lists of what is
    shipped, for this is the order of the help."""
    for plugin in plugins():
        plugin.register(app)
    from selfsight.cli import lists  # noqa: F401


def main() -> None:
    """Entry point: a user's mistake is told in plain lines on stderr, with exit code 2."""
    try:
        register_all()
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
