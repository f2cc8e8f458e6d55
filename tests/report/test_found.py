"""Contact sheets of groups: whole groups share a line, and a long list is cut."""

import numpy as np
from PIL import Image

from selfsight.embeddings.duplicates import near_duplicates
from selfsight.embeddings.table import Table
from selfsight.report import found
from selfsight.report.sheet import GAP, LINE
from selfsight.report.tiles import SIDE

STEP = SIDE + GAP


def sheet_of(path, sizes: list[int]) -> tuple[int, int]:
    """Columns and lines of the sheet of groups of these sizes."""
    x = np.repeat(np.eye(len(sizes), dtype=np.float32), sizes, axis=0)
    table = Table([f"{n}.jpg" for n in range(len(x))], x)
    found.draw_groups(table, near_duplicates(x, 0.9), path)
    with Image.open(path) as sheet:
        width, height = sheet.size
    return (width - GAP) // STEP, (height - GAP) // (STEP + 3 * LINE)


def test_small_groups_share_a_line_and_large_ones_are_cut(tmp_path, monkeypatch):
    assert sheet_of(tmp_path / "a.png", [2, 2, 2]) == (6, 1)
    assert sheet_of(tmp_path / "b.png", [20, 3, 3, 3]) == (8, 3)  # 8; 3 + 3; 3
    monkeypatch.setattr(found, "LINES", 2)
    assert sheet_of(tmp_path / "c.png", [20, 3, 3, 3]) == (8, 2)
