"""Broken images that training puts up with: each is written down, too many end the run."""

import threading
from contextlib import nullcontext
from pathlib import Path

from selfsight.data.source import BadImage
from selfsight.errors import UserError
from selfsight.files import appending


class BadImages:
    """The broken images of a run, one line each in a file that all its processes share.

    Attributes:
        lines: that this process knows of.

    Args:
        file: path and reason of each, separated by a tab; an earlier part of the run counts, too.
            None keeps them in memory.
        images: of the source.
        most: the fraction of them that may be broken.
    """

    def __init__(self, file: Path | None, images: int, most: float) -> None:
        self._file, self._images, self._most = file, images, most
        self._lock = threading.Lock()
        self.lines: list[str] = []

    def note(self, error: BadImage) -> None:
        """Write it down, once.

        Raises: UserError if there are now too many.
        """
        parts = (error.name, error.reason)
        line = "\t".join(" ".join(part.replace("\t", " ").splitlines()) for part in parts)
        with self._lock, appending(self._file) if self._file else nullcontext() as file:
            if file:
                self.lines = read_bad(self._file)
            if line not in self.lines:
                self.lines.append(line)
                if file:
                    file.write(f"{line}\n")
        count, allowed = len(self.lines), int(self._most * self._images)
        if count > allowed:
            raise UserError(
                f"data.max_bad={self._most}: {count} of {self._images:,} images cannot be used, "
                f"{allowed} may be; the last is {error.name}: {error.reason}. Mend or remove them "
                f"(`selfsight check` lists all), or raise data.max_bad"
            )


def read_bad(file: Path) -> list[str]:
    """The lines of such a file; none if there is no file."""
    return file.read_text("utf-8", "surrogateescape").splitlines() if file.is_file() else []
