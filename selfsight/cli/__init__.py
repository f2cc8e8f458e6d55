"""The command line: parses arguments, calls one function of the package, prints what it returns."""

import functools
import os
import signal
import sys

from selfsight.cli import pretraining, evaluation, data, tables  # isort: skip  # noqa: F401
from selfsight.cli.app import app
from selfsight.cli.files import plugins
from selfsight.errors import UserError, printable


@functools.cache
def register_all() -> None:
    """Register the commands of plug-ins and, after them, those that list what is shipped: the help
    shows commands in this order."""
    for plugin in plugins():
        plugin.register(app)
    from selfsight.cli import lists  # noqa: F401


def main() -> None:
    """Entry point: a UserError is printed to stderr, one line for each mistake; exit code 2."""
    try:
        register_all()
        app(prog_name="selfsight")
    except UserError as error:
        for line in printable(str(error)).splitlines():
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
        print(printable(f"selfsight: '{error.filename}': {error.strerror}"), file=sys.stderr)
        sys.exit(2)
