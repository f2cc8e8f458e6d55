"""Hugging Face's data sets and image tables; its library and pyarrow are the oracles."""

import io
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from selfsight.data.config import DataConfig
from selfsight.data.decode import decode
from selfsight.data.source import BadImage, Subset
from selfsight.data.sources import huggingface
from selfsight.data.sources import parquet as parquet_files
from selfsight.data.sources.huggingface import HuggingFace
from selfsight.data.sources.open import open_source
from selfsight.data.sources.parquet import Parquet
from selfsight.errors import UserError
from tests.processes import environment

NAMES = ["cat", "dog", "eel"]


@pytest.fixture(autouse=True)
def quiet():
    """No bars of the library among the tests' output."""
    datasets.disable_progress_bars()


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def data_set(start: int, stop: int, labels: list[int] | None = None) -> datasets.Dataset:
    """Images `start` to `stop`, of the class that is the number modulo 3."""
    rows = range(start, stop)
    columns = {"note": [str(n) for n in rows], "image": [picture(n) for n in rows]}
    kinds = {"note": datasets.Value("string"), "image": datasets.Image()}
    columns["label"] = [n % 3 for n in rows] if labels is None else labels
    kinds["label"] = datasets.ClassLabel(names=NAMES)
    return datasets.Dataset.from_dict(columns, datasets.Features(kinds))


def open_both(**keys):
    config = DataConfig(**keys)
    return open_source(config, "train"), open_source(config, "test")


def same(source, data: datasets.Dataset, names: list[str] | None = NAMES) -> None:
    """The source has the library's images, which the library decodes itself, and labels."""
    assert len(source) == len(data)
    assert source.classes == names
    if names:
        assert source.labels.dtype == np.int64
        assert source.labels.tolist() == list(data["label"])
    for i in range(len(data)):
        assert isinstance(source.read(i), bytes)
        assert np.array_equal(decode(source, i), np.array(data[i]["image"]))


# Saved data sets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["auto", "huggingface"])
def test_a_saved_data_set_with_splits(tmp_path, source):
    splits = {"train": data_set(0, 9), "validation": data_set(20, 23), "more": data_set(30, 31)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    train, test = open_both(source=source, path=str(tmp_path / "saved"))
    same(train, splits["train"])
    same(test, splits["validation"])
    assert train.name(4) == f"{tmp_path}/saved/train row 4"
    assert open_both(path=str(tmp_path / "saved"), labels=False)[0].labels is None


def test_a_saved_split_is_divided(tmp_path):
    data_set(0, 20).save_to_disk(tmp_path / "saved", num_shards=3)
    train, test = open_both(path=str(tmp_path / "saved"), test_fraction=0.25)
    assert isinstance(train, Subset)
    assert (len(train), len(test)) == (14, 6)
    assert len({s.read(i) for s in (train, test) for i in range(len(s))}) == 20


def test_a_saved_data_set_without_a_train_split(tmp_path):
    datasets.DatasetDict({"all": data_set(0, 3), "odd": data_set(3, 6)}).save_to_disk(
        tmp_path / "s"
    )
    with pytest.raises(UserError, match=r"none of its splits all, odd is called train.*=.*/s/all"):
        open_both(path=str(tmp_path / "s"))
    assert (
        len(open_source(DataConfig(path=str(tmp_path / "s" / "all"), labels=False), "train")) == 3
    )


def test_rows_that_were_chosen_and_shuffled():
    data = data_set(0, 30).shuffle(seed=1).select(range(3, 25))
    source = HuggingFace(data)
    same(source, data)
    order = random.Random(0).choices(range(len(data)), k=1000)
    expected = [source.read(i) for i in range(len(data))]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, order)) == [expected[i] for i in order]


def test_images_that_lie_elsewhere(tmp_path):
    for n in range(3):
        picture(n).save(tmp_path / f"{n}.png")
    paths = [str(tmp_path / f"{n}.png") for n in range(3)] + [None]
    data = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    source = HuggingFace(data)
    assert source.classes is None
    assert source.read(1) == encoded(1)
    (tmp_path / "2.png").unlink()
    for i, reason in ((2, "No such file"), (3, "bytes are missing")):
        with pytest.raises(BadImage, match=reason):
            decode(source, i)


def test_labels_of_every_kind():
    images = [picture(n) for n in range(4)]

    def of(values, column="label") -> HuggingFace:
        data = datasets.Dataset.from_dict({"image": images, column: values})
        return HuggingFace(data.cast_column("image", datasets.Image()))

    assert of([7, 5, 7, 12]).classes == ["5", "7", "12"]
    assert of([7, 5, 7, 12]).labels.tolist() == [1, 0, 1, 2]
    assert of(["b", "a", "b", "b"]).classes == ["a", "b"]
    with pytest.raises(UserError, match="an image has several, and no class"):
        of([[1], [2], [1, 2], []])
    with pytest.raises(UserError, match=r"0\.5 is no whole number"):
        of([0.5, 1.0, 1.0, 0.5])
    assert of([True, False, True, True]).classes == ["false", "true"]
    assert of([1, 2, 3, 4], column="age").classes is None
    for withheld in ([-1] * 4, [None] * 4):
        assert of(withheld).labels is None
    for some in ([-1, 0, 1, 1], [None, 0, 1, 1], ["a", None, "b", "a"]):
        with pytest.raises(UserError, match="1 of 4 images have no label"):
            of(some)
    named = data_set(0, 4).rename_column("label", "kind of animal")
    assert HuggingFace(named).labels.tolist() == [0, 1, 2, 0]


def test_data_sets_without_images(tmp_path):
    for data, reason in (
        (data_set(0, 3).remove_columns("image"), "no image column among note, label"),
        (data_set(0, 3).select([]), "no rows"),
    ):
        with pytest.raises(UserError, match=reason):
            HuggingFace(data)
    data_set(0, 3).save_to_disk(tmp_path / "saved")
    os.remove(next((tmp_path / "saved").glob("*.arrow")))
    with pytest.raises(UserError, match=r"data\.path=.*/saved: .*arrow") as caught:
        open_both(path=str(tmp_path / "saved"))
    assert "\n" not in str(caught.value)


# By name ------------------------------------------------------------------------------------------


@pytest.fixture
def named(tmp_path, monkeypatch):
    """A folder that the library opens by name, as it does those of the hub."""
    monkeypatch.chdir(tmp_path)
    huggingface._load_hub.cache_clear()
    folder = Path("us/pets")
    folder.mkdir(parents=True)
    data_set(0, 9).to_parquet(folder / "train.parquet")
    data_set(20, 24).to_parquet(folder / "validation.parquet")
    data_set(30, 33, labels=[-1] * 3).to_parquet(folder / "test.parquet")
    return folder


def test_a_data_set_by_name(named, tmp_path):
    train, test = open_both(source="huggingface:us/pets", path=str(tmp_path / "kept"))
    same(train, data_set(0, 9))
    same(test, data_set(20, 24))  # the labels of the split called test are withheld
    assert "pets" in train.name(2)
    assert "train row 2" in train.name(2)
    assert any((tmp_path / "kept").rglob("*.arrow"))
    train, _ = open_both(source="huggingface:us/pets:train+test", path="kept", labels=False)
    assert len(train) == 12
    train, _ = open_both(source="huggingface:us/pets:validation", path="kept")
    same(train, data_set(20, 24))


def test_a_data_set_of_one_split_is_divided(named):
    for name in ("validation", "test"):
        (named / f"{name}.parquet").unlink()
    train, test = open_both(source="huggingface:us/pets", path="kept")
    assert (len(train), len(test)) == (6, 3)


def test_a_data_set_of_several_configurations(named):
    (named / "README.md").write_text(
        "---\nconfigs:\n- config_name: old\n  data_files: test.parquet\n"
        "- config_name: new\n  data_files:\n  - {split: full, path: train.parquet}\n"
        "  - {split: rest, path: validation.parquet}\n---\n"
    )
    with pytest.raises(UserError, match="huggingface:us/pets: Config name is missing"):
        open_both(source="huggingface:us/pets", path="kept")
    with pytest.raises(UserError, match=r"splits full, rest is called train; .*pets/new:full"):
        open_both(source="huggingface:us/pets/new", path="kept")
    train, test = open_both(source="huggingface:us/pets/new:rest", path="kept")
    assert len(train) + len(test) == 4


def test_mistaken_names(named):
    with pytest.raises(UserError, match=r"pets:tarin: Unknown split \"tarin\"") as caught:
        open_both(source="huggingface:us/pets:tarin", path="kept")
    assert "\n" not in str(caught.value)


def test_no_network_and_no_such_name(tmp_path):
    """One line in place of a traceback; and nothing else imports the library."""
    environ = {**environment(), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    code = (
        "import sys\n"
        "from selfsight.data.sources.open import open_source\n"
        "from selfsight.data.config import DataConfig\n"
        "from selfsight.errors import UserError\n"
        "open_source(DataConfig(), 'train')\n"
        "assert 'datasets' not in sys.modules\n"
        "try: open_source(DataConfig(source='huggingface:nobody/nothing'), 'train')\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=100
    )
    assert done.stdout.startswith("data.source=huggingface:nobody/nothing: "), done.stderr
    assert done.stdout.count("\n") == 1


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    huggingface._load_hub.cache_clear()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs datasets: pip install 'selfsight\[huggingface\]'"):
        open_both(source="huggingface:us/pets")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs pyarrow: pip install 'selfsight\[parquet\]'"):
        Parquet([tmp_path / "a.parquet"])


# Parquet ------------------------------------------------------------------------------------------


def table(start: int, stop: int, **columns: list) -> pa.Table:
    images = [{"bytes": encoded(n), "path": f"{n}.png"} for n in range(start, stop)]
    return pa.table({"image": images, **columns})


@pytest.mark.parametrize("kept", [2**31, 3000, 1])
def test_row_groups_are_read_when_needed(tmp_path, monkeypatch, kept):
    """Whatever may be kept, many threads read in any order what was written."""
    monkeypatch.setattr(parquet_files, "KEPT", kept)
    files = [tmp_path / f"{n}.parquet" for n in range(3)]
    for n, file in enumerate(files):
        pq.write_table(table(20 * n, 20 * n + 20, label=[n] * 20), file, row_group_size=3)
    source = Parquet(files)
    assert source.labels.tolist() == [0] * 20 + [1] * 20 + [2] * 20
    order = random.Random(0).choices(range(60), k=600)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(source.read, order))
    assert read == [encoded(i) for i in order]
    assert source.name(45) == f"{files[2]} row 5"
    largest = max(pq.read_metadata(file).row_group(0).total_byte_size for file in files)
    few = max(1, kept // largest)
    assert source._column.cache_info().currsize == (21 if kept > 10**6 else few)
    assert few > 1 or kept == 1


def test_a_damaged_row_group_spoils_only_its_images(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(table(0, 9), path, row_group_size=3, use_dictionary=False, compression="snappy")
    column = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    source = Parquet([path])
    assert [source.read(i) for i in (0, 1, 2, 6, 7, 8)] == [encoded(i) for i in (0, 1, 2, 6, 7, 8)]
    for i in (3, 4, 5):
        with pytest.raises(BadImage, match=f"a.parquet row {i}"):
            source.read(i)


def cut_short(path: Path) -> None:
    os.truncate(path, pq.read_metadata(path).row_group(1).column(0).data_page_offset)


def replaced(path: Path) -> None:
    """With the row groups of the old one its images would be broken, or those of others."""
    pq.write_table(table(30, 50), path, row_group_size=3)


@pytest.mark.parametrize(
    ("change", "said"),
    [(cut_short, "cut short meanwhile"), (replaced, "changed since it was opened")],
)
def test_a_table_that_changes_while_it_is_read_is_refused(change, said, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_files, "KEPT", 1)
    path = tmp_path / "a.parquet"
    pq.write_table(table(0, 9), path, row_group_size=3)
    source = Parquet([path])
    assert source.read(0) == encoded(0)
    change(path)
    with pytest.raises(UserError, match=rf"a\.parquet: {said}") as error:
        source.read(8)
    assert not isinstance(error.value, BadImage)


def test_labels_that_are_no_text_or_too_large_for_a_signed_number(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(table(0, 3, label=[b"a", b"\xff", b"a"]), path)
    with pytest.raises(UserError, match="labels of type binary are not UTF-8"):
        Parquet([path])
    pq.write_table(table(0, 3, label=[b"b", b"a", b"b"]), path)
    assert Parquet([path]).classes == ["a", "b"]
    pq.write_table(table(0, 3, label=pa.array([2**63 + 1, 3, 3], pa.uint64())), path)
    assert Parquet([path]).labels.tolist() == [1, 0, 0]


def test_images_without_bytes(tmp_path):
    images = [{"bytes": encoded(0), "path": None}, {"bytes": None, "path": "1.png"}, None]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    source = Parquet([tmp_path / "a.parquet"])
    assert source.read(0) == encoded(0)
    for i in (1, 2):
        with pytest.raises(BadImage, match="bytes are missing"):
            source.read(i)


def test_tables_that_do_not_fit(tmp_path):
    a, b = tmp_path / "a.parquet", tmp_path / "b.parquet"
    pq.write_table(table(0, 2, label=[0, 1]), a)
    for other, reason in (
        (table(2, 4), "label"),
        (pa.table({"text": ["x"]}), r"b\.parquet: no image column .* among \['text'\]"),
        (table(2, 4, label=[[0], [1]]), "column 'label'"),
        (table(2, 4, label=[None, 1]), "1 of 4 images have no label"),
    ):
        pq.write_table(other, b)
        with pytest.raises(UserError, match=reason) as caught:
            Parquet([a, b])
        assert "\n" not in str(caught.value)
    pq.write_table(table(0, 2).slice(0, 0), a)
    with pytest.raises(UserError, match="contains no rows"):
        Parquet([a])


def test_names_from_the_librarys_own_tables(tmp_path):
    data_set(0, 5).to_parquet(tmp_path / "train.parquet")
    data_set(9, 11).to_parquet(tmp_path / "test.parquet")
    train, test = open_both(path=str(tmp_path))
    same(train, data_set(0, 5))
    same(test, data_set(9, 11))
    wrong = data_set(0, 5).cast_column("label", datasets.Value("int64")).with_format("arrow")[:]
    features = data_set(0, 1).with_format("arrow")[:].schema.metadata
    changed = wrong.set_column(2, "label", pa.array([0, 1, 2, 3, 0]))
    pq.write_table(changed.replace_schema_metadata(features), tmp_path / "train.parquet")
    with pytest.raises(UserError, match="label 3, but only 3 classes are named"):
        open_both(path=str(tmp_path))
