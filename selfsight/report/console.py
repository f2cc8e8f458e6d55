"""Print results as tables."""

from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
from rich.box import HEAVY_HEAD

from selfsight.data.check import Report, Split
from selfsight.data.measure import normalization_of
from selfsight.data.source import notes as notes_of
from selfsight.evaluate.protocols.results import Result, notes
from selfsight.logging.log import Console
from selfsight.pretraining.profile import Profile
from selfsight.report.render import RESULTS, number, table

SHOWN = 20  # lines of a long list
BAR = 30  # characters of the longest bar of a histogram


def print_results(results: list[Result]) -> None:
    """Print one protocol's results as a table, in percent on the test split, and its warnings."""
    first = results[0]
    labels = f"{first.settings['labels']:,} labels, " if "labels" in first.settings else ""
    draws = "\nfew labels: mean ± standard deviation over 10 draws"
    title = (
        f"{first.protocol}: accuracy in % on {first.data['test']:,} test images "
        f"({labels}{first.data['train']:,} training images, seed {first.seed})"
    )
    shown = [name for name in RESULTS if name in first.metrics]
    head = "initialisation" if first.kind == "finetune" else "features"
    titles = [head, *(RESULTS[name].title for name in shown)]
    rows = [[r.evaluated, *(_cell(r.metrics, name) for name in shown)] for r in results]
    caption = f"protocol {first.protocol} v{first.version}"
    caption += draws if "shots1" in first.metrics else ""
    console().print(title, soft_wrap=True, markup=False)  # may be longer than the table is wide
    console().print(table(titles, rows, box=HEAVY_HEAD, fixed=1, right=True, caption=caption))
    for note in notes(results):
        console().print(note, soft_wrap=True, markup=False)


def print_columns(
    titles: tuple[str, ...], rows: list[list[str]], fixed: int, dim: list[bool] | None = None
) -> None:
    """Print a table without lines.

    Args:
        fixed: number of first columns whose text is never wrapped.
        dim: rows in a fainter colour.
    """
    styles = ["dim" if less else None for less in dim or [False] * len(rows)]
    console().print(table(titles, rows, fixed=fixed, styles=styles))


def print_profile(found: Profile) -> None:
    """Print what `selfsight profile` measured."""
    total = sum(found.seconds.values())
    rows = [
        [part, f"{1e3 * seconds / found.steps:.1f}", f"{seconds / total:.0%}"]
        for part, seconds in found.seconds.items()
    ]
    rows.append(["all", f"{1e3 * total / found.steps:.1f}", ""])
    styles = [None] * (len(rows) - 1) + ["bold"]
    titles = ("part of a step", "ms", "share")
    console().print(table(titles, rows, right=True, styles=styles))
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
    """Print what `selfsight check` found."""
    say = partial(console().print, soft_wrap=True, markup=False)
    for split in report.splits:
        _print_split(split, say)
    lines = [f"{test} is {train}" for test, train in report.shared]
    _print_list(say, lines, "test images that are among the training images, byte for byte")
    _print_list(say, report.damaged, "parts of a pack that have changed since it was written")
    say(f"{report.problems:,} problems" if report.problems else "Nothing is wrong.")


def _print_split(split: Split, say: Callable[[str], None]) -> None:
    for note in notes_of(split.source):
        say(note)
    whole = split.sizes[split.sizes.all(axis=1)]
    say(f"{split.name}: {len(split.source):,} images, {len(split.broken):,} of them broken")
    for name, side in (("height", whole[:, 0]), ("width", whole[:, 1])):
        if len(whole):
            say(f"  {name}: {side.min()} to {side.max()} pixels, median {median(side):.0f}")
    _print_values(split, say)
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


def _print_values(split: Split, say: Callable[[str], None]) -> None:
    """What the pixels of a split are, and what training would normalise them with."""
    for (kind, channels), count in split.kinds.most_common():
        bits = 8 * np.dtype(kind).itemsize
        some = "" if len(split.kinds) == 1 else f" ({count:,} images)"
        say(f"  pixels: {channels} channel{'s'[: channels != 1]} of {bits} bits, {kind}{some}")
    if split.kinds:
        say(f"  values: {split.least:g} to {split.most:g}")
        for name, values in normalization_of(split.moments)._asdict().items():
            say(f"  data.{name}=[{', '.join(f'{value:g}' for value in values)}]")


def _print_list(say: Callable[[str], None], lines: list[str], title: str) -> None:
    if lines:
        say(f"  {len(lines):,} {title}:")
    for line in lines[:SHOWN]:
        say(f"    {line}")
    if len(lines) > SHOWN:
        say(f"    ... and {len(lines) - SHOWN:,} more")


def console(stderr: bool = False) -> Console:
    """A console that is wide enough for every table if the output is a pipe."""
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(width=120, stderr=stderr)


def _cell(metrics: dict[str, float], name: str) -> str:
    return number(metrics.get(name), metrics.get(f"{name}_std"), RESULTS[name].percent)
