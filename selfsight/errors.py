"""The exception for mistakes of a user; the command line prints it and exits with status 2."""

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

SHOWN = 3  # names in a message
# Codes that move a terminal's cursor, colour it, answer for the user, or reverse what is read.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class UserError(Exception):
    """The message names key and value, why they are refused and what to type; a line a problem.

    Attributes:
        everywhere: every process of a distributed run raises this, so only the first prints it.

    >>> try:
    ...     selfsight.compose("digits/simclr", ["epochz=3"])
    ... except UserError as error:
    ...     print(error)
    Unknown key 'epochz'. Did you mean 'epochs'?
    """

    everywhere = False


def some(names: Iterable[str]) -> str:
    """The first names, and the number of the others, for a message of one line."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def printable(text: str) -> str:
    """The text with control codes as a programmer writes them: names of files may hold any.

    >>> printable("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def described(error: OSError) -> str:
    """An error of the operating system in one line: the file, if it is known, and the reason."""
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    return reason if error.filename is None else f"'{_text(error.filename)}': {reason}"


def with_remedy(error: Exception) -> str:
    """An error of the operating system, a lack of memory or another error, in one line with what to
    do, if that is known."""
    if isinstance(error, OSError):  # a folder that cannot be written, a full disk
        return f"{described(error)}. Remove the cause and run the same command again"
    if isinstance(error, MemoryError):
        detail = f" ({error})" if str(error) else ""
        return f"not enough memory{detail}; free some, or reduce batch_size"
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def room(path: Path, needed: int | None = None, quota: bool = False) -> str:
    """How many bytes a file needs, if that is known, and how many are free on its disk, in words.

    Args:
        quota: the user has no room left, the disk may have.
    """
    folder = next(p for p in path.absolute().parents if p.is_dir())
    words = [] if needed is None else [f"{needed:,} bytes are needed"]
    words.append(f"{shutil.disk_usage(folder).free:,} bytes are free")
    if quota:
        words[-1] += " on the disk, fewer for this user"
    elif hasattr(os, "statvfs") and os.statvfs(folder).f_files > 0 == os.statvfs(folder).f_favail:
        words.append("the disk takes no further file")
    return ", ".join(words)


def _text(path: str | bytes | int) -> str:
    return path.decode(errors="surrogateescape") if isinstance(path, bytes) else str(path)
