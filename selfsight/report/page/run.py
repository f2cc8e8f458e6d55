"""The page of one run."""

from collections.abc import Callable, Iterator
from pathlib import Path

from selfsight.errors import UserError
from selfsight.logging.log import Progress
from selfsight.report.page.confusion import confusion_panel
from selfsight.report.page.curves import curves_panel
from selfsight.report.page.nearest import nearest_panel
from selfsight.report.page.page import Page, check_output, write_page
from selfsight.report.page.panel import Panel
from selfsight.report.page.provenance import provenance_panel
from selfsight.report.page.scatter import map_panel
from selfsight.report.page.subject import Subject, read_subject, run_folder
from selfsight.report.page.verdict import measured, results_panel, sentence, to_measure
from selfsight.report.page.views import views_panel
from selfsight.report.page.vit import panels_of
from selfsight.report.page.warn import warnings

NAME = "report.html"


def report(
    where: str | Path, output: str | Path | None = None, overrides: list[str] | None = None
) -> Path:
    """Write the page of a run: one HTML file of at most 5 MB that makes no request.

    The same run gives the same bytes.
    Args:
        where: the run's folder, or the encoder.safetensors in it.
        output: the file (default: report.html in the run). An earlier report is replaced.
        overrides: 'key=value' of the images: data.path=... if they were moved, device=cpu.
    Returns: the file.
    Raises: UserError if `where` is no run, or if `output` is another file.

    >>> run = selfsight.pretrain("digits/simclr", run="runs/a", max_steps=1, quiet=True)
    >>> report(run.folder)
    PosixPath('runs/a/report.html')
    """
    file = run_folder(where) / NAME if output is None else Path(output)
    check_output(file)  # before work that takes long
    subject = read_subject(where, overrides)
    write_page(run_page(subject), file)
    return file


def run_page(subject: Subject) -> Page:
    """The page, in the order in which a reader asks."""
    panels, missing = [], []
    makers = _makers(subject)
    with Progress() as progress:
        progress.begin("panels", 0, len(makers))
        for done, make in enumerate(makers, 1):
            try:
                panels += make()
            except UserError as error:
                missing.append(f"{_first_line(error)}; what would show it is left out.")
            progress.update(done)
    unmeasured = not measured(subject) and subject.network is not None
    return Page(
        title=subject.name,
        kind="run",
        facts=tuple(_facts(subject)),
        verdict=sentence(subject),
        warnings=(*warnings(subject), *missing),
        panels=tuple(panels),
        command=to_measure(subject) if unmeasured else "",
        remedy="Measure it with" if unmeasured else "",
    )


def _makers(subject: Subject) -> list[Callable[[], list[Panel]]]:
    """One function for each part of the page, in its order."""
    one = (results_panel, curves_panel, map_panel, nearest_panel, confusion_panel, views_panel)
    makers = [lambda make=make: _some(make(subject)) for make in one]
    return [*makers, lambda: panels_of(subject), lambda: _some(provenance_panel(subject))]


def _some(panel: Panel | None) -> list[Panel]:
    return [] if panel is None else [panel]


def _facts(subject: Subject) -> Iterator[tuple[str, str]]:
    config = subject.config
    yield "method", config.method.name
    yield "encoder", config.backbone.name
    if "num_features" in subject.described:
        yield "features", f"{subject.described['num_features']:,}"
    trained = subject.described.get("pretrained_on") or {}
    images = f"{trained['images']:,} images of " if "images" in trained else ""
    yield "trained on", f"{images}{config.data.path or config.data.source}"
    if subject.metrics:
        last = subject.metrics[-1]
        epochs = f"{last['epoch']:,.0f}" if last["epoch"] >= 100 else f"{last['epoch']:.3g}"
        yield "length", f"{epochs} epoch{'s'[: epochs != '1']}, {last['step']:,} steps"
    yield "seed", str(config.seed)


def _first_line(error: UserError) -> str:
    return str(error).splitlines()[0].rstrip(".")
