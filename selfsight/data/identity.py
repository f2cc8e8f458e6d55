"""Which images a run began with, in a few hashes: images that changed since make another run."""

import hashlib
import os
from collections.abc import Collection
from typing import Any

import numpy as np

from selfsight.data.decode import read
from selfsight.data.names import name_blocks
from selfsight.data.source import BadImage, Source, content_hash

SAMPLE = 64  # images, evenly spread, whose content is hashed where that needs reading files


def identity(source: Source, broken: Collection[str] = ()) -> dict[str, Any]:
    """The number of images and of classes (null without labels), and hashes of the names, of the
    labels with their classes, and of the contents; of files, of a sample of the contents.

    Names count from the folder that the images have in common, so that another path to the same
    folder changes nothing.
    Args:
        broken: names of images that could not be decoded: repairing them changes no identity.
    """
    digests = _digests(source)
    return {
        "images": len(source),
        "classes": None if source.classes is None else len(source.classes),
        **digests,
        "sample": _sample(source, broken) if digests["contents"] is None else {},
    }


def _digests(source: Source) -> dict[str, str | None]:
    """The hashes that need all images, kept with the source: other processes of the machine, which
    get it from this one (see `by_machine`), do not compute them again."""
    of, known = getattr(source, "digests", (None, None))
    if known is not None and of is source.labels:
        return known
    labels = None
    if source.labels is not None:
        numbers = np.ascontiguousarray(source.labels, "<i8")
        labels = _hash(repr(list(source.classes)).encode(), numbers)
    hashes = getattr(source, "hashes", None)
    contents = None if hashes is None else _hash(np.ascontiguousarray(hashes))
    known = {"names": _names(source), "labels": labels, "contents": contents}
    source.digests = source.labels, known  # of labels that `align` replaces they are others
    return known


def fingerprint(source: Source) -> dict[str, Any]:
    """The number of images and three short hashes, of the names, the labels and the contents that
    `identity` finds: what two processes compare before they train on one source together."""
    found = identity(source)
    parts = {
        "names": found["names"],
        "labels": (found["classes"], found["labels"]),
        "contents": (found["contents"], found["sample"]),
    }
    hashes = {f"data's {key}": _hash(repr(part).encode())[:8] for key, part in parts.items()}
    return {"images": found["images"]} | hashes


def changes(before: dict[str, Any], now: dict[str, Any], source: Source) -> list[str]:
    """What differs between two identities, a few words each; what only one of them holds does not.

    Args:
        source: that `now` is of.
    """
    differs = {k for k in before.keys() & now.keys() if before[k] != now[k]}
    lines = [
        f"{_number(before[key])} -> {_number(now[key])} {key}"
        for key in ("images", "classes")
        if key in differs
    ]
    if "images" in differs:  # the rest follows from it
        return lines
    if "labels" in differs and "classes" not in differs:
        lines.append("other labels, or other names of classes")
    if "names" in differs:
        lines.append("other file names, or another order")
    elif "contents" in differs:
        lines.append("other pixels")
    else:
        a, b = before.get("sample", {}), now["sample"]
        other = [i for i in a.keys() & b.keys() if a[i] != b[i]]
        if other:
            example = source.name(min(map(int, other)))
            lines.append(f"other content of the same names, such as {example}")
    return lines


def _number(count: int | None) -> str:
    return "no" if count is None else f"{count:,}"


def _names(source: Source) -> str:
    """A hash of all names in order, from the folder on that the first and the last have in
    common."""
    ends = [os.path.dirname(source.name(i)) for i in (0, len(source) - 1)]
    root = os.path.commonpath(ends) if len(set(map(os.path.isabs, ends))) == 1 else ""
    start = os.fsencode(os.path.join(root, ""))
    digest = hashlib.blake2b(digest_size=16)
    for prefix, names in name_blocks(source):
        if not names:
            continue
        inside = prefix.startswith(start)
        if not inside:
            names = [_relative(prefix + name, start, root) for name in names]
        prefix = prefix[len(start) :] if inside else b""
        text = prefix + (b"\0" + prefix).join(names) + b"\0"
        # names that are no UTF-8 are hashed as Python writes them
        plain = text.isascii()
        digest.update(text if plain else os.fsdecode(text).encode(errors="surrogatepass"))
    return digest.hexdigest()


def _relative(name: bytes, start: bytes, root: str) -> bytes:
    inside = name.startswith(start)
    return name[len(start) :] if inside else os.fsencode(os.path.relpath(os.fsdecode(name), root))


def _sample(source: Source, broken: Collection[str]) -> dict[str, str]:
    """Index -> content hash of some images that can be read."""
    found = {}
    for i in np.unique(np.linspace(0, len(source) - 1, SAMPLE).round().astype(int)).tolist():
        if source.name(i) not in broken:
            try:
                found[str(i)] = content_hash(read(source, i)).hex()
            except BadImage:
                continue
    return found


def _hash(*parts: bytes | np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
