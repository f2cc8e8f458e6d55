"""Errors in code that is not of the package: one line that names the place, and the traceback from
that place on below it."""

import contextlib
import inspect
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from selfsight.errors import UserError


@contextlib.contextmanager
def blamed(values: Iterable[Any]) -> Iterator[None]:
    """Raise what goes wrong in these files, or in those of these classes, functions or objects, as
    a UserError.

    Errors elsewhere, and those of the operating system, pass as they are.
    """
    files = [file for value in values if (file := source_file(value)) is not None]
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        trace = frames(error, files)
        if not trace:
            raise
        raise UserError(f"{_place(error, files)}: {words(error)}\n{trace}") from error


def named(value: Any) -> str:
    """'Mine (my_method.py)': how messages call a class, a function or an object.

    >>> named(UserError)
    'UserError (errors.py)'
    """
    about, file = definition(value), source_file(value)
    where = file.name if file else getattr(about, "__module__", "?")
    return f"{getattr(about, '__qualname__', about)} ({where})"


def source_file(value: Any) -> Path | None:
    """The file of a class or a function, or of an object's class; None for code without one."""
    if value is None or isinstance(value, Path):
        return value
    try:
        return Path(inspect.getsourcefile(definition(value)) or "").resolve()
    except (TypeError, OSError):
        return None


def frames(error: BaseException, files: list[Path]) -> str:
    """The traceback from the first frame in one of the files on; "" if none is in them."""
    return "".join(traceback.format_list(_own(error, files))).rstrip("\n")


def words(error: BaseException) -> str:
    """The kind and the text of an error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def definition(value: Any) -> Any:
    """A class or a function itself, the class of any other object."""
    return value if inspect.isclass(value) or inspect.isroutine(value) else type(value)


def _own(error: BaseException, files: list[Path]) -> list[traceback.FrameSummary]:
    stack = traceback.extract_tb(error.__traceback__)
    inside = [n for n, frame in enumerate(stack) if Path(frame.filename).resolve() in files]
    return list(stack)[inside[0] :] if inside else []


def _place(error: BaseException, files: list[Path]) -> str:
    """'my_method.py:23, in forward': the last line of the files that was reached."""
    last = [f for f in _own(error, files) if Path(f.filename).resolve() in files][-1]
    return f"{Path(last.filename).name}:{last.lineno}, in {last.name}"
