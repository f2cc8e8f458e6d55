"""Files on the web, each downloaded once."""

import hashlib
import os
import sys
import time
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from selfsight.data.source import first_line
from selfsight.errors import UserError
from selfsight.files import appending, rename_durably

CHUNK = 2**20  # bytes
PATIENCE = 60.0  # seconds without a byte after which a connection has failed


def fetch(url: str, place: str) -> Path:
    """The whole file as a local one, in ~/.cache/selfsight/shards ($XDG_CACHE_HOME in place of
    ~/.cache), where it stays.

    What an interruption left of a download is downloaded again. Of several processes that want
    the same file, one downloads it and the others wait.

    Args:
        place: which file this is, for the line of progress: "3 of 12".
    Raises: UserError if it cannot be had.
    """
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.netloc:
        raise UserError(f"data.path={url}: only http:// and https:// addresses can be downloaded")
    name = PurePosixPath(address.path).name[-100:]
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    target = downloads() / "shards" / name
    part = target.with_name(f".{name}.part")
    try:
        if not target.exists():
            with appending(part) as file:  # others wait here; when it is their turn, it is there
                if target.exists():
                    part.unlink(missing_ok=True)
                else:
                    file.truncate(0)
                    _download(url, file.buffer, place)
                    rename_durably(part, target)
    except (OSError, HTTPException) as error:
        reason = error if isinstance(error, HTTPError) else getattr(error, "reason", error)
        raise UserError(f"data.path={url}: not downloaded: {first_line(reason)}") from None
    return target


def downloads() -> Path:
    """The folder of all downloads: ~/.cache/selfsight, or ~/.cache/tacit where that was filled
    before the package was renamed and the other is not there."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder, former = caches / "selfsight", caches / "tacit"
    return former if former.is_dir() and not folder.is_dir() else folder


def _download(url: str, file: BinaryIO, place: str) -> None:
    """Raises: OSError or HTTPException if not all of it came."""
    request = Request(url, headers={"User-Agent": "selfsight"})
    with urlopen(request, timeout=PATIENCE) as response:
        length = response.headers.get("Content-Length")
        done, shown = 0, 0.0
        while chunk := response.read(CHUNK):
            file.write(chunk)
            done += len(chunk)
            if sys.stderr.isatty() and time.monotonic() - shown > 0.5:
                shown = time.monotonic()
                _show(url, place, done, length, end="")
    file.flush()
    _show(url, place, done, length, end="\n")
    if length is not None and done != int(length):
        raise OSError(f"{done:,} of {int(length):,} bytes came; try again")


def _show(url: str, place: str, done: int, length: str | None, end: str) -> None:
    of = "" if length is None else f" of {int(length) / 1e6:,.1f}"
    start = "\r" if sys.stderr.isatty() else ""
    line = f"{start}Downloading {place}: {done / 1e6:,.1f}{of} MB of {url}"
    print(line, end=end, file=sys.stderr, flush=True)
