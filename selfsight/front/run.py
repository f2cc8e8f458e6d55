"""A run as an object: its encoder, its metrics, its results."""

import html
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsight import own
from selfsight.encoders.encoder import Encoder, load_encoder
from selfsight.errors import UserError
from selfsight.evaluate.protocols import read_results
from selfsight.logging.log import read_metrics
from selfsight.pretraining.config import RunConfig, read_run_config
from selfsight.report.render import RESULTS, is_accuracy, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from selfsight.embeddings.embed import Embedded
    from selfsight.export.export import Exported

CURVES = {"loss": "loss", "knn": "kNN", "probe_top1": "online probe", "lr": "learning rate"}


def _shown(figure: type) -> type:
    """A class of figures that notebooks show without matplotlib's global state."""

    class Shown(figure):
        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=96)
            return buffer.getvalue()

    return Shown


class Run(os.PathLike[str]):
    """The folder of a pretraining; it can be used as a path.

    Args:
        folder: of a run that has begun; it may still train, in this process or another.
        parts: objects of the program that the run is made of, as `selfsight.pretrain` keeps them.

    >>> run = Run("runs/digits-simclr")
    >>> str(run)
    'runs/digits-simclr'
    """

    def __init__(self, folder: str | os.PathLike[str], parts: Iterable[own.Part] = ()) -> None:
        self.path, self.parts = Path(folder), tuple(parts)

    def __fspath__(self) -> str:
        return str(self.path)

    __str__ = __fspath__

    def __truediv__(self, name: str) -> Path:
        """A file in the run's folder."""
        return self.path / name

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def encoder(self) -> Encoder:
        """The pretrained encoder, frozen. Raises: UserError if the run is not finished."""
        with own.given(self.parts):
            return load_encoder(self.path)

    def config(self) -> RunConfig:
        """The configuration of the run."""
        return read_run_config(self.path)

    def metrics(self) -> list[dict[str, Any]]:
        """What was logged so far, a dict for each logged step; also while the run trains."""
        return read_metrics(self.path / "metrics.jsonl")

    def results(self) -> list[dict[str, Any]]:
        """The records of all evaluations of the encoder."""
        return read_results(self.path)

    def plot(self) -> "Figure":
        """The curves of what was logged, over epochs: a figure of matplotlib.

        Raises: UserError without matplotlib, or if nothing is logged yet.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise UserError("Run.plot: needs matplotlib: pip install 'selfsight[plot]'") from None
        records = self.metrics()
        if not records:
            raise UserError(f"'{self}': nothing is logged yet")
        seen = {key for record in records for key, value in record.items() if value is not None}
        keys = [key for key in CURVES if key in seen]
        figure = _shown(Figure)(figsize=(3.2 * len(keys), 2.6), layout="constrained")
        for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
            points = [(r["epoch"], r[key]) for r in records if r.get(key) is not None]
            scale = 100 if key in ("knn", "probe_top1") else 1
            x, y = zip(*points, strict=True)
            axes.plot(x, [scale * v for v in y], marker="." if len(x) < 50 else "", color="C0")
            axes.set_title(CURVES[key] + (" (%)" if scale == 100 else ""), fontsize=10)
            axes.set_xlabel("epoch", fontsize=9)
            axes.grid(alpha=0.3)
        return figure

    def report(self, output: str | os.PathLike[str] | None = None) -> Path:
        """Write one offline HTML page about the run (extra `report`), and return its path.

        Args:
            output: the file (default: report.html in the run's folder).
        """
        from selfsight.front.report import write_report

        with own.given(self.parts):
            return write_report(self.path, None if output is None else Path(output))

    def embed(
        self, output: str | os.PathLike[str], images: str | None = None, **options: Any
    ) -> "Embedded":
        """Write features as a table that other tools read: .parquet, .npz or .csv.

        Args:
            images: a path of images as `data.path` takes it (default: the images of the run).
            options: split, projection, neighbours, layers; see `selfsight.embeddings.embed`.
        """
        from selfsight.embeddings.embed import Options, embed

        keys = [] if images is None else [f"data={json.dumps({'path': str(images)})}"]
        with own.given(self.parts):
            written = embed(self.path, Path(output), keys, Options(**options), quiet=True)
        assert written is not None  # this is one process
        return written

    def export(self, to: str, folder: str | os.PathLike[str], **options: Any) -> "Exported":
        """Write the encoder for another library, which must compute the same features.

        Args:
            to: timm, torchvision, transformers, onnx or torch.
            options: license, datasets, pictures, push, ...; see `selfsight.export.export`.
        """
        from selfsight.export.export import export

        with own.given(self.parts):
            return export(self.path, to, Path(folder), **options)

    def _repr_html_(self) -> str:
        """A short table, for notebooks."""
        names, records = self.config().tree(), self.metrics()
        rows = [("run", str(self)), ("method", names["method"]["name"])]
        rows.append(("encoder", names["backbone"]["name"]))
        if records:
            last = records[-1]
            rows.append(("step", f"{last['step']:,} (epoch {last['epoch']:g})"))
            for key, title in (("loss", "loss"), ("knn", "kNN while training")):
                value = next((r[key] for r in reversed(records) if r.get(key) is not None), None)
                if value is not None:
                    rows.append((title, number(value, percent=key == "knn")))
        for record in self.results():
            metrics = [
                f"{RESULTS[name].title if name in RESULTS else name} {number(value)}"
                for name, value in record["metrics"].items()
                if is_accuracy(name)
            ]
            rows.append((f"{record['protocol']}, {record['evaluated']}", ", ".join(metrics)))
        cells = "".join(
            f'<tr><th style="text-align:left">{html.escape(name)}</th>'
            f'<td style="text-align:left">{html.escape(value)}</td></tr>'
            for name, value in rows
        )
        return f"<table>{cells}</table>"
