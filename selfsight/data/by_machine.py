"""One process of each machine opens a source; the others map its arrays from a file of that one, so
that an index of many images is read once and lies in memory once."""

import contextlib
import mmap
import os
import pickle
import tempfile
from collections.abc import Callable
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from selfsight import agreement, distributed

T = TypeVar("T")
ALIGNED = 64  # bytes: where arrays begin in the file


class Place(NamedTuple):
    """Where a process has left what it opened.

    Attributes:
        file: in the folder for temporary files; it is removed when all have mapped it.
        ends: of each array in the file, and after them of the rest, in bytes.
        digest: SHA-256 of the rest.
        folder: device and number of the working folder, where relative paths start.
    """

    file: Path
    ends: list[int]
    digest: str
    folder: tuple[int, int]


class Copied:
    """A source that leaves its cached properties, such as open files, out of its copy in another
    process, which makes them anew."""

    def __getstate__(self) -> dict[str, Any]:
        cached = {
            name
            for kind in type(self).__mro__
            for name, value in vars(kind).items()
            if isinstance(value, cached_property)
        }
        return {key: value for key, value in vars(self).items() if key not in cached}


def by_machine(work: Callable[[], T], alike: Callable[[T], dict[str, Any]]) -> T:
    """What `work` returns, as `agreement.by_all`; but the first process of each machine alone
    calls it, and the others get a copy of its result whose arrays lie in memory that all of the
    machine share. They are read-only.

    A process opens the images by itself, if it cannot use the other's: if a data set is the user's
    own code, if there is no room for the file, or if it has another working folder or disk.
    Args:
        alike: of a result what must be the same on all ranks. It is called before the result is
            shared, and may keep in it what costs time to find out.
    Raises: as `by_all`.
    """
    many, local = distributed.local_world_size() > 1, distributed.local_rank()
    opened = agreement.by_all(lambda: _opened(work, alike, many) if local == 0 else None)
    place = opened and opened[1]
    try:
        places = agreement.gather_objects(place)
        theirs = places[distributed.rank() - local]

        def take() -> T:
            taken = _mapped(theirs)
            return taken if taken is not None else opened[0] if opened else work()

        return agreement.by_all(take, alike)
    finally:
        if place is not None:
            place.file.unlink(missing_ok=True)


def _opened(
    work: Callable[[], T], alike: Callable[[T], dict[str, Any]], many: bool
) -> tuple[T, Place | None]:
    result = work()
    if not many or os.name != "posix":
        return result, None
    alike(result)
    return result, _leave(result)


def _leave(result: Any) -> Place | None:
    """Write it into a file; None if that is not possible, and each process opens it by itself."""
    buffers: list[pickle.PickleBuffer] = []
    file, ends = None, []
    try:
        rest = pickle.dumps(result, 5, buffer_callback=buffers.append)
        handle, name = tempfile.mkstemp(".index", "selfsight-")
        file = Path(name)
        with os.fdopen(handle, "wb") as stream:
            for buffer in (*buffers, rest):
                stream.write(bytes(-stream.tell() % ALIGNED))
                stream.write(buffer)
                ends.append(stream.tell())
    except Exception:  # objects of libraries raise more kinds than pickle documents
        if file is not None:
            file.unlink(missing_ok=True)
        return None
    return Place(file, ends, sha256(rest).hexdigest(), _folder())


def _mapped(place: Place | None) -> Any:
    """What the process has left; None if this one does not see it, or sees other files."""
    if place is None or place.folder != _folder():
        return None
    # A pack that cannot be opened again may raise anything; opening all by itself says why.
    with contextlib.suppress(Exception), place.file.open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        starts = [-(-end // ALIGNED) * ALIGNED for end in (0, *place.ends[:-1])]
        *buffers, rest = (view[a:b] for a, b in zip(starts, place.ends, strict=True))
        if sha256(rest).hexdigest() == place.digest:
            return pickle.loads(rest, buffers=buffers)
    return None


def _folder() -> tuple[int, int]:
    status = os.stat(".")
    return status.st_dev, status.st_ino
