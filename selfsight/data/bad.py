"""A record of undecodable images, which training replaces; too many of them end the run."""

import threading
from pathlib import Path

from selfsight.data.source import BadImage, ChangedImage
from selfsight.errors import UserError, printable
from selfsight.files import naming
from selfsight.locks import appending


class BadImages:
    """The undecodable images of a run, one line each in a file that all its processes share.

    Args:
        file: name and reason of each image, separated by a tab. Lines that are already in it count.
            None: keep the lines in memory only.
        images: how many images the source has.
        most: the fraction of them that may be undecodable.
    Attributes:
        lines: the lines that this process has read or written.
    """

    def __init__(self, file: Path | None, images: int, most: float) -> None:
        self._file, self._images, self._most = file, images, most
        self._lock = threading.Lock()
        self.lines: list[str] = []

    def note(self, error: BadImage) -> None:
        """Add a line, if the file has no equal one.

        Raises: UserError if more images are undecodable than `most` allows; ChangedImage.
        """
        if isinstance(error, ChangedImage):
            raise error
        line = line_of(error)
        with self._lock:
            self._add(line)
        count, allowed = len(self.lines), int(self._most * self._images)
        if count > allowed:
            raise UserError(
                f"data.max_bad={self._most}: {count} of {self._images:,} images cannot be used, "
                f"at most {allowed} may be; the last is {error.name}: {error.reason}. Repair or "
                f"remove them (`selfsight check` lists all), or raise data.max_bad"
            )

    def _add(self, line: str) -> None:
        if self._file is None:
            self.lines += [line] if line not in self.lines else []
            return
        with naming(self._file), appending(self._file) as file:
            self.lines = read_bad(self._file)
            if line not in self.lines:
                self.lines.append(line)
                file.write(f"{line}\n")


def line_of(error: BadImage) -> str:
    """Name and reason of an image, separated by a tab, as a line of text."""
    parts = (error.name, error.reason)
    words = (" ".join(part.replace("\t", " ").splitlines()) for part in parts)
    return printable("\t".join(words))


def read_bad(file: Path) -> list[str]:
    """The lines of a file of undecodable images; [] if the file does not exist."""
    return file.read_text("utf-8", "surrogateescape").splitlines() if file.is_file() else []
