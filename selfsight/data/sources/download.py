"""Download files by http and https, each file once."""

import contextlib
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
from selfsight.files import rename_durably
from selfsight.locks import locked

CHUNK = 2**20  # bytes
PATIENCE = 60.0  # seconds without data after which a download has failed


def fetch(url: str, place: str) -> Path:
    """Download a file unless that was done before; returns the local file.

    It stays in ~/.cache/selfsight/shards ($XDG_CACHE_HOME in place of ~/.cache, if set). An
    interrupted download starts again from the beginning. If several processes ask for one file,
    one downloads it and the others wait.

    Args:
        place: which file of how many this is, for the progress line: "3 of 12".
    Raises: UserError if the file is not available.
    """
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.netloc:
        raise UserError(f"data.path={url}: only http:// and https:// addresses can be downloaded")
    name = PurePosixPath(address.path).name[-100:]
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    target = downloads() / "shards" / name
    part, lock = (target.with_name(f".{name}.{ending}") for ending in ("part", "lock"))
    try:
        if not target.exists():
            part.parent.mkdir(parents=True, exist_ok=True)
            with locked(part.parent, lock.name, wait=True):  # while another process downloads it
                if not target.exists():
                    with part.open("wb") as file:
                        _download(url, file, place)
                    rename_durably(part, target)
                with contextlib.suppress(PermissionError):  # Windows removes no open file
                    lock.unlink()
    except (OSError, HTTPException) as error:
        reason = error if isinstance(error, HTTPError) else getattr(error, "reason", error)
        raise UserError(f"data.path={url}: not downloaded: {first_line(reason)}") from None
    return target


def downloads() -> Path:
    """The folder of all downloads: ~/.cache/selfsight.

    ~/.cache/tacit, from before the package was renamed, if only that one exists.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder, former = caches / "selfsight", caches / "tacit"
    return former if former.is_dir() and not folder.is_dir() else folder


def _download(url: str, file: BinaryIO, place: str) -> None:
    """Raises: OSError or HTTPException if the download is incomplete."""
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
        raise OSError(f"only {done:,} of {int(length):,} bytes arrived; try again")


def _show(url: str, place: str, done: int, length: str | None, end: str) -> None:
    of = "" if length is None else f" of {int(length) / 1e6:,.1f}"
    start = "\r" if sys.stderr.isatty() else ""
    line = f"{start}Downloading {place}: {done / 1e6:,.1f}{of} MB of {url}"
    print(line, end=end, file=sys.stderr, flush=True)
