"""Tables of features: written, read back, and read by other libraries; files of other programs."""

import csv
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfsight.embeddings import csv_file, npz_file, parquet_file
from selfsight.embeddings.table import FORMATS, Neighbours, Table, is_table, read_table, write_table
from selfsight.errors import UserError

pa = pytest.importorskip("pyarrow.parquet")
every_format = pytest.mark.parametrize("ending", FORMATS)


def table(count: int = 5, width: int = 3, **more) -> Table:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, width)).astype(np.float32)
    about = {"weights_sha256": "ab", "num_features": width}
    return Table([f"/images/{n}.jpg" for n in range(count)], x, description=about, **more)


def full(count: int = 5) -> Table:
    rng = np.random.default_rng(1)
    near = Neighbours(rng.integers(0, count, (count, 2)), rng.random((count, 2), np.float32))
    labels = [None if n == 2 else f"class {n % 2}" for n in range(count)]
    splits = ["train"] * (count - 1) + ["test"]
    plane = rng.standard_normal((count, 2)).astype(np.float32)
    return table(count, splits=splits, labels=labels, projection=plane, neighbours=near)


def assert_equal(a: Table, b: Table) -> None:
    assert (a.paths, a.splits, a.labels, a.description) == (
        b.paths,
        b.splits,
        b.labels,
        b.description,
    )
    assert (a.projection is None, a.neighbours is None) == (
        b.projection is None,
        b.neighbours is None,
    )
    pairs = [(a.features, b.features)]
    if a.projection is not None:
        pairs += [(a.projection, b.projection), *zip(a.neighbours, b.neighbours, strict=True)]
    for x, y in pairs:
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


# What is written is read --------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize("made", [table, full])
def test_a_table_is_read_as_it_was_written(tmp_path, monkeypatch, ending, made):
    for module in (parquet_file, npz_file, csv_file):
        monkeypatch.setattr(module, "ROWS", 2)  # several parts
    path = tmp_path / f"features{ending}"
    write_table(path, made())
    assert_equal(read_table(path), made())
    before = path.read_bytes()
    write_table(path, made())
    assert path.read_bytes() == before
    assert is_table(path)
    beside = ["features.csv.json"] if ending == ".csv" else []
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, *beside]


NAMES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1)


@every_format
@given(
    names=st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=4),
    number=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
@settings(max_examples=30)
def test_any_name_and_any_number_is_read_as_it_was_written(tmp_path_factory, ending, names, number):
    paths, labels = map(list, zip(*names, strict=True))
    x = np.full((len(names), 2), number, np.float32)
    path = tmp_path_factory.mktemp("x") / f"t{ending}"
    write_table(path, Table(paths, x, labels=labels))
    found = read_table(path)
    np.testing.assert_array_equal(found.features, x)
    assert found.labels == labels
    assert [p.removeprefix("./") for p in found.paths] == [p.removeprefix("./") for p in paths]


@pytest.mark.parametrize("sign", list("=+-@\t\r"))
def test_no_cell_of_a_csv_is_a_formula(tmp_path, sign):
    path = tmp_path / "t.csv"
    labels = [f"{sign}1", f"'{sign}1", "'quoted", "plain"]
    x = np.zeros((4, 1), np.float32)
    write_table(path, Table([f"{sign}{n}.jpg" for n in range(4)], x, ["train"] * 4, labels))
    with path.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert not any(cell.startswith(sign) for row in rows for cell in row)
    assert [row[0] for row in rows] == [f"./{sign}{n}.jpg" for n in range(4)]  # can be opened
    assert read_table(path).labels == labels


@every_format
def test_names_that_are_no_text_are_kept_or_refused(tmp_path, ending):
    path = tmp_path / f"t{ending}"
    odd = Table(["caf\udce9.jpg"], np.zeros((1, 1), np.float32))
    if ending == ".parquet":
        with pytest.raises(UserError, match=r"^'caf\\xe9.jpg': Parquet holds UTF-8 text alone"):
            write_table(path, odd)
        assert not path.exists()
    else:
        write_table(path, odd)
        assert read_table(path).paths == odd.paths


def test_the_description_of_an_earlier_csv_is_not_that_of_a_later_one(tmp_path):
    path = tmp_path / "t.csv"
    write_table(path, table())
    write_table(path, Table(["a"], np.zeros((1, 1), np.float32)))
    assert read_table(path).description is None
    assert not is_table(path)


def test_a_part_of_the_rows_is_in_memory(tmp_path, monkeypatch):
    """While features that are mapped from a file are written and read as Parquet."""
    import pyarrow

    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (20_000, 64))
    x[:] = np.random.default_rng(0).standard_normal(x.shape)
    monkeypatch.setattr(parquet_file, "ROWS", 500)
    paths = [str(n) for n in range(len(x))]
    pool = pyarrow.system_memory_pool()
    before = pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pool)
    try:
        base = pool.max_memory()
        write_table(tmp_path / "t.parquet", Table(paths, x))
        np.testing.assert_array_equal(read_table(tmp_path / "t.parquet").features, x)
        assert pool.max_memory() - base < x.nbytes / 2
    finally:
        pyarrow.set_memory_pool(before)


# Other libraries ----------------------------------------------------------------------------------


def test_others_read_parquet(tmp_path):
    pandas = pytest.importorskip("pandas")
    write_table(tmp_path / "t.parquet", full())
    schema = pa.read_schema(tmp_path / "t.parquet")
    assert str(schema.field("embedding").type).startswith("fixed_size_list<")
    assert str(schema.field("embedding").type).endswith("float>[3]")
    assert json.loads(schema.metadata[b"selfsight"])["weights_sha256"] == "ab"
    frame = pandas.read_parquet(tmp_path / "t.parquet")
    np.testing.assert_array_equal(np.stack(frame["embedding"]), full().features)
    assert set(frame["neighbors"][0]) == {"ids", "distances"}  # as embedding-atlas reads them
    assert frame["neighbors"][1]["ids"].tolist() == full().neighbours.ids[1].tolist()
    assert (frame["x"].dtype, frame["y"].dtype) == (np.float32, np.float32)


def test_others_read_npz_and_csv(tmp_path):
    pandas = pytest.importorskip("pandas")
    for ending in (".npz", ".csv"):
        write_table(tmp_path / f"t{ending}", full())
    arrays = np.load(tmp_path / "t.npz", allow_pickle=False)
    np.testing.assert_array_equal(arrays["embedding"], full().features)
    assert arrays["path"].tolist() == full().paths
    frame = pandas.read_csv(tmp_path / "t.csv")
    found = frame.filter(regex=r"^e\d+$").to_numpy(np.float32)
    np.testing.assert_array_equal(found, full().features)
    assert json.loads(frame["neighbors"][0])["ids"] == full().neighbours.ids[0].tolist()


@pytest.mark.parametrize("list_type", ["list", "large_list", "fixed"])
def test_a_parquet_file_of_another_program_is_a_table(tmp_path, list_type):
    import pyarrow

    x = np.arange(6.0).reshape(3, 2)
    kind = {
        "list": pyarrow.list_(pyarrow.float64()),
        "large_list": pyarrow.large_list(pyarrow.float16()),
        "fixed": pyarrow.list_(pyarrow.float64(), 2),
    }[list_type]
    values = x.astype(np.float16).tolist() if list_type == "large_list" else x.tolist()
    values = [list(map(np.float16, row)) for row in values] if "large" in list_type else values
    columns = {"path": list("abc"), "embedding": pyarrow.array(values, kind), "label": [1, 0, None]}
    pa.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    found = read_table(tmp_path / "t.parquet")
    np.testing.assert_array_equal(found.features, x.astype(np.float32))
    assert (found.labels, found.description) == (["1", "0", None], None)
    assert not is_table(tmp_path / "t.parquet")


def test_an_npz_and_a_csv_of_another_program_are_tables(tmp_path):
    np.savez(tmp_path / "t.npz", path=np.array([b"a", b"b"]), embedding=np.eye(2), label=[3, 4])
    (tmp_path / "t.csv").write_text('\ufeffpath,embedding\na,"[1, 0]"\nb,"[0, 1]"\n', "utf-8")
    for name in ("t.npz", "t.csv"):
        found = read_table(tmp_path / name)
        assert (found.paths, found.description) == (["a", "b"], None)
        np.testing.assert_array_equal(found.features, np.eye(2, dtype=np.float32))
    assert read_table(tmp_path / "t.npz").labels == ["3", "4"]


# Files that are no tables -------------------------------------------------------------------------


def broken_parquet(path) -> None:
    import pyarrow

    pa.write_table(pyarrow.table({"path": ["a"], "embedding": [["x"]]}), path)


def ragged(path) -> None:
    import pyarrow

    pa.write_table(pyarrow.table({"path": ["a", "b"], "embedding": [[1.0, 2.0], [1.0]]}), path)


def empty(path) -> None:
    import pyarrow

    kinds = [("path", pyarrow.string()), ("embedding", pyarrow.list_(pyarrow.float32()))]
    pa.write_table(pyarrow.schema(kinds).empty_table(), path)


BAD = {
    "a.parquet": (lambda p: p.write_bytes(b"PAR1 junk"), "not a table of features"),
    "b.parquet": (broken_parquet, "not a table of features"),
    "c.parquet": (ragged, "different lengths"),
    "d.parquet": (empty, "the table has no rows"),
    "a.npz": (lambda p: p.write_bytes(b"PK junk"), "not a table of features"),
    "b.npz": (lambda p: np.savez(p, x=np.zeros(3)), "no array 'path' among x"),
    "c.npz": (
        lambda p: np.savez(p, path=np.array(["a"], object), embedding=np.zeros((1, 1))),
        "not a table of features: Object arrays cannot be loaded",
    ),
    "d.npz": (
        lambda p: np.savez(p, path=["a", "b"], embedding=np.zeros((1, 1))),
        "features: has 1 rows, and path has 2",
    ),
    "e.npz": (lambda p: np.savez(p, path=["a"], embedding=np.zeros(3)), r"must be .*\(N, D\)"),
    "f.npz": (
        lambda p: np.savez(p, path=["a"], embedding=[[np.nan]]),
        r"embedding: of row 0 \('a'\) is not finite",
    ),
    "g.npz": (
        lambda p: np.savez(p, path=["a"], embedding=[[1]], description=np.array("{")),
        "is damaged: not valid JSON",
    ),
    "h.npz": (
        lambda p: np.savez(p, path=["a"], embedding=[[1]], description=np.array("{}")),
        "names no weights_sha256",
    ),
    "i.npz": (
        lambda p: np.savez(
            p, path=["a"], embedding=[[1]], neighbors_ids=[[7]], neighbors_distances=[[0.1]]
        ),
        "ids must be numbers of rows, from 0 to 0",
    ),
    "a.csv": (lambda p: p.write_text("path,label\na,b\n"), "its columns are path, label"),
    "b.csv": (lambda p: p.write_text("path,e0\na,b\n"), "not a table of features"),
    "c.csv": (lambda p: p.write_text("path,e0\na\n"), "a row has 1 cells"),
    "d.csv": (lambda p: p.write_bytes(b""), "its columns are nothing"),
    "e.csv": (lambda p: p.write_text('path,embedding\na,"{}"\n'), "not a table of features"),
    "a.txt": (lambda p: p.write_text("x"), r"must be \.parquet, \.npz, \.csv"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_table_is_refused_in_one_line(tmp_path, name):
    write, message = BAD[name]
    write(tmp_path / name)
    with pytest.raises(UserError, match=message) as found:
        read_table(tmp_path / name)
    assert name in str(found.value)
    assert "\n" not in str(found.value)


@every_format
@given(data=st.data())
@settings(max_examples=25)
def test_a_damaged_file_is_refused_or_still_a_table(tmp_path_factory, ending, data):
    """Whatever byte is another: never anything but a table of finite numbers, or one line."""
    path = tmp_path_factory.mktemp("x") / f"t{ending}"
    write_table(path, full())
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    said = ""
    try:
        assert np.isfinite(read_table(path).features).all()
    except UserError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1


def test_a_missing_file_and_a_missing_library_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no such file; `selfsight embed` writes"):
        read_table(tmp_path / "t.npz")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'selfsight\[parquet\]'"):
        read_table(tmp_path / "t.parquet")


def test_an_npz_says_no_time(tmp_path):
    write_table(tmp_path / "t.npz", table())
    with zipfile.ZipFile(tmp_path / "t.npz") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
