"""Commands that hand an encoder to other libraries."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfsight.cli.app import USE, app
from selfsight.errors import printable

if TYPE_CHECKING:
    from selfsight.export.export import Exported

TO = "timm, torchvision, transformers, onnx or torch (a program of torch.export)"


@app.command(rich_help_panel=USE)
def export(
    where: Annotated[Path, typer.Argument(help="a finished run's folder, or encoder.safetensors")],
    keys: Annotated[
        list[str] | None,
        typer.Argument(help="backbone.name=FILE.py:NAME, of an encoder of your own code"),
    ] = None,
    to: Annotated[str, typer.Option(help=TO)] = ...,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder of the export")] = ...,
    images: Annotated[
        str | None,
        typer.Option(
            help="small (all of an image is shown) or photographs (its centre, 0.875); default: as "
            "those of the run"
        ),
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="of the weights, for the model card: mit, apache-2.0, ...")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="on the Hugging Face hub, for the card; repeatable")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="send it to the Hugging Face hub")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private/--public", help="of a new repository on the hub")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option(help="list what --push would send, and send it not")
    ] = False,
) -> None:
    """Write the encoder for another library, which then must compute the same features."""
    from selfsight.export.export import export as write

    found = write(
        where, to, output, keys or [], images, license, dataset or [], push, private, dry_run
    )
    _print(found, push if dry_run else None)


def _print(found: "Exported", dry_run: str | None) -> None:
    """What was written, and how well it agrees."""
    from selfsight.export.card import number

    for name, numbers in found.differences.items():
        parts = {
            "same pixels": numbers.network,
            "images of the exact size": numbers.exact_size,
            "other sizes": numbers.other_sizes,
            "other sizes by the card's own code": numbers.exact_code,
        }
        shown = "; ".join(f"{key} {number(v)}" for key, v in parts.items() if v is not None)
        print(f"{name}: largest difference of the features over {numbers.images} images: {shown}")
    kind = "small images" if found.pictures == "small" else "photographs"
    print(f"Set up for {kind} ({found.why})")
    for name, size in found.files.items():
        print(f"  {size:>13,} bytes  {name}")
    print(f"Wrote {printable(str(found.folder))}")
    if dry_run:
        print(f"Not sent to {dry_run}, because of --dry-run")
    if found.address:
        print(f"Sent to {found.address}")
