"""The notes below a table of results, as lines of plain text."""

import math
from collections.abc import Mapping
from typing import Any

from selfsight.report.rows import COLUMNS, Row, pairs


def measured(group: list[Row]) -> list[str]:
    """The columns that have any value, in order."""
    return [column for column in COLUMNS if any(row.values(column) for row in group)]


def label(row: Row, group: list[Row]) -> str:
    """The method, with its backbone if the data set has several."""
    backbones = {r.backbone for r in group if r.method != "pixels"}
    return row.name if len(backbones) > 1 else row.method


def remarks(group: list[Row]) -> list[str]:
    """Rows that are not better than a baseline, and unfinished cells with the reason."""
    lines = [f"* {label(row, group)}: {note}" for row in group for note in row.notes]
    for row in group:
        by_reason: dict[str, list[int]] = {}
        for seed, reason in row.failed.items():
            by_reason.setdefault(reason, []).append(seed)
        for reason, seeds in by_reason.items():
            lines.append(f"unfinished: {label(row, group)}, {_seeds(seeds)}: {reason}")
    return lines


def facts(group: list[Row], about: Mapping[str, Any]) -> str:
    """Notes for one data set: test images, seeds, ranking column, number of tested pairs."""
    main = group[0].main
    images = about.get("test_images", {}).get(group[0].data)
    text = f"{images:,} test images; " if images else ""
    text += _seeds(sorted({cell.seed for row in group for cell in row.cells})) + "; "
    if main is None:
        return text + "not ranked, because none of the ranking columns was measured."
    text += f"ranked by {COLUMNS[main]}."
    if images:
        top = max(row.mean(main) for row in group if row.values(main))
        error = 196 * math.sqrt(top * (1 - top) / images)  # normal approximation of a binomial
        text += f" Other test images would move the top row by ± {error:.1f} (95 %): not in its ±."
    family = next((pair.family for pair in pairs(group, main)), 0)
    if family:
        text += f" Holm: {family} pairs of rows have a p-value in this column."
    return text


def legend(found: list[Row], about: Mapping[str, Any]) -> list[str]:
    """Notes for all data sets: the columns, the marks, hardware and versions."""
    lines = [
        "Accuracy in %. n: finished seeds (2/3: of three). a ± b: mean, and half of its Student-t "
        "95 % interval over seeds; no ± for one seed; (k): only k seeds have this value."
    ]
    if "online" in measured(found):
        lines.append(
            "online: linear probe on augmented training views while pretraining; no test image."
        )
    for names, what in (
        (("linear_top1", "linear_top5"), "lin.: linear probe on frozen features"),
        (("augmented_top1", "augmented_top5"), "aug.: linear probe on augmented images"),
        (
            ("finetune_1", "finetune_10", "finetune_100"),
            "% labels: fine-tuned on this part",
        ),
    ):
        if set(names) & set(measured(found)):
            lines.append(what + ".")
    if any(row.main for row in found):
        lines.append(
            "best: highest mean. =: not significantly different from it: the 95 % interval of the "
            "difference, paired by seed and uncorrected, includes 0. ?: unknown: fewer than two "
            "common seeds, or no spread. *: not clearly above untrained, start or pixels. "
            "table.json has p of every pair, also corrected by Holm over all pairs of rows of a "
            "data set and column."
        )
    if any(row.points_per_minute is not None for row in found):
        lines.append(
            "pts/min: points of the ranking column above the untrained encoder of the same "
            "seeds, by minutes of pretraining; - without an untrained encoder."
        )
    if any(row.cost("minutes") is not None for row in found):
        lines.append("minutes, images/s: of pretraining, mean over seeds. MiB: its highest peak.")
    if about.get("hardware"):
        lines.append(f"Measured on {about['hardware']}.")
    if about.get("versions"):
        lines.append(", ".join(f"{name} {value}" for name, value in about["versions"].items()))
    return lines


def _seeds(seeds: list[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
