"""Results as a person reads them."""

from collections.abc import Callable
from functools import partial
from statistics import median

from rich.console import Console
from rich.table import Table

from selfsight.data.check import Report, Split
from selfsight.evaluate.protocols.results import Result, notes
from selfsight.pretraining.profile import Profile

SHOWN = 20  # lines of a long list
BAR = 30  # characters of the longest bar of a histogram
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
    draws = "\nfew labels: mean ± standard deviation over 10 draws"
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


def print_profile(found: Profile) -> None:
    """What `selfsight profile` measured."""
    total = sum(found.seconds.values())
    table = Table(box=None, pad_edge=False)
    for title in ("part of a step", "ms", "share"):
        table.add_column(title, justify="left" if title.startswith("part") else "right")
    for part, seconds in found.seconds.items():
        table.add_row(part, f"{1e3 * seconds / found.steps:.1f}", f"{seconds / total:.0%}")
    table.add_row("all", f"{1e3 * total / found.steps:.1f}", "", style="bold")
    console().print(table)
    say = partial(console().print, soft_wrap=True, markup=False)
    if found.workers:
        busy = (found.decode + found.crops) / (found.workers * total)
        say(
            f"Meanwhile {found.workers} loading threads, {busy:.0%} of the time busy: decoding "
            f"{found.decode:.1f} s, cropping {found.crops:.1f} s"
        )
    say(
        f"{found.rate:.0f} images/s; {found.rate_without:.0f} if '{found.slowest}' took no time "
        f"({found.device}, {found.steps} steps)"
    )
    memory = f", of the device {found.memory:.0f} MiB" if found.memory else ""
    say(f"Peak memory: of this process {found.host:.0f} MiB{memory}")
    say(f"Slowest: {found.slowest}: {found.advice}.")


def print_check(report: Report) -> None:
    """What `selfsight check` found."""
    say = partial(console().print, soft_wrap=True, markup=False)
    for split in report.splits:
        _print_split(split, say)
    lines = [f"{test} is {train}" for test, train in report.shared]
    _print_list(say, lines, "test images that are among the training images, byte for byte")
    _print_list(say, report.damaged, "parts of a pack that are not as they were packed")
    say(f"{report.problems:,} problems" if report.problems else "Nothing is wrong.")


def _print_split(split: Split, say: Callable[[str], None]) -> None:
    whole = split.sizes[split.sizes.all(axis=1)]
    say(f"{split.name}: {len(split.source):,} images, {len(split.broken):,} of them broken")
    for name, side in (("height", whole[:, 0]), ("width", whole[:, 1])):
        if len(whole):
            say(f"  {name}: {side.min()} to {side.max()} pixels, median {median(side):.0f}")
    counts = split.counts()
    if counts:
        numbers = [count for _, count in counts]
        say(f"  {len(counts)} classes of {min(numbers):,} to {max(numbers):,} images")
    longest = max((len(name) for name, _ in counts), default=0)
    for name, count in counts[:SHOWN]:
        bar = "█" * round(BAR * count / max(numbers))
        say(f"    {name:{longest}} {count:>9,} {bar}")
    if len(counts) > SHOWN:
        say(f"    ... and {len(counts) - SHOWN:,} classes more")
    _print_list(say, [f"{name}: {reason}" for name, reason in split.broken], "broken")
    names = [" = ".join(map(split.source.name, group[:4])) for group in split.twins]
    _print_list(say, names, "groups of equal images")


def _print_list(say: Callable[[str], None], lines: list[str], title: str) -> None:
    if lines:
        say(f"  {len(lines):,} {title}:")
    for line in lines[:SHOWN]:
        say(f"    {line}")
    if len(lines) > SHOWN:
        say(f"    ... and {len(lines) - SHOWN:,} more")


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
    return text if spread is None else f"{text} ± {100 * spread:.1f}"
