"""Read the features of images, and write them as a table: `selfsight embed`.

The images are decoded and shown as an evaluation shows them, batch by batch, so a set may be larger
than memory. Each batch goes to a file beside the table (see `parts`); the table is made of it at
the end. A batch has the same images however often the work was stopped and by however many
processes it is done: so the table is the same, byte by byte.
"""

import contextlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from selfsight import __version__, agreement, distributed
from selfsight.batch import sides
from selfsight.data.bad import line_of, read_bad
from selfsight.data.config import DataConfig
from selfsight.data.source import BadImage
from selfsight.embeddings.images import UNIMPORTANT, EmbedConfig, Split, compose, open_splits
from selfsight.embeddings.nearest import check_neighbours, check_projection, nearest, project
from selfsight.embeddings.parts import Parts
from selfsight.embeddings.reading import Job, bad_file, open_job, open_parts, read_missing
from selfsight.embeddings.table import Table, format_of, is_table, write_table
from selfsight.encoders.dense import Layers
from selfsight.errors import UserError
from selfsight.evaluate.protocols.target import EvaluationTarget, open_target
from selfsight.files import write_text
from selfsight.logging.log import Progress, say
from selfsight.train.precision import pick_device, prepare

MANY = 5_000  # rows; t-SNE of more takes so long that a line announces it


class Options(NamedTuple):
    """What the table holds beyond the features of all images, and which features.

    Attributes:
        split: train or test; None: each that there is, and a column that says which.
        projection: tsne or pca: columns x and y; neighbours: a column of so many nearest rows.
        layers: in place of the encoder's own feature, the means of these layers' maps over their
            places, one after the other: "last", numbers or names.
    """

    split: str | None = None
    projection: str | None = None
    neighbours: int | None = None
    layers: Layers | None = None


class Embedded(NamedTuple):
    """What was written.

    Attributes:
        rows: of the table; width: the number of features of each.
        broken: lines "name, tab, reason" of images that have no row.
    """

    output: Path
    rows: int
    width: int
    broken: list[str]


def embed(
    where: str | Path,
    output: str | Path,
    overrides: list[str] | None = None,
    options: Options = Options(),  # noqa: B008 (a tuple, which nothing changes)
    quiet: bool = False,
) -> Embedded | None:
    """Write the features of images as a table.

    Several processes that torchrun starts share the images. Work that was stopped goes on where it
    was if the same is asked for again.

    Args:
        where: a run's folder, an encoder.safetensors, or a checkpoint of another library (then with
            backbone.name=...).
        output: FILE.parquet, FILE.npz or FILE.csv; a table that is there is replaced.
        overrides: 'key=value' of `images.EmbedConfig`: data.path=... (default: the images that the
            encoder was pretrained on), device, precision, seed, ...
    Returns: None on all processes but the first.
    Raises: UserError if weights do not fit, if images cannot be read or more of them are broken
        than data.max_bad allows, or if the encoder changes or gives numbers that are not finite.

    >>> run = selfsight.pretrain("digits/simclr", run="runs/a", max_steps=1, quiet=True)
    >>> embed(run.path, "features.npz", options=Options(split="test"), quiet=True).rows
    360
    """
    overrides, output = overrides or [], Path(output)
    _check_output(output)
    target = open_target(where, overrides, None)
    config = compose(target, overrides)
    with contextlib.ExitStack() as stack:
        with agreement.joined(pick_device(config.device)) as device:
            prepare(device)
            job = agreement.by_all(lambda: open_job(target, config, device, options.layers))
            splits, data = open_splits(config, target, options.split)
            rows = sum(len(split.source) for split in splits)
            agreement.by_all(lambda: _check_options(options, rows))
            agreement.by_first(lambda: _check_names(output, splits))
            about = _description(where, job, target, data, splits)
            first = distributed.rank() == 0
            parts = open_parts(output, job, splits, about, stack)
            if first and not quiet:
                _say_what(target)
            with Progress(quiet or not first) as progress:
                read_missing(job, data, splits, parts, progress)
            agreement.barrier()
        if not first:  # what is left is one process's work, and may take long
            return None
        if not quiet:
            _announce(options, rows)
        return _finish(output, options, config, job.device, splits, parts, about)


def _check_output(output: Path) -> None:
    format_of(output)
    if not output.absolute().parent.is_dir():
        raise UserError(f"'{output}': its folder does not exist; make it")
    beside = format_of(output).description_file(output)
    for file in (output,) if beside is None else (output, beside):
        if os.path.lexists(file) and not is_table(output):
            raise UserError(
                f"'{file}': exists and is no table that this command wrote; remove it, or choose "
                f"another name"
            )


def _check_names(output: Path, splits: list[Split]) -> None:
    """Raises: UserError, before hours of work, for a name that the format cannot hold."""
    writer = format_of(output)
    for split in splits:
        for name in split.source.classes or ():
            writer.check_name(name)
        for i in range(len(split.source)):
            writer.check_name(split.source.name(i))


def _check_options(options: Options, rows: int) -> None:
    if options.neighbours is not None:
        check_neighbours(options.neighbours, rows)
    if options.projection is not None:
        check_projection(options.projection, rows)


def _say_what(target: EvaluationTarget) -> None:
    """A line about an encoder that is not that of a finished run."""
    if "step" in target.settings:
        say(f"The encoder is that of step {target.settings['step']} of '{target.home}'")
    elif target.loaded:
        say(target.loaded)


def _announce(options: Options, rows: int) -> None:
    """A line before work that takes long and shows no progress."""
    if options.projection == "tsne" and rows > MANY:
        say(f"t-SNE of {rows:,} images: this takes minutes, in one thread")
    if options.neighbours is not None and rows > 10 * MANY:
        say(f"Comparing each of {rows:,} images with all others: this takes a while")


def _description(
    where: str | Path, job: Job, target: EvaluationTarget, data: DataConfig, splits: list[Split]
) -> dict[str, Any]:
    """What the table says of itself."""
    described = target.encoder.description
    return {
        "selfsight": __version__,
        "encoder": str(Path(where).absolute()),
        "weights_sha256": target.weights_sha256,
        "backbone": described["backbone"],
        "method": described.get("method", {}).get("name"),
        **target.settings,
        "num_features": job.width,
        "layers": job.layers,
        "image_size": list(sides(job.size)),
        "resize": job.resize,
        "precision": "bf16" if job.amp else "fp32",
        "data": data.model_dump(mode="json", exclude=UNIMPORTANT),
        "splits": {split.name: split.about for split in splits},
    }


def _finish(
    output: Path,
    options: Options,
    config: EmbedConfig,
    device: torch.device,
    splits: list[Split],
    parts: Parts,
    about: dict[str, Any],
) -> Embedded:
    """Make the table of the parts, and remove them."""
    rows, features = parts.kept()
    _check_options(options, len(rows))
    names = [s.source.name(i) for s in splits for i in range(len(s.source))]
    classes = [label for split in splits for label in split.classes()]
    which = [split.name for split in splits for _ in range(len(split.source))]
    plane = places = None
    if options.projection is not None:
        plane = project(features, options.projection, config.seed)
        about = {**about, "projection": options.projection, "seed": config.seed}
    if options.neighbours is not None:
        places = nearest(features, options.neighbours, device)
        about = {**about, "neighbors": options.neighbours}
    broken = _broken(names, which, rows, splits, parts)
    table = Table(
        [names[row] for row in rows],
        features,
        [which[row] for row in rows] if len(splits) > 1 else None,
        [classes[row] for row in rows] if any(s.source.classes for s in splits) else None,
        plane,
        places,
        {**about, "rows": len(rows), "broken": len(broken)},
    )
    _check_output(output)  # again: reading may have taken hours, and the features are not lost
    listed = broken_file(output)
    listed.unlink(missing_ok=True)
    if broken:
        write_text(listed, "".join(f"{line}\n" for line in broken))
    write_table(output, table)
    parts.remove()
    return Embedded(output, len(table), table.width, broken)


def broken_file(output: Path) -> Path:
    """Where the images are listed that have no row, if there are some."""
    return output.with_name(f"{output.name}.broken.txt")


def _broken(
    names: list[str], which: list[str], rows: np.ndarray, splits: list[Split], parts: Parts
) -> list[str]:
    """Name and reason of each image that has no row, in their order."""
    reasons = {
        split.name: dict(line.partition("\t")[::2] for line in read_bad(bad_file(parts, split)))
        for split in splits
    }
    found = []
    for row in np.setdiff1d(np.arange(len(names)), rows).tolist():
        name = line_of(BadImage(names[row], "")).rstrip("\t")
        found.append(f"{name}\t{reasons[which[row]].get(name, 'cannot be decoded')}")
    return found
