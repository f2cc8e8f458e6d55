"""Hand an encoder to another library, and prove that the library computes the same features."""

import importlib.metadata
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from selfsight import __version__
from selfsight.config import near
from selfsight.errors import UserError
from selfsight.export import card, hub
from selfsight.export.place import check_place, complete, write_record
from selfsight.export.seen import Pictures
from selfsight.export.subject import Subject, open_subject
from selfsight.export.target import Target
from selfsight.export.to_onnx import ONNX
from selfsight.export.to_timm import TIMM, TRANSFORMERS
from selfsight.export.to_torch import TORCH
from selfsight.export.to_torchvision import TORCHVISION
from selfsight.export.verify import TOLERANCE, Differences, verify

FORMAT = 1  # of export.json
TARGETS = {target.name: target for target in (TIMM, TORCHVISION, TRANSFORMERS, ONNX, TORCH)}


@dataclass(frozen=True)
class Exported:
    """An export that was verified.

    Attributes:
        folder: with its files; files: name -> bytes.
        differences: name of each library that loaded it -> what its features differ by.
        pictures: which images it is set up for; why: what decided that.
        address: of the repository on the hub, if it was pushed.
    """

    folder: Path
    files: dict[str, int]
    differences: dict[str, Differences]
    pictures: Pictures
    why: str
    address: str | None = None


def export(
    where: str | Path,
    to: str,
    folder: str | Path,
    keys: Iterable[str] = (),
    pictures: Pictures | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    push: str | None = None,
    private: bool = True,
    dry_run: bool = False,
) -> Exported:
    """Write an encoder for another library, load it with that library, and compare its features.

    Args:
        where: folder of a finished run, or an encoder.safetensors.
        to: timm, torchvision, transformers, onnx or torch.
        folder: that is written; an earlier export of the same encoder is replaced.
        keys: `backbone.name=FILE.py:NAME`, for an encoder of the user's own code.
        pictures: which images timm's transform is set up for: small (all of an image is shown) or
            photographs (0.875 of it); default: as the run's own images are, or, if they are not
            on this machine, small if the encoder sees at most 96 pixels.
        license, datasets: identifiers of the Hugging Face hub, for the model card.
        push: ORG/NAME, where the export goes on the hub; private: of a new repository there;
            dry_run: do not push.
    Raises: UserError if the library cannot be this encoder, is not installed, or computes other
        features; then nothing is written.

    >>> export("runs/digits-simclr", "onnx", "onnx-model").files.keys()
    dict_keys(['README.md', 'model.onnx', 'export.json'])
    """
    target, folder = _target(to), Path(folder)
    if push is not None:
        hub.check_repository(push)
        if not dry_run:
            hub.check_token(push)
    elif dry_run:
        raise UserError("--dry-run: only with --push ORG/NAME, of which it lists the files")
    subject = open_subject(where, keys, pictures)
    reason = target.refusal(subject)
    if reason:
        other = "export to onnx or torch, which take any encoder"
        raise UserError(f"--to {to}: {reason}; {other}")
    check_place(folder, target.layout, subject.sha256)
    with complete(folder) as place:
        target.write(subject, place)
        found = {t: verify(subject, t, place) for t in _loaded_by(target)}
        card.write(place, card.card(subject, found, license, datasets, push))
        files = write_record(place, _record(subject, target, found))
    address = None
    if push is not None and not dry_run:
        address = hub.push(folder, files, push, private)
    differences = {t.name: found[t] for t in found}
    return Exported(folder, files, differences, subject.pictures, subject.why, address)


def _target(name: str) -> Target:
    """Raises: UserError for an unknown name, and for a library that is not installed."""
    if name not in TARGETS:
        hint = near(name, TARGETS) or f" Known: {', '.join(TARGETS)}."
        raise UserError(f"--to {name}: no such target.{hint}")
    target = TARGETS[name]
    absent = [module for module in target.needs if not _installed(module)]
    if absent:
        extra = f"selfsight[{target.extra}]" if target.extra else "selfsight"
        raise UserError(f"--to {name}: needs {', '.join(absent)}: pip install '{extra}'")
    return target


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _loaded_by(target: Target) -> list[Target]:
    """The libraries that must read the files: the one that was asked for, and others of the same
    layout that are installed."""
    same = [t for t in TARGETS.values() if t.layout == target.layout and t is not target]
    return [target, *(t for t in same if all(map(_installed, t.needs)))]


def _record(subject: Subject, target: Target, found: dict[Target, Differences]) -> dict[str, Any]:
    """The content of export.json."""
    modules = sorted({module for t in found for module in (*t.needs, "torch")})
    return {
        "format": FORMAT,
        "selfsight": __version__,
        "layout": target.layout,
        "weights_sha256": subject.sha256,
        "num_features": subject.encoder.num_features,
        "input": {
            "channels": subject.channels,
            "size": list(subject.size),
            "bits": subject.bits,
            "mean": subject.description["mean"],
            "std": subject.description["std"],
            "pictures": subject.pictures,
            "resize": subject.resize,
        },
        "differences": {t.name: asdict(differences) for t, differences in found.items()},
        "tolerance": TOLERANCE,
        "libraries": {module: importlib.metadata.version(module) for module in modules},
    }
