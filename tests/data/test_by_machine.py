"""One process of a machine opens the images, the others map them: in real gloo processes."""

import os
import tarfile
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from selfsight.data.by_machine import by_machine
from selfsight.data.config import DataConfig
from selfsight.data.identity import fingerprint
from selfsight.data.pack.write import PackConfig, pack
from selfsight.data.sources.dataset import Dataset
from selfsight.data.sources.open import open_source
from selfsight.errors import UserError
from tests.data.test_identity import pngs
from tests.processes import in_ranks


class Own:
    """A data set of a user's."""

    targets = (0, 1, 0, 1)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return np.full((8, 8, 3), i, np.uint8), i % 2


def opened(rank: int, work) -> dict:
    """What this process gets, and whether it opened it by itself."""
    calls = []

    def counted():
        calls.append(rank)
        return work()

    try:
        source = by_machine(counted, fingerprint)
    except UserError as error:
        return {"error": str(error), "calls": len(calls)}
    reads = [np.asarray(source.read(i)) if i else source.read(i) for i in range(len(source))]
    return {
        "calls": len(calls),
        "reads": [bytes(r) if isinstance(r, bytes) else r.tobytes() for r in reads],
        "names": [source.name(i) for i in range(len(source))],
        "labels": source.labels.tolist(),
        "classes": source.classes,
        "told": fingerprint(source),
        "shared": not source.labels.flags.owndata and not source.labels.flags.writeable,
    }


def worker(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    tempfile.tempdir = f"{folder}/temporary"
    os.chdir(folder)
    found = {}
    for kind in ("images", "list.txt", "pack", "shards", "parquet"):
        keys = DataConfig(path=kind, test_path="images/test", image_dir=folder)
        found[kind] = opened(rank, lambda keys=keys: open_source(keys, "train"))
    keys = DataConfig(path="list.txt", test_path="images/test", image_dir=folder)
    work = lambda: open_source(keys, "train")  # noqa: E731

    def failing():
        raise UserError("data.path=x: no such folder")

    found["failing"] = opened(rank, failing)
    found["user's"] = opened(rank, lambda: Dataset(Own(), True, "data.source=own"))
    tempfile.tempdir = f"{folder}/nowhere"
    found["no room"] = opened(rank, work)
    tempfile.tempdir = f"{folder}/temporary"
    os.environ |= {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    found["two machines"] = opened(rank, work)
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.chdir(f"{folder}/elsewhere" if rank else folder)
    found["another folder"] = opened(rank, work)
    torch.save(found, f"{folder}/found{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("machine")
    names = [f"{s}/{c}/{c}{i}" for s in ("train", "test") for c in "ab" for i in range(3)]
    pngs(folder / "images", names)
    files = sorted((folder / "images/train").rglob("*.png"))
    for place in (folder, folder / "elsewhere"):  # the second lists them in another order
        place.mkdir(exist_ok=True)
        lines = [f"{f.relative_to(folder)} {f.parent.name}" for f in files]
        (place / "list.txt").write_text("\n".join(lines[:: 1 if place == folder else -1]))
    (folder / "elsewhere/images").symlink_to(folder / "images")
    pack(
        DataConfig(path=str(folder / "images/train"), test_path=str(folder / "images/test")),
        PackConfig(),
        folder / "pack",
        lambda *_: None,
    )
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards/0.tar", "w") as tar:
        for file in files:
            file.with_suffix(".cls").write_text(file.parent.name)
            tar.add(file, file.name)
            tar.add(file.with_suffix(".cls"), f"{file.stem}.cls")
    rows = pa.array([{"bytes": f.read_bytes(), "path": None} for f in files])
    labels = pa.array([f.parent.name for f in files])
    (folder / "parquet").mkdir()
    pq.write_table(pa.table({"image": rows, "label": labels}), folder / "parquet/0.parquet")
    (folder / "temporary").mkdir()
    in_ranks(worker, str(folder))
    assert os.listdir(folder / "temporary") == []  # no file is left
    return [torch.load(folder / f"found{r}.pt", weights_only=False) for r in (0, 1)]


@pytest.mark.parametrize("kind", ["images", "list.txt", "pack", "shards", "parquet"])
def test_the_second_process_maps_what_the_first_has_opened(kind, found):
    first, second = (results[kind] for results in found)
    assert (first.pop("calls"), second.pop("calls")) == (1, 0)
    assert first == second
    assert second["shared"]
    assert len(first["reads"]) == len(set(first["reads"])) == 6
    assert first["labels"] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("case", ["user's", "no room", "two machines"])
def test_a_process_that_cannot_share_opens_the_images_itself(case, found):
    first, second = (results[case] for results in found)
    assert first == second
    assert first["calls"] == 1
    assert not first["shared"]


def test_a_process_in_another_folder_reads_its_own_list(found):
    """Relative paths mean other files there: mapped, the difference would not be seen."""
    first, second = (results["another folder"] for results in found)
    assert first["calls"] == second["calls"] == 1
    assert first["error"] == second["error"]
    assert "process 1 of 2 differs from process 0: data's names=" in first["error"]


def test_a_mistake_of_the_first_ends_all(found):
    first, second = (results["failing"] for results in found)
    assert (first.pop("calls"), second.pop("calls")) == (1, 0)
    assert first == second == {"error": "data.path=x: no such folder"}
