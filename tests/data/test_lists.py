"""List files: what a line means, and what is said of one that means nothing."""

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from selfsight.data.config import DataConfig
from selfsight.data.decode import decode
from selfsight.data.source import BadImage, Subset
from selfsight.data.sources.lists import ListFile
from selfsight.data.sources.open import open_source
from selfsight.errors import UserError


def write(folder: Path, content: str | bytes, name: str = "list.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else os.fsencode(content))
    return path


def read(file: Path, labels: bool = True) -> ListFile:
    return ListFile(file, file.parent, labels)


def paths(source: ListFile, folder: Path) -> list[str]:
    return [os.path.relpath(source.name(i), folder) for i in range(len(source))]


# What a line means --------------------------------------------------------------------------------

letters = st.characters(exclude_categories=["Cc", "Cs", "Zs"], exclude_characters="/")
word = st.text(letters, min_size=1, max_size=5)
path_text = st.lists(word, min_size=1, max_size=3).map(" ".join)
path_text = path_text.filter(lambda path: path[0] not in "#{\ufeff" and path not in (".", ".."))
names = word.filter(lambda text: not text.strip("-+[],;|.0123456789").isdigit() and "." not in text)
names = names.filter(lambda text: text.strip("-+[],;|0123456789") != "")
rows = st.one_of(
    st.lists(st.tuples(path_text, st.integers(0, 99)), min_size=1),
    st.lists(st.tuples(path_text, names), min_size=1),
)
noise = st.sampled_from(["", "", "\n", "# a remark\n", "   \r\n", "#\n"])


def oracle(labels: list) -> tuple[list[str], list[int]]:
    if isinstance(labels[0], int):
        found = sorted(set(labels))
        return [str(n) for n in found], [found.index(n) for n in labels]
    classes = sorted(set(labels))
    return classes, [classes.index(name) for name in labels]


@given(rows, st.data())
def test_lines_of_path_and_label(tmp_path_factory, rows, data):
    folder = tmp_path_factory.getbasetemp()
    text = data.draw(st.sampled_from(["", "\ufeff"]))
    for path, label in rows:
        gap, end = data.draw(st.sampled_from([" ", "\t", "  \t"])), data.draw(noise)
        text += f"{path}{gap}{label}{data.draw(st.sampled_from(['', ' ', chr(13)]))}\n{end}"
    source = read(write(folder, text))
    assert paths(source, folder) == [path for path, _ in rows]
    classes, labels = oracle([label for _, label in rows])
    assert source.classes == classes
    assert source.labels.tolist() == labels
    assert source.labels.dtype == np.int64


@given(
    rows,
    st.sampled_from(["filename", "file_name", "file", "path", "image", "img"]),
    st.sampled_from(["label", "class", "target", "category"]),
    st.booleans(),
)
def test_lines_of_json(tmp_path_factory, rows, image_key, label_key, ascii_only):
    folder = tmp_path_factory.getbasetemp()
    items = [{"id": 7, image_key: path, label_key: label} for path, label in rows]
    text = "\n\n".join(json.dumps(item, ensure_ascii=ascii_only) for item in items)
    classes, labels = oracle([label for _, label in rows])
    for name in ("list.jsonl", "list.txt"):
        source = read(write(folder, text, name))
        assert paths(source, folder) == [path for path, _ in rows]
        assert source.classes == classes
        assert source.labels.tolist() == labels
        without = read(write(folder, text, name), labels=False)
        assert paths(without, folder) == paths(source, folder)
        assert (without.classes, without.labels) == (None, None)


@given(st.lists(path_text, min_size=1))
def test_lines_without_labels(tmp_path_factory, images):
    """A last word that ends as an image does is no label, so that such paths may hold spaces."""
    folder = tmp_path_factory.getbasetemp()
    images = [f"{image}.JPG" for image in images]
    plain = read(write(folder, "\n".join(images)))
    objects = [json.dumps({"file": image, "label": None}) for image in images]
    for source in (plain, read(write(folder, "\n".join(objects)))):
        assert paths(source, folder) == images
        assert (source.classes, source.labels) == (None, None)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_list_or_a_named_line(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    for name in ("list.txt", "list.jsonl"):
        file = write(folder, content, name)
        try:
            source = read(file)
        except UserError as error:
            wrong = error
        else:
            for i in range(len(source)):
                with pytest.raises(OSError):
                    source.read(i)
            continue
        assert str(wrong).startswith(f"data.path={file}:")


def test_json_names_files_that_are_no_utf8(tmp_path):
    """As Python writes them in ASCII: with a surrogate for each byte."""
    name = os.fsdecode(b"\xff.png")
    source = read(write(tmp_path, json.dumps({"path": name}), "list.jsonl"))
    assert os.fsencode(source.name(0)).endswith(b"/\xff.png")


# What is said of a wrong one ----------------------------------------------------------------------

MISTAKES = [
    ("a.png 1\nb.png\n", "2: has no label, but the lines before have a number as label"),
    ("a.png\n# x\n\nb.png 1\n", "4: has a number as label, but the lines before have no label"),
    ("a.png 1\nb.png cat\n", "2: has a name as label, but the lines before have a number"),
    ("a.png cat\nb.png 1\n", "2: has a number as label, but the lines before have a name"),
    ("a.png 0\nb.png -1\n", "2: label -1 is not from 0 to"),
    (f"a.png {2**63}\n", f"1: label {2**63} is not from 0 to"),
    ("a.png 0.371\n", "1: label 0.371 is no whole number: the target of a regression"),
    ("a.png 1,3\n", "1: label 1,3 is several numbers: an image has one class"),
    ("a b.png 0 0 1\n", "1: several numbers follow 'b.png': an image has one class"),
    ("a.png " + "9" * 5000, "1: Exceeds the limit"),
    (b"a.png 1\n\xff.png 1\n", "2: is not UTF-8"),
    ("a.png 1\na\0.png 1\n", "2: the path contains a zero byte"),
    ("a.png 1\n".encode("utf-16"), "1: is not UTF-8"),
    ('{"file": "a.png"}\nb.png\n', "2: is not JSON: Expecting value at column 1"),
    ('{"file": "a.png"}\n[1]\n', "2: is not a JSON object"),
    ('{"name": "a.png"}\n', "1: names no image: needs one of filename, file_name"),
    ('{"image": {"bytes": ""}}\n', "1: names no image"),
    ('{"file": ""}\n', "1: names no image"),
    ('{"file": "a.png", "label": 1.5}\n', "1: label 1.5 is no whole number"),
    ('{"file": "a.png", "label": [1]}\n', r"1: label [1] is neither a whole number nor a name"),
    ('{"file": "a.png", "label": -3}\n', "1: label -3 is not from 0 to"),
    ('{"file": "\\ud800.png"}\n', "1: 'utf-8' codec can't encode character"),
    ('{"file": ' + "[" * 100_000, "1: is JSON nested too deeply"),
    ("# nothing\n\n", " lists no images"),
    ("", " lists no images"),
]


@pytest.mark.parametrize(("content", "message"), MISTAKES, ids=[m[-40:] for _, m in MISTAKES])
def test_mistakes_are_named_with_their_line(tmp_path, content, message):
    file = write(tmp_path, content)
    with pytest.raises(UserError) as error:
        read(file)
    assert str(error.value).startswith(f"data.path={file}:{message}")
    assert "\n" not in str(error.value)


def test_a_file_named_jsonl_is_json(tmp_path):
    with pytest.raises(UserError, match=r"list\.jsonl:1: is not JSON"):
        read(write(tmp_path, "a.png 1\n", "list.jsonl"))


def test_labels_that_are_not_wanted_are_not_checked(tmp_path):
    lines = 'a.png 1\nb.png\nc.png cat\n"d.png" -1\n'
    assert paths(read(write(tmp_path, lines), labels=False), tmp_path) == [
        *("a.png", "b.png", "c.png", '"d.png"')
    ]
    lines = '{"file": "a.png", "label": 1}\n{"file": "b.png", "label": 0.5}\n'
    assert len(read(write(tmp_path, lines), labels=False)) == 2


def test_a_list_or_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"list\.txt: No such file"):
        read(tmp_path / "list.txt")
    with pytest.raises(UserError, match=r"data\.image_dir=.*nowhere: no such folder"):
        ListFile(write(tmp_path, "a.png 1\n"), tmp_path / "nowhere")


# As a source --------------------------------------------------------------------------------------


def picture(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def test_paths_start_at_the_list_or_where_they_are_said_to(tmp_path):
    near = picture(tmp_path / "lists" / "a b.png", 0)
    far = picture(tmp_path / "images" / "a b.png", 1)
    absolute = picture(tmp_path / "elsewhere" / "c.png", 2)
    file = write(near.parent, f"a b.png x\n{absolute} y\nmissing.png y\n")
    for key, first in ((None, near), (str(far.parent), far)):
        config = DataConfig(path=str(file), image_dir=key, test_fraction=0.01)
        parts = [open_source(config, split) for split in ("train", "test")]
        assert all(isinstance(part, Subset) and part.classes == ["x", "y"] for part in parts)
        by_name = {part.name(i): (part, i) for part in parts for i in range(len(part))}
        missing = str(first.parent / "missing.png")
        assert set(by_name) == {str(first), str(absolute), missing}
        assert np.array_equal(decode(*by_name[str(first)]), np.asarray(Image.open(first)))
        with pytest.raises(BadImage, match=r"missing\.png: No such file"):
            decode(*by_name[missing])


def test_a_test_list_beside_the_training_list(tmp_path):
    train, test = write(tmp_path, "a.png 0\nb.png 1\n"), write(tmp_path, "c.png 1\n", "test.txt")
    config = DataConfig(path=str(train), test_path=str(test))
    assert len(open_source(config, "train")) == 2
    test = open_source(config, "test")
    assert [test.classes[n] for n in test.labels] == ["1"], "a class by its name, not its place"


def test_little_memory_is_kept(tmp_path):
    lines = "".join(f"class-{i % 8}/image-{i:08d}.jpg {i % 8}\n" for i in range(20_000))
    file = write(tmp_path, lines)
    tracemalloc.start()
    source = read(file)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 26 bytes of a path, 4 of its offset, 8 of its label and what their growth left over
    assert len(source) == 20_000
    assert kept < 45 * 20_000
