"""Results as a person reads them."""

from rich.console import Console
from rich.table import Table

from tacit.measure.results import Result, notes

TITLES = {  # of the metrics that are shown
    "k20": "kNN k=20",
    "k200": "kNN k=200",
    "top1": "top-1",
    "top5": "top-5",
    "shots1": "1 label/class",
    "shots5": "5 labels/class",
    "validation_top1": "validation",
    "chosen_lr_factor": "rate chosen",
}


def print_results(results: list[Result]) -> None:
    """One protocol's results as a table, in percent on the test split, and what must be said."""
    first = results[0]
    labels = f"{first.settings['labels']:,} labels, " if "labels" in first.settings else ""
    draws = "\nfew labels: mean +- standard deviation over 10 draws"
    title = (
        f"{first.protocol}: accuracy in % on {first.data['test']:,} test images "
        f"({labels}{first.data['train']:,} training images, seed {first.seed})"
    )
    table = Table(
        caption=f"protocol {first.protocol} v{first.version}"
        + (draws if "shots1" in first.metrics else ""),
        caption_justify="left",
    )
    table.add_column("features" if first.kind != "finetune" else "begins as", no_wrap=True)
    shown = [name for name in TITLES if name in first.metrics]
    for name in shown:
        table.add_column(TITLES[name], justify="right")
    for result in results:
        table.add_row(result.evaluated, *(_cell(result.metrics, name) for name in shown))
    console().print(title, soft_wrap=True, markup=False)  # longer than a narrow table is wide
    console().print(table)
    for note in notes(results):
        console().print(note, soft_wrap=True, markup=False)


def print_columns(
    titles: tuple[str, ...], rows: list[list[str]], fixed: int, dim: list[bool] | None = None
) -> None:
    """A table without lines.

    Args:
        fixed: so many of the first columns are never folded.
        dim: rows of less interest.
    """
    table = Table(box=None, pad_edge=False)
    for n, title in enumerate(titles):
        table.add_column(title, no_wrap=n < fixed, overflow="fold")
    for row, less in zip(rows, dim or [False] * len(rows), strict=True):
        table.add_row(*row, style="dim" if less else None)
    console().print(table, markup=False)


def console(stderr: bool = False) -> Console:
    """Wide enough in a pipe for every table."""
    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(width=120, stderr=stderr, highlight=False)


def _cell(metrics: dict[str, float], name: str) -> str:
    if name not in metrics:
        return "-"
    if name == "chosen_lr_factor":
        return f"{metrics[name]:g}"
    text = f"{100 * metrics[name]:.1f}"
    spread = metrics.get(f"{name}_std")
    return text if spread is None else f"{text} +- {100 * spread:.1f}"
