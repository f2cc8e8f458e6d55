"""Commands that write features."""

import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from selfsight.cli.app import USE, app
from selfsight.cli.evaluation import Target
from selfsight.cli.said import is_first_rank, say, this_command
from selfsight.errors import UserError, printable
from selfsight.processes import Stopped

SHOWN = 5  # broken images that are named; the others are in the list


@app.command(rich_help_panel=USE)
def embed(
    where: Target,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGES|KEY=VALUE",
            help="a path of images in any form that data.path takes (default: those of the run), "
            "and keys: data.limit=1000, device=cpu",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="table: FILE.parquet, FILE.npz or FILE.csv")
    ] = Path("features.parquet"),
    split: Annotated[
        str | None, typer.Option(help="train or test (default: each that there is)")
    ] = None,
    projection: Annotated[
        str | None, typer.Option(help="add columns x and y: tsne or pca of all rows")
    ] = None,
    neighbors: Annotated[
        int | None, typer.Option(metavar="K", help="add a column of the K nearest other rows")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="instead of the encoder's feature, the mean of each map of these layers: last, "
            "-1, 3,6, or names"
        ),
    ] = None,
) -> None:
    """Write the features of images as a table; the same command again continues."""
    from selfsight.embeddings import embed as embedding

    chosen = None if layers is None else [name.strip() for name in layers.split(",")]
    options = embedding.Options(split, projection, neighbors, chosen)
    try:
        written = embedding.embed(where, output, overrides(images or []), options)
    except Stopped as stop:
        if is_first_rank():
            line = f"Stopped; what is done is saved. Resume with: {this_command()}"
            print(line, file=sys.stderr)
        raise typer.Exit(128 + stop.number) from None
    if written is None:  # of another process than the first
        return
    if written.broken:
        for line in written.broken[:SHOWN]:
            say(f"left out: {line.replace(chr(9), ': ')}")
        listed = embedding.broken_file(written.output)
        count = len(written.broken)
        images_have = "image has" if count == 1 else "images have"
        say(f"{count:,} broken {images_have} no row; '{listed}' lists them")
    name = printable(str(written.output))
    print(f"Wrote {name}: {written.rows:,} images, {written.width:,} features each")


def overrides(arguments: list[str]) -> list[str]:
    """The keys of a command that takes a path of images, keys, or both.

    Raises: UserError for two paths.

    >>> overrides(["photos", "device=cpu"])
    ['data={"path": "photos"}', 'device=cpu']
    """
    keys = [text for text in arguments if re.match(r"[A-Za-z_][\w.]*=", text)]
    paths = [text for text in arguments if text not in keys]
    if len(paths) > 1:
        raise UserError(f"'{paths[0]}' and '{paths[1]}': give one path, and keys like data.limit=")
    return [f"data={json.dumps({'path': path})}" for path in paths] + keys
