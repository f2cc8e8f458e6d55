"""The command line: parses arguments, calls one function of the package, prints what it returns.

This file imports nothing that takes long, so that a signal is caught from the first moment on.
"""

import functools
import io
import os
import signal
import sys

from selfsight import mapped
from selfsight.cli.said import is_first_rank, say, this_command
from selfsight.errors import UserError, with_remedy
from selfsight.processes import Stopped, end_with_parent, stopped_by_signals


@functools.cache
def register_all() -> None:
    """Register the commands, those of plug-ins and, after them, those that list what is shipped:
    the help shows commands in this order."""
    from selfsight.cli import start, pretraining, evaluation, features, search, export  # isort: skip  # noqa: F401
    from selfsight.cli import data, report, tables  # noqa: F401
    from selfsight.cli.app import app
    from selfsight.cli.files import plugins

    for plugin in plugins():
        plugin.register(app)
    from selfsight.cli import lists  # noqa: F401


def main() -> None:
    """Entry point. A user's mistake, a signal or a full disk gives one line on stderr and no
    traceback; the exit code is 2, after a signal 128 + its number."""
    _print_any_name()
    mapped.end_with_a_line(say)
    try:
        with stopped_by_signals(_say_stopped):
            sys.exit(_run())
    except Stopped as stop:
        sys.exit(_ended_by(stop.number))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _print_any_name() -> None:
    """The name of a file may be bytes that the terminal's encoding lacks: codes stand for them on
    stdout too, as Python does it on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _run() -> int:
    """The exit code of the command."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        end_with_parent()
    try:
        register_all()
        from selfsight import own
        from selfsight.cli.app import app

        with own.named_in(sys.argv[1:]):
            app(prog_name="selfsight")
        return 0
    except UserError as error:
        _say_mistake(error)
    except BrokenPipeError:
        raise
    except (OSError, MemoryError) as error:
        _say_mistake(UserError(with_remedy(error)))
    except RuntimeError as error:
        if not _is_of_another_process(error):
            raise
        if is_first_rank():
            say("another process of this run has ended, so this one ends; its message says why")
    return 2


def _say_mistake(error: UserError) -> None:
    """Print it, if no other process of the run does."""
    agreement = sys.modules.get("selfsight.agreement")
    error = (agreement and agreement.before_joining(error)) or error
    if not error.everywhere or is_first_rank():
        say(str(error))


def _ended_by(number: int) -> int:
    """The exit code after a signal: torchrun sends one to the others after a mistake of one."""
    agreement = sys.modules.get("selfsight.agreement")
    mistake = agreement and agreement.mistake()
    if mistake:
        _say_mistake(mistake)
        return 2
    _say_stopped(number)
    return 128 + number


def _is_of_another_process(error: RuntimeError) -> bool:
    agreement = sys.modules.get("selfsight.agreement")
    return agreement is not None and agreement.is_of_another(error)


def _say_stopped(number: int) -> None:
    if is_first_rank():
        name = signal.Signals(number).name
        say(f"stopped by {name}; what was saved before is kept. Continue with: {this_command()}")
