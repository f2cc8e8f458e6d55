"""Commands that search and group features."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfsight.cli.app import USE, app
from selfsight.cli.evaluation import Target
from selfsight.errors import UserError

if TYPE_CHECKING:
    from selfsight.embeddings.table import Table

Features = Annotated[
    Path, typer.Argument(metavar="FEATURES", help="a table that `selfsight embed` wrote")
]
Sheet = Annotated[Path | None, typer.Option("--sheet", help="draw the first groups (PNG file)")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:1")]


@app.command(rich_help_panel=USE)
def search(
    where: Target,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="image files, paths in the table or numbers of its rows (from 0); also "
            "backbone.name=... of another library's checkpoint",
        ),
    ],
    table: Annotated[
        Path, typer.Option("--in", metavar="FEATURES", help="a table of this encoder's features")
    ],
    k: Annotated[int, typer.Option("-k", help="neighbours of each image")] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="draw them (PNG file)")
    ] = None,
    index: Annotated[
        str, typer.Option(help="exact, or one of faiss, faiss-ivf, faiss-hnsw (extra `search`)")
    ] = "exact",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    device: Device = "auto",
) -> None:
    """Find the images of a table that are most like the given ones."""
    from selfsight.embeddings import search as searching
    from selfsight.report import found as shown
    from selfsight.report.tiles import check_sheet
    from selfsight.train.precision import pick_device

    check_sheet(output, images)
    found = searching.search(where, images, table, k, index, pick_device(device))
    check_sheet(output, found.table.paths)
    # Files are written before anything is printed: a reader that closes the pipe ends the command.
    lines = [] if output is None else shown.draw_answers(found, output)
    if as_json:
        print(json.dumps(searching.as_json(found), indent=2))
        shown.print_recall(found, stderr=True)
    else:
        shown.print_answers(found)
    shown.print_lines(lines, stderr=as_json)


@app.command(rich_help_panel=USE)
def duplicates(
    table: Features,
    threshold: Annotated[
        float, typer.Option(help="smallest cosine similarity of near-duplicates")
    ] = 0.96,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="write every group (.csv or .json file)")
    ] = None,
    sheet: Sheet = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="write the training images to keep, for data.path (.jsonl file)"),
    ] = None,
    device: Device = "auto",
) -> None:
    """Find images that are almost equal: leaks between splits, copies, wrong labels."""
    from selfsight.embeddings import duplicates as finding
    from selfsight.embeddings import outputs
    from selfsight.logging.log import Progress
    from selfsight.report import found as shown
    from selfsight.report.tiles import check_sheet
    from selfsight.train.precision import pick_device

    finding.check_threshold(threshold)
    outputs.check_output(output, (".csv", ".json"), table)
    images, chip = _read(table), pick_device(device)
    outputs.check_kept(keep, table, images)
    check_sheet(sheet, images.paths)
    with Progress() as progress:
        columns = images.features, threshold, images.splits, images.labels
        groups = finding.near_duplicates(*columns, chip, progress.work)
    lines = []
    if output is not None:
        outputs.write_groups(output, images, groups, threshold)
        lines.append(f"Wrote {output}")
    if keep is not None:
        count = outputs.write_kept(keep, images, groups)
        use = f"use them with data.path={keep}" if count else "a higher --threshold keeps more"
        lines.append(f"Wrote {keep}: {count:,} images; {use}")
    if sheet is not None:
        lines += shown.draw_groups(images, groups, sheet)
    shown.print_groups(images, groups, threshold)
    shown.print_lines(lines)


@app.command(rich_help_panel=USE)
def cluster(
    table: Features,
    k: Annotated[int | None, typer.Option("-k", help="clusters of k-means (default: 20)")] = None,
    hdbscan: Annotated[
        int | None,
        typer.Option(metavar="SIZE", help="HDBSCAN, whose smallest cluster has SIZE images"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="folder for clusters.csv and a sheet of each cluster"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of k-means")] = 0,
) -> None:
    """Group images by their features, and compare the groups with labels if there are some."""
    from selfsight.embeddings import cluster as clustering
    from selfsight.embeddings import outputs
    from selfsight.report import found as shown

    outputs.check_folder_of_clusters(output)
    images = _read(table)
    found, made = clustering.clustered(images.features, k, hdbscan, seed, images.labels)
    lines = []
    if output is not None:
        outputs.write_clusters(output, images, found, made)
        lines = shown.draw_clusters(images, found, output)
    shown.print_clusters(images, found)
    shown.print_lines(lines)


def _read(path: Path) -> "Table":
    from selfsight.embeddings.table import read_table

    if path.is_dir() or path.suffix == ".safetensors":
        raise UserError(
            f"'{path}': is an encoder and no table of features; write one: "
            f"selfsight embed {path} -o features.parquet"
        )
    return read_table(path)
