"""What two processes of a run compare before they train on one source together."""

import hashlib
import os
from typing import Any

import numpy as np

from selfsight.data.source import Source, content_hash
from selfsight.errors import UserError

NAMES = 1_000_000  # at most so many names are compared: they take a second
CONTENTS = 16  # so many images are read


def fingerprint(source: Source) -> dict[str, Any]:
    """The number of images, and fingerprints of their names, of their labels and of the content of
    a few, all evenly spread over the source."""
    count = len(source)
    names, contents = hashlib.sha256(), hashlib.sha256()
    for i in _spread(count, NAMES):
        names.update(os.fsencode(source.name(i)) + b"\0")
    for i in _spread(count, CONTENTS):
        try:
            contents.update(content_hash(source.read(i)))
        except (OSError, UserError):  # broken, or for now out of reach: training will say so
            contents.update(b"broken")
    labels = hashlib.sha256(repr(source.classes).encode())
    if source.labels is not None:
        labels.update(source.labels.astype("<i8").tobytes())
    hashes = {"names": names, "labels": labels, "contents": contents}
    return {"images": count} | {f"data's {key}": h.hexdigest()[:8] for key, h in hashes.items()}


def _spread(count: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist()
