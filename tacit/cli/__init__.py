"""The command line: parses arguments, calls one function of the package, prints what it returns."""

import os
import signal
import sys

# In the order of the help; each registers its commands.
from tacit.cli import pretraining, evaluation, dialects, tables, data, lists  # isort: skip  # noqa: F401
from tacit.cli.app import app
from tacit.errors import UserError


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
    except OSError as error:  # a folder that cannot be written, a full disk
        if error.filename is None:
            raise
        print(f"tacit: '{error.filename}': {error.strerror}", file=sys.stderr)
        sys.exit(2)
