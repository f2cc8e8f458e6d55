"""The exception for mistakes of a user; the command line prints it and exits with status 2."""

from collections.abc import Iterable

SHOWN = 3  # names in a message


class UserError(Exception):
    """The message names key and value, why they are refused and what to type; a line a problem."""


def some(names: Iterable[str]) -> str:
    """The first names, and the number of the others, for a message of one line."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
