"""Whether the exported model computes what the encoder computes, measured with the code that the
model card shows."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfsight.errors import UserError
from selfsight.evaluate.features import exact_products
from selfsight.export import geometry, pictures, runner
from selfsight.export.subject import Subject
from selfsight.export.target import Target

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Differences:
    """The largest absolute differences of features, each divided by the root mean square of the
    encoder's features.

    Attributes:
        network: of the exported network and the encoder, on the same prepared pixels, in batches of
            1, 2 and all images.
        exact_size: of the whole chain, from the image to the features, for images that need not be
            resized; None if the encoder has no such size.
        other_sizes: of the whole chain for images that must be resized.
        exact_code: the same of the card's other `prepare`, for images of all sizes; None if there
            is none.
        images: how many were compared.
    """

    network: float
    exact_size: float | None
    other_sizes: float
    exact_code: float | None
    images: int


def verify(subject: Subject, target: Target, folder: Path) -> Differences:
    """Load the export with its own library, and compare its features with the encoder's.

    Raises: UserError if the network differs by more than TOLERANCE; or the whole chain for images
        that need not be resized, or, where the card's code resizes as Selfsight does, for any.
    """
    exact = pictures.draw(geometry.exact_sizes(subject), subject.channels, subject.bits)
    others = pictures.draw(geometry.other_sizes(subject), subject.channels, subject.bits)
    images = [*exact, *others]
    with exact_products():
        expected = subject.encoder.embed(images).cpu().numpy()
    if not np.isfinite(expected).all():
        raise UserError(f"'{subject.network.where}': features are not finite; it has diverged")
    size = float(np.sqrt(np.square(expected, dtype=np.float64).mean())) or 1.0
    code, better = target.code(subject), target.exact(subject)
    pixels, found = _run(target, code, folder, images)
    with exact_products(), torch.no_grad():
        same = subject.encoder(torch.from_numpy(pixels)).float().cpu().numpy()
    chain = np.abs(found[-1] - expected).max(1) / size
    parts = [np.abs(part - same[: len(part)]).max() for part in found]
    network = float(np.max(parts)) / size  # Python's max would lose what is no number
    exactly = None
    if better:
        _, found = _run(target, f"{code}\n{better}", folder, images)
        exactly = float(np.abs(found[-1] - expected).max()) / size
    differences = Differences(
        network,
        float(chain[: len(exact)].max()) if exact else None,
        float(chain[len(exact) :].max()),
        exactly,
        len(images),
    )
    _judge(differences, target, strict=not target.own_transform(subject))
    return differences


def _judge(found: Differences, target: Target, strict: bool) -> None:
    """Raises: UserError for a difference that is too large, or no number."""
    parts = {"network": found.network, "whole chain at the exact size": found.exact_size or 0.0}
    parts["whole chain with Selfsight's resizing"] = found.exact_code or 0.0
    if strict:
        parts["whole chain at other sizes"] = found.other_sizes
    for what, value in parts.items():
        if not value <= TOLERANCE:  # also of no number
            others = " or ".join(name for name in ("onnx", "torch") if name != target.name)
            raise UserError(
                f"--to {target.name}: the features differ by {value:.1e} of their root mean square "
                f"({what}), and at most {TOLERANCE:.0e} is allowed; nothing was written. Try --to "
                f"{others}"
            )


@contextlib.contextmanager
def _quiet(target: Target) -> Iterator[None]:
    """Without the progress bars and notes of transformers."""
    if "transformers" not in target.needs:
        yield
        return
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _run(
    target: Target, code: str, folder: Path, images: Sequence[Any]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """As `runner.run`, in this process or in one that knows nothing of Selfsight."""
    if not target.fresh:
        try:
            with _quiet(target):
                return runner.run(code, str(folder), images)
        except Exception as error:  # of another library: any type
            line = " ".join(str(error).split())[:300] or type(error).__name__
            reason = f"{target.title} cannot load the export: {line}"
            raise UserError(f"--to {target.name}: {reason}") from None
    with tempfile.TemporaryDirectory() as place:
        text, given, output = (Path(place) / name for name in ("code.py", "in.npz", "out.npz"))
        text.write_text(code, encoding="utf-8")
        arrays = {str(n): np.asarray(image) for n, image in enumerate(images)}
        np.savez(given, pil=not isinstance(images[0], np.ndarray), **arrays)
        # -P: not with the folder of runner.py among those that Python imports from
        program = [sys.executable, "-P", runner.__file__]
        done = subprocess.run(
            [*program, *map(str, (text, folder, given, output))], capture_output=True, text=True
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"--to {target.name}: the export cannot be used: {last[:300]}")
        with np.load(output) as file:
            pixels, *found = (file[name] for name in file.files)
    return pixels, found
