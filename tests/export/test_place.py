"""The folder of an export: what it may replace, and that it is whole or not there."""

import errno
import json
import os
from pathlib import Path

import pytest

from selfsight.errors import UserError
from selfsight.export import export as exporting
from selfsight.export.export import export
from selfsight.export.place import check_place, complete, write_record
from tests.export.made import TINY, encoder


def made(folder, layout="timm", sha="a" * 64):
    with complete(folder) as place:
        (place / "model").write_text("weights")
        write_record(place, {"layout": layout, "weights_sha256": sha})
    return folder


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_an_export_of_the_same_may_be_replaced(tmp_path):
    out = made(tmp_path / "out")
    check_place(out, "timm", "a" * 64)
    check_place(tmp_path / "new", "timm", "a" * 64)
    (tmp_path / "empty").mkdir()
    check_place(tmp_path / "empty", "timm", "a" * 64)
    made(out, sha="b" * 64)
    assert json.loads((out / "export.json").read_text())["weights_sha256"] == "b" * 64
    assert {path.name for path in tmp_path.iterdir()} == {"out", "empty"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda out: (out / "notes.txt").write_text("x"), "notes.txt was added or changed"),
        (lambda out: (out / "model").write_text("x"), "model was added or changed"),
        (lambda out: (out / "folder").mkdir(), "folder was added or changed"),
        (lambda out: (out / "export.json").write_text("{"), "holds other files than an export"),
        (lambda out: (out / "export.json").unlink(), "holds other files than an export"),
        (lambda out: made(out, sha="b" * 64), "holds the export of another encoder"),
        (lambda out: made(out, layout="onnx"), "holds an export to onnx"),
    ],
)
def test_anything_else_is_refused(tmp_path, change, reason):
    out = made(tmp_path / "out")
    change(out)
    with pytest.raises(UserError, match=reason):
        check_place(out, "timm", "a" * 64)


def test_a_folder_that_cannot_be_exchanged_is_refused(tmp_path, monkeypatch):
    """The shell would stay in the removed one."""
    monkeypatch.chdir(tmp_path)
    for name in (".", tmp_path):
        with pytest.raises(UserError, match="is the folder of this process, which cannot be"):
            check_place(Path(name), "timm", "a" * 64)
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path.resolve() / "disk")
    with pytest.raises(UserError, match="'disk': is a mounted folder, which cannot be replaced"):
        check_place(Path("disk"), "timm", "a" * 64)


def test_what_fails_leaves_the_old_export(tmp_path):
    out = made(tmp_path / "out")
    before = content(out)

    def stopped():
        with complete(out) as place:
            (place / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert content(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_same_command_again(tmp_path):
    """The bytes are equal; the other target of the layout writes the same folder."""
    run = encoder(tmp_path / "run", TINY)
    export(run, "timm", tmp_path / "out")
    first = content_bytes(tmp_path / "out")
    export(run, "timm", tmp_path / "out")
    assert content_bytes(tmp_path / "out") == first
    found = export(run, "transformers", tmp_path / "out")
    assert list(found.differences) == ["transformers", "timm"]
    with pytest.raises(UserError, match="holds an export to timm"):
        export(run, "torch", tmp_path / "out")
    other = encoder(tmp_path / "other", TINY, seed=1)
    with pytest.raises(UserError, match="holds the export of another encoder"):
        export(other, "timm", tmp_path / "out")


def content_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_without_transformers_timm_alone_is_asked(tmp_path, monkeypatch):
    run = encoder(tmp_path / "run", TINY)
    monkeypatch.setattr(exporting, "_installed", lambda module: module != "transformers")
    found = export(run, "timm", tmp_path / "out")
    assert list(found.differences) == ["timm"]
    assert "transformers" not in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(UserError, match="needs transformers: pip install"):
        export(run, "transformers", tmp_path / "other")


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, command):
    run = encoder(tmp_path / "run", TINY)
    real = type(tmp_path).write_bytes

    def full(path, data):
        if len(data) > 10_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, data)

    monkeypatch.setattr(type(tmp_path), "write_bytes", full)
    done = command("export", str(run), "--to", "timm", "-o", "out", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "No space left on device" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
