"""Statistics over seeds against scipy, hand-computed tables and simulation; tables that say it."""

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from selfsight.errors import UserError
from selfsight.report.rows import pairs
from selfsight.report.statistics import holm, interval, paired
from selfsight.report.table import (
    COLUMNS,
    Cell,
    compare_rows,
    rows,
    to_csv,
    to_json,
    to_markdown,
    to_rich,
    write_all,
)

# Statistics ---------------------------------------------------------------------------------------


def test_interval_by_the_printed_t_table():
    # t(0.975, 2) = 4.303 in any table; mean 0.6, s = 0.1
    mean, half = interval([0.5, 0.6, 0.7])
    assert mean == pytest.approx(0.6)
    assert half == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-4)
    # t(0.975, 1) = 12.706; s = 0.1 / sqrt 2
    assert interval([0.5, 0.6])[1] == pytest.approx(12.706 * 0.05, rel=1e-4)


def test_interval_claims_nothing_of_one_value_and_refuses_none():
    assert interval([0.7]) == (0.7, None)
    assert interval([0.25, 0.25, 0.25]) == (0.25, 0.0)
    with pytest.raises(ValueError, match="at least one"):
        interval([])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_interval_equals_scipys(values):
    mean, half = interval(values)
    if half > 1e-12:
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert (mean - half, mean + half) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_interval_covers_the_truth_in_95_of_100(n):
    draws = np.random.default_rng(n).normal(0.8, 0.02, (2000, n)).tolist()
    covered = [abs(mean - 0.8) <= half for mean, half in map(interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)  # 4 standard errors


def test_paired_rejects_a_true_null_in_5_of_100():
    generator = np.random.default_rng(0)
    seeds = generator.normal(0.8, 0.1, (2000, 3))  # what both methods owe to the seed
    a, b = (seeds + generator.normal(0, 0.01, seeds.shape) for _ in range(2))
    p = [paired(dict(enumerate(x)), dict(enumerate(y))).p for x, y in zip(a, b, strict=True)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.02)


@given(st.data())
def test_paired_equals_scipys_over_the_common_seeds(data):
    n = data.draw(st.integers(2, 8))
    # accuracies on 1,000 images: differences move in steps far above rounding
    draw = st.lists(st.integers(0, 1000).map(lambda k: k / 1000), min_size=n, max_size=n)
    x, y = data.draw(draw), data.draw(draw)
    found = paired({**dict(enumerate(x)), 90: 0.1}, {91: 0.9, **dict(enumerate(y))})
    assert found.n == n
    difference = np.subtract(x, y)
    assert found.mean == pytest.approx(difference.mean(), abs=1e-12)
    if np.ptp(difference) < 1e-9:
        return
    expected = stats.ttest_rel(x, y)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    low, high = expected.confidence_interval(0.95)
    assert found.half == pytest.approx((high - low) / 2, rel=1e-9)
    assert (abs(found.mean) <= found.half) == (found.p >= 0.05)


def test_paired_claims_nothing_without_spread():
    a = {0: 0.95, 1: 0.94, 2: 0.9}
    same = paired(a, a)
    assert (same.mean, same.half, same.p) == (0, 0, 1)
    # equal up to the rounding of float32; scipy's p would be 1e-15 and mean nothing
    shifted = paired(a, {seed: float(np.float32(value - 0.01)) for seed, value in a.items()})
    assert shifted.mean == pytest.approx(0.01, abs=1e-6)
    assert (shifted.half, shifted.p) == (None, None)
    assert paired({0: 0.9}, {0: 0.8}).p is None
    assert paired({0: 0.9}, {1: 0.8}).mean is None


def test_holm_by_hand():
    # sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, then never falling: .02 .03 .06 .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferroni(p_values):
    for raw, corrected in zip(p_values, holm(p_values), strict=True):
        assert raw <= corrected <= min(1, len(p_values) * raw) + 1e-12


# Rows ---------------------------------------------------------------------------------------------


def cell(method, seed, accuracy=None, **changes):
    metrics = {} if accuracy is None else {"linear_top1": accuracy}
    values = {"data": "digits", "backbone": "resnet18", "metrics": metrics}
    values |= {"minutes": 10.0, "memory_mib": 500.0, "images_per_second": 900.0}
    return Cell(**{**values, **changes, "method": method, "seed": seed})


GRID = [
    *(cell("simclr", s, a, minutes=5.0) for s, a in enumerate([0.90, 0.92, 0.91])),
    *(cell("byol", s, a) for s, a in enumerate([0.91, 0.90, 0.90])),
    *(cell("dino", s, a) for s, a in enumerate([0.81, 0.83, 0.83])),
    *(cell("mae", s, a) for s, a in enumerate([0.40, 0.44, 0.42])),
    *(cell("untrained", s, a, minutes=None) for s, a in enumerate([0.41, 0.41, 0.40])),
    *(cell("pixels", s, 0.3, minutes=None, backbone="") for s in range(3)),
    cell("swav", 0, error="CUDA out of memory [GPU 0] | tried\nto allocate", minutes=None),
]


def by_method(cells):
    return {row.method: row for row in rows(cells)}


def test_marks_and_notes():
    found = by_method(GRID)
    assert list(found) == ["simclr", "byol", "dino", "mae", "swav", "untrained", "pixels"]
    marks = {method: row.mark for method, row in found.items()}
    # simclr - byol: -0.01, 0.02, 0.01: 0 is inside; simclr - dino: 0.09, 0.09, 0.08: it is not
    assert marks == {
        "simclr": "best",
        "byol": "=",
        "dino": "",
        "mae": "",
        "swav": "",
        "untrained": "",
        "pixels": "",
    }
    # mae - untrained: -0.01, 0.03, 0.02
    assert found["mae"].notes == ("within seed noise of untrained (+1.3 ± 5.2 points, n = 3)",)
    assert [method for method, row in found.items() if row.notes] == ["mae"]


def test_worse_than_untrained_and_pixels_is_said_with_one_seed_too():
    cells = [cell("untrained", 0, 0.5), cell("mae", 0, 0.5), cell("pixels", 0, 0.6, backbone="")]
    notes = by_method(cells)["mae"].notes
    assert notes[0] == "no better than untrained (+0.0 points, n = 1)"
    assert notes[1] == "no better than pixels (-10.0 points, n = 1)"
    unpaired = [cell("untrained", 1, 0.5), cell("mae", 0, 0.4)]
    assert by_method(unpaired)["mae"].notes == ("no better than untrained (-10.0 points, n = 0)",)


def test_one_seed_makes_no_claim():
    found = rows([cell("simclr", 0, 0.9), cell("byol", 0, 0.5), cell("dino", 1, 0.7)])
    assert [row.mark for row in found] == ["?", "?", "?"]
    for text in (to_markdown(found), rendered(found)):
        table = [line for line in text.splitlines() if re.search("simclr|byol|dino", line)]
        assert len(table) == 3
        assert not any("±" in line for line in table)
    assert pairs(found, "linear_top1")[0].difference.p is None


def test_the_top_row_of_one_seed_is_not_called_best():
    cells = [cell("simclr", 0, 0.95), cell("byol", 0, 0.9), cell("byol", 1, 0.9)]
    assert {m: row.mark for m, row in by_method(cells).items()} == {"simclr": "?", "byol": "?"}


def test_points_per_minute():
    found = by_method(GRID)
    gained = (0.90 - 0.41) + (0.92 - 0.41) + (0.91 - 0.40)
    assert found["simclr"].points_per_minute == pytest.approx(100 * gained / 15)
    assert found["untrained"].points_per_minute is None
    without = by_method([c for c in GRID if c.method != "untrained"])
    assert without["simclr"].points_per_minute is None
    other = by_method([replace(c, backbone="vit") if c.method == "untrained" else c for c in GRID])
    assert other["simclr"].points_per_minute is None


def test_costs_are_means_and_the_highest_peak():
    memory = {0: 500.0, 1: 700.0, 2: None}
    cells = [cell("byol", s, 0.9, memory_mib=m, minutes=s) for s, m in memory.items()]
    (row,) = rows(cells)
    assert (row.cost("memory_mib"), row.cost("minutes")) == (700, 1)
    assert rows([cell("byol", 0, minutes=None)])[0].cost("minutes") is None


def test_the_main_column_is_the_first_measured_of_its_data_set():
    cells = [
        cell("byol", 0, data="a", metrics={"knn": 0.5, "online": 0.9, "linear_top1": None}),
        cell("byol", 0, data="b", metrics={"knn": 0.5, "augmented_top1": 0.6}),
        cell("byol", 0, data="c", metrics={"online": 0.9}),
    ]
    assert [row.main for row in rows(cells)] == ["knn", "augmented_top1", None]


def test_holm_family_is_all_tested_pairs_of_a_data_set_and_column():
    cells = [*GRID, *(replace(c, data="other") for c in GRID)]
    document = json.loads(to_json(cells))
    found = [c for c in document["comparisons"] if c["data"] == "digits"]
    tested = [c for c in found if c["p"] is not None]
    assert len(found) == 15  # 6 measured rows
    assert [c["p_holm"] for c in tested] == pytest.approx(holm([c["p"] for c in tested]))
    assert {c["pairs"] for c in found} == {len(tested)}
    accuracy = {c.seed: c.metrics["linear_top1"] for c in GRID if c.method == "byol"}
    other = {c.seed: c.metrics["linear_top1"] for c in GRID if c.method == "dino"}
    pair = next(c for c in found if (c["a"], c["b"]) == ("byol/resnet18", "dino/resnet18"))
    assert pair["p"] == pytest.approx(
        stats.ttest_rel(list(accuracy.values()), list(other.values())).pvalue
    )


def test_a_wrong_cell_is_refused():
    with pytest.raises(ValueError, match="two cells for one seed"):
        rows([cell("byol", 0, 0.9), cell("byol", 0, 0.8)])
    for metrics in ({"linear": 0.9}, {"knn": 91.2}, {"knn": float("nan")}):
        with pytest.raises(ValueError, match="is not an accuracy"):
            cell("byol", 0, metrics=metrics)


@settings(max_examples=15)
@given(st.permutations(GRID))
def test_the_order_of_cells_does_not_matter(cells):
    assert rows(cells) == rows(GRID)
    assert to_csv(cells) == to_csv(GRID)
    assert to_json(cells) == to_json(GRID)


def test_compare_rows():
    assert compare_rows(GRID, "simclr", "digits/dino", "linear_top1").startswith(
        "digits linear_top1: simclr/resnet18 91.0, dino/resnet18 82.3: +8.7 ± 1.4 points, n = 3 "
        "over seeds 0 1 2, paired p = 0.0015 (Holm over 15 pairs: 0.0"
    )
    backwards = compare_rows(GRID, "dino/resnet18", "digits/simclr/resnet18", "linear_top1")
    assert "-8.7 ± 1.4 points" in backwards
    one = [cell("byol", 0, 0.9), cell("simclr", 0, 0.8), cell("dino", 1, 0.7)]
    assert compare_rows(one, "byol", "simclr", "linear_top1").endswith(
        "+10.0 points, n = 1 over seed 0: one seed, no claim"
    )
    assert "no common seed, no claim" in compare_rows(one, "byol", "dino", "linear_top1")


@pytest.mark.parametrize(
    ("a", "b", "column", "said"),
    [
        ("simclr", "moco", "linear_top1", "'moco' fits no row: digits/simclr/resnet18"),
        ("simclr", "byol", "top1", "'top1': no such column"),
        ("simclr", "byol", "knn", "digits/simclr/resnet18: knn was not measured"),
        ("simclr", "simclr", "linear_top1", "are not two rows of one data set"),
        ("simclr", "other/byol", "linear_top1", "'simclr' fits several rows: digits/simclr"),
        ("digits/simclr", "other/byol", "linear_top1", "are not two rows of one data set"),
    ],
)
def test_compare_rows_mistakes_are_one_line(a, b, column, said):
    cells = [*GRID, *(replace(c, data="other") for c in GRID if "other" in b)]
    with pytest.raises(UserError) as error:
        compare_rows(cells, a, b, column)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# Output -------------------------------------------------------------------------------------------

ABOUT = {
    "title": "A grid",
    "test_images": {"digits": 360},
    "hardware": "two cores of an AMD EPYC",
    "versions": {"selfsight": "0.1.0", "torch": "2.15.0"},
}


def rendered(found, width=120, about=None):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(to_rich(found, about))
    return console.file.getvalue()


def wide_grid(backbones):
    cells = []
    for c in GRID:
        value = c.metrics.get("linear_top1")
        metrics = {} if value is None else dict.fromkeys(COLUMNS, value)
        own = backbones if c.backbone else [""]
        cells += [replace(c, metrics=metrics, backbone=b) for b in own]
    return cells


def markdown_tables(text):
    """The cells of each table, by the rule that a pipe without a backslash parts them."""
    tables = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            tables[-1].append([t.strip() for t in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif tables[-1]:
            tables.append([])
    return tables[:-1]


def test_markdown_is_a_table_with_the_means():
    odd = [replace(c, method="a|b\n_c") if c.method == "byol" else c for c in GRID]
    (table,) = markdown_tables(to_markdown(rows(odd), ABOUT))
    assert {len(line) for line in table} == {len(table[0])}
    assert table[0][:4] == ["method", "n", "mark", "lin. top-1"]
    assert table[2][:4] == ["simclr", "3", "best", "91.0 ± 2.5"]  # 4.303 * 1.0 / sqrt 3
    assert table[3][0] == r"a\|b \_c"
    assert table[5][0] == r"mae \*"  # there is a note on it


def test_unfinished_cells_are_shown_with_the_reason_on_one_line():
    partly = [*GRID, cell("dino", 3, error="loss was not finite at step 40")]
    for text in (to_markdown(rows(partly)), rendered(rows(partly))):
        text = text.replace("\\", "")
        assert "unfinished: swav, seed 0: CUDA out of memory [GPU 0] | tried to allocate" in text
        assert "unfinished: dino, seed 3: loss was not finite at step 40" in text
        assert re.search(r"dino[ |]+3/4 ", text)
        assert re.search(r"swav[ |]+0/1 ", text)
    assert json.loads(to_json(partly))["rows"][2]["failed"] == {
        "3": "loss was not finite at step 40"
    }
    errors = [line["error"] for line in csv.DictReader(io.StringIO(to_csv(partly)))]
    assert sum(map(bool, errors)) == 2


def test_csv_recomputes_the_table():
    lines = list(csv.DictReader(io.StringIO(to_csv(GRID))))
    assert len(lines) == len(GRID)
    assert lines[-1]["method"] == "pixels"
    swav = next(line for line in lines if line["method"] == "swav")
    assert (swav["linear_top1"], swav["minutes"]) == ("", "")
    assert swav["error"] == "CUDA out of memory [GPU 0] | tried\nto allocate"
    (table,) = markdown_tables(to_markdown(rows(GRID)))
    for text in table[2:]:
        method = text[0].removesuffix(r" \*")
        values = [
            float(line["linear_top1"])
            for line in lines
            if line["method"] == method and line["linear_top1"]
        ]
        if values:
            half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
            assert text[3] == f"{100 * np.mean(values):.1f} ± {100 * half:.1f}"


def test_json_holds_cells_rows_and_about():
    document = json.loads(to_json(GRID, ABOUT))
    assert document["about"] == ABOUT
    assert len(document["cells"]) == len(GRID)
    top = document["rows"][0]
    assert top["accuracy"]["linear_top1"]["mean"] == pytest.approx(0.91)
    assert top["accuracy"]["linear_top1"]["seeds"] == [0, 1, 2]
    assert (top["method"], top["mark"], top["n"], top["memory_mib"]) == ("simclr", "best", 3, 500)


def test_a_value_of_fewer_seeds_says_so():
    cells = [cell("byol", s, 0.9, metrics={"linear_top1": 0.9, "knn": 0.8}) for s in range(2)]
    cells.append(cell("byol", 2, metrics={"linear_top1": 0.93}))
    (table,) = markdown_tables(to_markdown(rows(cells)))
    assert table[2][1] == "3"
    assert table[2][4] == "80.0 ± 0.0 (2)"


def test_every_output_says_what_its_numbers_mean():
    found = rows(GRID)
    texts = [to_markdown(found, ABOUT).replace("\\", ""), to_json(GRID, ABOUT)]
    texts.append(rendered(found, about=ABOUT))
    for text in texts:
        text = " ".join(
            text.encode().decode("unicode_escape" if "\\u" in text else "utf-8").split()
        )
        assert "half of its Student-t 95 % interval over seeds" in text
        assert "360 test images; seeds 0, 1, 2; ranked by lin. top-1" in text
        assert "± 3.0 (95 %)" in text  # 196 sqrt(0.91 * 0.09 / 360)
        assert "two cores of an AMD EPYC" in text
        assert "points of the ranking column above the untrained encoder" in text
        assert "uncorrected" in text
        assert "Holm: 1" in text
    assert "online" not in texts[0]
    assert "augmented training views" in to_markdown(rows(wide_grid(["resnet18"])))


def test_brackets_of_a_name_are_no_markup():
    odd = [replace(c, method="[red]") if c.method == "byol" else c for c in GRID]
    assert re.search(r"^\[red\] +3 +=", rendered(rows(odd)), re.MULTILINE)
    assert re.search(r"^mae \* +3 ", rendered(rows(odd)), re.MULTILINE)


@pytest.mark.parametrize("width", [80, 100, 120, 200])
@pytest.mark.parametrize("backbones", [["resnet18"], ["resnet18", "vit_tiny_patch16_224"]])
def test_no_terminal_cuts_a_cell(width, backbones):
    found = rows(wide_grid(backbones))
    text = rendered(found, width, ABOUT)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for title in COLUMNS.values():
        assert title in text
    tables = len(re.findall("^─+ *$", text, re.MULTILINE))
    names = [row.name if len(backbones) > 1 else row.method for row in found]
    assert names[-1] == "pixels"
    for name in names:
        assert len(re.findall(rf"^{name}( \*)? +\d", text, re.MULTILINE)) == tables


def test_five_accuracies_and_the_costs_are_one_table_at_120():
    five = dict.fromkeys(list(COLUMNS)[:5])
    cells = [
        replace(c, metrics=dict.fromkeys(five, c.metrics["linear_top1"]) if c.metrics else {})
        for c in GRID
    ]
    assert rendered(rows(cells)).count("method") == 1


def test_write_all(tmp_path):
    write_all(tmp_path / "grid", iter(GRID), ABOUT)
    assert sorted(p.name for p in (tmp_path / "grid").iterdir()) == [
        "table.csv",
        "table.json",
        "table.md",
    ]
    assert (tmp_path / "grid" / "table.md").read_text(encoding="utf-8") == to_markdown(
        rows(GRID), ABOUT
    )
    assert (tmp_path / "grid" / "table.csv").read_text(encoding="utf-8") == to_csv(GRID)
    assert (tmp_path / "grid" / "table.json").read_text(encoding="utf-8") == to_json(GRID, ABOUT)
