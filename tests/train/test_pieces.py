"""One kind of checkpoint for one process, several, and split weights; a file for each process."""

import contextlib
import fcntl
import io
import itertools
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from selfsight import agreement
from selfsight.errors import UserError, with_remedy
from selfsight.files import Damaged
from selfsight.pretraining.job import assemble
from selfsight.train import checkpoint, pieces
from selfsight.train.checkpoint import Checkpoints, load_from
from selfsight.train.engine import fit
from tests.conftest import TINY, heads
from tests.processes import in_ranks
from tests.train.test_train import config_of

CPU = torch.device("cpu")
# processes, and keys; the last writes a folder
ENGINES = {
    "one": (1, []),
    "ddp": (2, []),
    "split over 2": (2, ["shard=true"]),
    "split over 3": (3, ["shard=true", "checkpoint.sharded=true"]),
}
STEPS = 2


def doubled(method: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
    (batch,) = inputs
    batch.views[:] = [view.double() for view in batch.views]


def train(folder: Path, engine: str) -> None:
    """A run in float64 with a teacher, centres, and clipped gradients."""
    keys = [*TINY, "batch_size=12", f"max_steps={STEPS}", "clip_gradient=0.5", *ENGINES[engine][1]]
    keys += ["checkpoint.every_epochs=0", "checkpoint.every_steps=1", "evaluate.probe=false"]
    config = config_of(folder, *keys, *heads("ibot"), method="ibot")
    job = assemble(config, CPU)
    job.method.double().register_forward_pre_hook(doubled)
    fit(**job.arguments(), quiet=True)


def begin(rank: int, world: int, folder: str) -> None:
    """Each engine of this number of processes trains from the start."""
    joined(rank, world, folder, "begin")
    for engine, (count, _) in ENGINES.items():
        if count == world:
            train(Path(folder) / engine, engine)


def go_on(rank: int, world: int, folder: str) -> None:
    """Each engine of this number of processes continues what each engine has begun."""
    joined(rank, world, folder, "go on")
    for engine, (count, _) in ENGINES.items():
        for other in ENGINES if count == world else ():
            train(Path(folder) / f"{other}, then {engine}", engine)


def joined(rank: int, world: int, folder: str, what: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        where = f"file://{folder}/meet {what} {world}"
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=world)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    for work in (begin, go_on):
        work(0, 1, str(folder))
        for count in (2, 3):
            in_ranks(work, str(folder), world=count)
        for engine in ENGINES if work is begin else ():
            (half, file), _ = Checkpoints(folder / engine / "checkpoints").files()
            assert half == STEPS // 2
            for after in ENGINES:
                target = folder / f"{engine}, then {after}" / "checkpoints" / file.name
                copy = shutil.copytree if file.is_dir() else shutil.copy
                target.parent.mkdir(parents=True)
                copy(file, target)
    return folder


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {k: v for key, item in value.items() for k, v in leaves(item, f"{path}/{key}").items()}


@pytest.mark.parametrize("after", ENGINES)
@pytest.mark.parametrize("before", ENGINES)
def test_every_engine_continues_every_other(before, after, runs):
    """After the same steps the state is that of one process: network, teacher, centres and
    momenta."""
    step, state = load_from(str(runs / f"{before}, then {after}"), CPU)
    wanted_step, wanted = load_from(str(runs / "one"), CPU)
    assert (step, wanted_step) == (STEPS, STEPS)
    found, wanted = leaves(state), leaves(wanted)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert found[key].dtype == value.dtype
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=2e-8, msg=key)
        elif key != "/seconds":
            assert found[key] == value, key


# A file for each process --------------------------------------------------------------------------


def state_of(step: int) -> dict[str, Any]:
    """As a run's: tensors that are split over the processes, also unevenly, and others."""
    values = {"w": torch.arange(15.0).view(5, 3) + step, "one": torch.full((1, 4), float(step))}
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    split = {k: distribute_tensor(v, mesh, [Shard(0)]) for k, v in values.items()}
    optimizer = {"state": {0: {"exp_avg": split["w"], "step": torch.tensor(1.0)}}}
    return {"method": {**split, "b": torch.ones(2)}, "optimizer": optimizer, "step": step}


def whole_of(step: int) -> dict[str, Any]:
    w = torch.arange(15.0).view(5, 3) + step
    method = {"w": w, "one": torch.full((1, 4), float(step)), "b": torch.ones(2)}
    optimizer = {"state": {0: {"exp_avg": w, "step": torch.tensor(1.0)}}}
    return {"method": method, "optimizer": optimizer, "step": step}


def is_of(state: dict[str, Any], step: int) -> bool:
    found, wanted = leaves(state), leaves(whole_of(step))
    return found.keys() == wanted.keys() and all(
        torch.equal(torch.as_tensor(found[key]), torch.as_tensor(wanted[key])) for key in wanted
    )


@contextlib.contextmanager
def photographed(folder: Path, photos: Path, rank: int) -> Iterator[None]:
    """Copy the folder before every call that changes it and in the middle of every file, as a disk
    is after `kill -9` at this moment. The ranks take turns."""
    taken, lock = itertools.count(), (photos.parent / "turn").open("w")

    def photograph() -> None:
        shutil.copytree(folder, photos / f"{rank}-{next(taken)}")

    def first(work: Callable[..., Any]) -> Callable[..., Any]:
        def taking_turns(*arguments: Any, **more: Any) -> Any:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                photograph()
                return work(*arguments, **more)
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)

        return taking_turns

    def save(content: Any, file: Any) -> None:
        data = io.BytesIO()
        real_save(content, data)
        half = len(data.getvalue()) // 2
        file.write(data.getvalue()[:half])
        photograph()
        file.write(data.getvalue()[half:])

    real_save = torch.save
    with pytest.MonkeyPatch.context() as patch:
        for where, name in ((os, "replace"), (os, "fsync"), (Path, "mkdir"), (Path, "replace")):
            patch.setattr(where, name, first(getattr(where, name)))
        patch.setattr(checkpoint.shutil, "rmtree", first(shutil.rmtree))
        patch.setattr(torch, "save", first(save))
        yield


def save_in_two(rank: int, world: int, folder: str) -> None:
    """A first checkpoint, and a second one with photographs; once more if it were made in sight."""
    joined(rank, world, folder, "pieces")
    for what in ("hidden", "in sight"):
        home = Path(folder) / what
        (home / "photos").mkdir(parents=True, exist_ok=True)
        checkpoints = Checkpoints(home / "checkpoints", 1)
        checkpoints.save_pieces(1, state_of(1))
        if what == "in sight":

            def in_sight(self: Checkpoints, step: int) -> Path:
                path = self.folder / f"step-{step:08d}.{'0' * 16}.pt"
                path.mkdir()
                return path

            Checkpoints._new_folder = in_sight
        dist.barrier()
        with photographed(checkpoints.folder, home / "photos", rank):
            checkpoints.save_pieces(2, state_of(2))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    in_ranks(save_in_two, str(folder))
    return folder


def test_a_kill_at_every_write_leaves_one_whole_checkpoint(saved, tmp_path):
    """And the next save removes what is left. Control: a folder that is filled in sight."""
    steps: dict[str, list[int]] = {"hidden": [], "in sight": []}
    said: dict[str, list[str]] = {"hidden": [], "in sight": []}
    for what in steps:
        for taken in (saved / what / "photos").iterdir():
            photo = shutil.copytree(taken, tmp_path / what / taken.name)
            checkpoints = Checkpoints(photo, 1, said[what].append)
            step, state = checkpoints.load(CPU)
            assert is_of(state, step)
            steps[what].append(step)
            checkpoints.save(3, {"x": 3})
            assert not list(photo.glob(".*"))
    assert {*steps["hidden"]} == {1, 2}
    assert len(steps["hidden"]) > 15
    assert not said["hidden"]
    assert any("damaged" in line for line in said["in sight"])


def broken(folder: Path) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """What may happen to a file: name, and a function that does it."""
    for name in os.listdir(folder):
        data = (folder / name).read_bytes()
        for at in (0, 1, len(data) // 3, len(data) // 2, len(data) - 1):
            flipped = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
            yield name, lambda path, flipped=flipped: path.write_bytes(flipped)
        yield name, lambda path, data=data: path.write_bytes(data[:-7])
        yield name, lambda path: path.unlink()
        yield name, lambda path: path.rename(path.with_name(f"{path.name}.old"))


def test_a_flipped_byte_in_any_file_gives_way_to_the_checkpoint_before(saved, tmp_path):
    (_, newest), *_ = Checkpoints(saved / "hidden" / "checkpoints").files()
    assert len(os.listdir(newest)) == 2
    for number, (name, damage) in enumerate(broken(newest)):
        home, said = tmp_path / str(number), []
        checkpoints = Checkpoints(home, 2, said.append)
        checkpoints.save(1, whole_of(1))
        target = shutil.copytree(newest, home / newest.name)
        damage(target / name)
        with pytest.raises(UserError, match="this file is damaged"):
            load_from(str(target), CPU)
        step, state = checkpoints.load(CPU)
        assert step == 1
        assert is_of(state, 1)
        (line,) = said
        assert line.startswith("Checkpoint of step 2 is damaged: ")
        assert (home / f"{newest.name}.damaged").is_dir()


def test_a_file_of_another_checkpoint_is_noticed(saved, tmp_path):
    """It is whole, and its own checksum is right."""
    one, two = (tmp_path / f"{step}" for step in (1, 2))
    first = next((saved / "hidden" / "photos" / "0-0").glob("step-00000001.*"))
    (_, newest), *_ = Checkpoints(saved / "hidden" / "checkpoints").files()
    shutil.copytree(first, one / first.name)
    target = shutil.copytree(newest, two / newest.name)
    (old,) = (one / first.name).glob("process-1-*")
    (own,) = target.glob("process-1-*")
    own.unlink()
    shutil.copy(old, target)
    with pytest.raises(UserError, match="files in it are missing or have other names"):
        load_from(str(target), CPU)


def test_one_process_writes_and_reads_a_folder(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save_pieces(1, whole_of(1))
    checkpoints.save_pieces(2, whole_of(2))
    (_, path), *others = checkpoints.files()
    assert path.is_dir()
    assert not others
    assert is_of(load_from(str(path), CPU)[1], 2)


def test_a_folder_that_is_not_shared_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"checkpoint\.sharded=true: .* is not the folder of"):
        pieces.write_piece(whole_of(1), tmp_path / "checkpoints" / ".step-1.tmp")


def test_a_full_disk_leaves_no_folder(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save_pieces(1, whole_of(1))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pieces, "write_state", full)
    with pytest.raises(OSError, match="No space left") as caught:
        checkpoints.save_pieces(2, whole_of(2))
    assert caught.value.filename == str(tmp_path)
    assert [path for _, path in checkpoints.files()] == [*tmp_path.iterdir()]


def test_a_full_disk_is_named_where_all_ranks_hear_of_it(tmp_path, monkeypatch):
    """A rank hears of the mistake of another one as a line, to which nothing is added any more."""

    def in_words(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except OSError as error:
            raise UserError(with_remedy(error)) from None

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(agreement, "by_all", in_words)
    monkeypatch.setattr(pieces, "write_state", full)
    said = rf"'{tmp_path}': No space left on device \(76 bytes are needed, [\d,]+ bytes are free\)"
    with pytest.raises(UserError, match=said):
        Checkpoints(tmp_path).save_pieces(2, {"w": torch.ones(15), "b": [torch.ones(2).double()]})


def test_a_write_that_the_system_cuts_short_is_no_checkpoint(tmp_path):
    """Room for all but the last bytes; the system then writes a part, without an error."""
    path, state = tmp_path / "state.pt", {"w": torch.arange(1000.0)}
    pieces.write_state(state, path)
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for missing in (0, 1, 21, 22, 100, 4000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - missing, before[1]))
            with pytest.raises(OSError) if missing else contextlib.nullcontext():
                pieces.write_state(state, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_tensor_of_more_bytes_than_the_system_writes_at_once(tmp_path, monkeypatch):
    """Linux writes at most 2 GiB at a time, and says how many; here 1,000."""

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            return super().write(memoryview(data)[:1000])

    def open_it(path: Path, mode: str, buffering: int = -1) -> Any:
        raw = Raw(path, mode.replace("b", ""))
        return raw if buffering == 0 else io.BufferedWriter(raw)

    state = {"w": torch.arange(100_000.0)}
    monkeypatch.setattr(Path, "open", open_it)
    pieces.write_state(state, tmp_path / "state.pt")
    assert torch.equal(torch.load(tmp_path / "state.pt")["w"], state["w"])


def test_a_folder_that_another_process_removes_is_no_checkpoint(tmp_path):
    with pytest.raises(Damaged, match="removed"):
        pieces.read_pieces(tmp_path / "gone", "0" * 16, torch.device("cpu"))
