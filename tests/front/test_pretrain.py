"""Pretraining from Python: keywords, objects of the program, hooks, the run that comes back."""

import contextlib
import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

import selfsight
from selfsight import UserError
from selfsight.data.sources.arrays import Digits
from selfsight.embeddings.table import read_table
from selfsight.encoders.artifact import read_network
from selfsight.losses import nt_xent
from selfsight.pretraining.config import compose
from tests.conftest import TINY

QUICK = {"max_steps": 4, "quiet": True, "log_every": 1, "device": "cpu", "batch_size": 50}


class Mine(selfsight.Method):
    """SimCLR with one layer."""

    class Config(selfsight.MethodConfig):
        temperature: float = 0.2

    def __init__(self, backbone, config=None):
        super().__init__(backbone, config)
        self.projector = nn.Linear(backbone.num_features, 16)

    def forward(self, batch):
        x1, x2 = batch.views
        h1, h2 = self.backbone(x1), self.backbone(x2)
        z1, z2 = self.projector(h1), self.projector(h2)
        return selfsight.Output(nt_xent(z1, z2, self.config.temperature), h1, (z1, z2))


def net(width: int = 8) -> nn.Module:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.BatchNorm2d(width), nn.ReLU(), *pool)


class Pixels(Dataset):
    """Digits, as images of a kind."""

    def __init__(self, make=lambda pixels: pixels, count: int = 200) -> None:
        self.source, self.make, self.count = Digits("train"), make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i):
        return self.make(self.source.read(i)), int(self.source.labels[i])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_keywords_are_the_keys_of_the_command_line():
    keys = ["max_steps=1", "epochs=3", "method=byol", "optimizer.lr=0.01", "views=digits"]
    run = selfsight.pretrain(
        "digits/simclr",
        run="runs/a",
        method="byol",
        epochs=3,
        max_steps=1,
        quiet=True,
        views="digits",
        **{"optimizer.lr": 0.01},
    )
    assert run.config().identity() == compose("digits/simclr", keys, "runs/a").config.identity()
    nested = selfsight.pretrain(
        "digits/simclr",
        run="runs/b",
        method={"name": "byol"},
        epochs=np.int64(3),
        max_steps=1,
        quiet=True,
        views="digits",
        optimizer={"lr": 0.01},
    )
    assert {**nested.config().tree(), "run": 0} == {**run.config().tree(), "run": 0}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"epochz": 3}, "Unknown key 'epochz'. Did you mean 'epochs'"),
        ({"epochs": 0}, "epochs=0: input should be greater than or equal to 1"),
        ({"epochs": object()}, "epochs=<object .*: a object is no value of a key"),
        ({"method": "simcrl"}, "method.name=simcrl: no such method"),
        ({"method": 3}, "method=3: give a name, or a class that derives from Method"),
        ({"method": nn.Linear}, "Linear .* is not a class that derives from selfsight.methods"),
        ({"backbone": 3}, "backbone=3: give a name, a torch.nn.Module, or a function"),
        ({"backbone": lambda: 3}, "is a int; it must be a torch.nn.Module"),
        ({"backbone": nn.Conv2d(3, 8, 3)}, "gives .* and not one vector"),
        ({"data": "nowhere"}, "data.path=nowhere: no such file or folder"),
        ({"optimizer": {"name": "timm:krom"}}, "timm has no such optimizer. Did you mean"),
        ({"optimizer": {"options": {"x": 1}}}, "only for timm's optimizers"),
    ],
)
def test_a_mistake_is_one_line(keys, message):
    with pytest.raises(UserError, match=message) as error:
        selfsight.pretrain("digits/simclr", run="runs/a", quiet=True, **keys)
    assert len(str(error.value).splitlines()) == 1


def test_a_method_a_module_and_a_data_set_of_ones_own():
    module = net()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    run = selfsight.pretrain(
        "digits/simclr",
        run="runs/a",
        method=Mine,
        backbone=module,
        data=Pixels(),
        **QUICK,
        **{"method.temperature": 0.3},
    )
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    config = run.config()
    assert config.method.name.endswith("test_pretrain:Mine")
    assert config.method.temperature == 0.3
    assert config.backbone.name == "torch.nn.modules.container:Sequential"
    assert len(config.code) == 4  # the class of each, and the tensors of the module
    encoder = run.encoder()
    assert encoder.num_features == 8
    assert encoder.embed(np.zeros((8, 8), np.uint8)).shape == (1, 8)
    records = {r.evaluated: r for r in selfsight.knn(run)}
    assert records.keys() == {"encoder", "untrained", "pixels"}
    assert run.results()[0]["metrics"] == records["encoder"].metrics
    first = read_network(run.path / "initial.safetensors").tensors
    assert all(torch.equal(first[key], value) for key, value in before.items())
    # from a path alone the module has to be given again
    with pytest.raises(UserError, match="is code of your own, which runs only if you name it"):
        selfsight.load_encoder(run.path)
    again = selfsight.knn(str(run), backbone=module, data=Pixels(), folder="results")
    assert again[0].metrics == records["encoder"].metrics


def test_a_run_of_ones_own_parts_is_shown_and_taken_away(here):
    run = selfsight.pretrain(
        "digits/simclr", run="runs/a", method=Mine, backbone=net(), data=Pixels(), **QUICK
    )
    page = run.report()
    assert page.samefile(here / "runs/a/report.html")
    assert "Map of the features" in page.read_text()
    written = run.embed("features.npz", split="test", neighbours=2)
    table = read_table(written.output)
    assert table.features.shape == (written.rows, 8)
    assert table.description["weights_sha256"] == (
        read_network(run / "encoder.safetensors").weights_sha256()
    )
    done = run.export("torch", "exported", license="mit")
    assert done.differences["torch"].network < 1e-4
    with pytest.raises(UserError, match=r"code of your own|own code"):
        run.export("timm", "other")


def test_another_module_is_another_run():
    selfsight.pretrain("digits/simclr", run="runs/a", backbone=net(8), **QUICK)
    with pytest.raises(UserError, match=r"holds another configuration(.|\n)*Sequential tensors"):
        selfsight.pretrain("digits/simclr", run="runs/a", backbone=net(16), **QUICK)


def assert_equal(one: selfsight.Run, other: selfsight.Run) -> None:
    """Their encoders, bit for bit."""
    a, b = (read_network(run.path / "encoder.safetensors").tensors for run in (one, other))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in b)


class Interrupted(Exception):
    pass


def stopped(at: int, **keys) -> None:
    """A run that ends with an error after a step."""

    def stop(state):
        if state.step == at:
            raise Interrupted

    hooks = [selfsight.every(stop, steps=1)]
    with pytest.raises(UserError, match="Interrupted"):
        selfsight.pretrain("digits/simclr", run="runs/stopped", hooks=hooks, **keys)


@pytest.mark.parametrize("at", [1, 3])
def test_stopped_and_repeated_it_is_the_same_run(at):
    """Even before the first checkpoint, and though each call makes a module with other weights."""
    keys = {**QUICK, "checkpoint": {"every_steps": 2, "every_epochs": 0}}
    first = net()
    stopped(at, backbone=first, **keys)
    again = selfsight.pretrain("digits/simclr", run="runs/stopped", backbone=net(), **keys)
    whole = selfsight.pretrain("digits/simclr", run="runs/whole", backbone=first, **keys)
    assert_equal(again, whole)


# Data sets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda pixels: pixels,
        lambda pixels: pixels[..., 0],
        lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1),
        lambda pixels: torch.from_numpy(pixels[..., :1]).permute(2, 0, 1),
        Image.fromarray,
        lambda pixels: Image.fromarray(pixels[..., 0]),
    ],
    ids=["rgb", "gray", "tensor", "gray tensor", "PIL", "gray PIL"],
)
def test_images_of_every_kind_are_the_same_images(make):
    """As from the package's own source of the same digits."""
    keys = {**QUICK, "data.labels": False}
    ours = selfsight.pretrain("digits/simclr", run="runs/a", **keys)
    theirs = selfsight.pretrain("digits/simclr", run="runs/b", data=Pixels(make, 1437), **keys)
    assert_equal(ours, theirs)


class Bad(Pixels):
    def __init__(self, item) -> None:
        super().__init__()
        self.item = item

    def __getitem__(self, i):
        return self.item(i)


class Stream:
    def __iter__(self):
        yield 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Bad(lambda i: f"photo-{i}.jpg"), r"item 0 is a str \('photo-0.jpg'\); return a PIL image"),
        (Bad(lambda i: torch.rand(3, 8, 8)), r"item 0 is a Tensor of torch.float32 \(3, 8, 8\)"),
        (Bad(lambda i: np.zeros((8, 8, 4), np.uint8)), r"ndarray of uint8 \(8, 8, 4\)"),
        (
            Bad(lambda i: np.random.randint(0, 255, (8, 8, 3), np.uint8)),
            "two reads of image 0 differ, so that a run could not continue exactly",
        ),
        (Bad(lambda i: {"image": 3}), "item 0 is a dict; return a PIL image"),
        (Bad(lambda i: 1 / 0), r"in <lambda>: ZeroDivisionError: division by zero"),
        (lambda: Stream(), "images are read by their index"),
        (lambda: None, "images are read by their index"),
        (Pixels(count=0), "holds no images"),
    ],
)
def test_a_data_set_that_cannot_be_used_is_named(data, message):
    with pytest.raises(UserError, match=message):
        selfsight.pretrain("digits/simclr", run="runs/a", data=data, **QUICK)


def test_labels_come_from_targets_if_the_items_agree():
    from selfsight.data.sources.dataset import Dataset as Source

    class Named(Pixels):
        classes = tuple(f"digit {n}" for n in range(10))
        reads = 0

        def __getitem__(self, i):
            self.reads += 1
            return super().__getitem__(i)

    data = Named()
    data.targets = [int(label) for label in data.source.labels[:200]]
    source = Source(data, True, "it")
    assert data.reads < 30
    assert source.notes == []
    assert source.classes[3] == "digit 3"
    assert [source.classes[n] for n in source.labels[:5]] == [
        f"digit {n}" for n in data.source.labels[:5]
    ]
    data.targets[0] += 1  # not what the items say
    assert Source(data, True, "it").notes[0].startswith("it: all 200 items were read for their")
    assert Source(data, False, "it").labels is None


def test_threads_read_one_at_a_time_unless_it_is_said_to_be_safe():
    from concurrent.futures import ThreadPoolExecutor
    from time import sleep

    from selfsight.data.sources.dataset import Dataset as Source

    class Slow(Pixels):
        inside = most = 0

        def __getitem__(self, i):
            Slow.inside += 1
            Slow.most = max(Slow.most, Slow.inside)
            sleep(0.002)
            Slow.inside -= 1
            return super().__getitem__(i)

    for safe, several in ((False, False), (True, True)):
        Slow.thread_safe, Slow.most = safe, 0
        source = Source(Slow(), False, "it")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(source.read, range(40)))
        assert (Slow.most > 1) == several


def test_both_splits_of_a_data_set():
    class Divided(Pixels):
        def __init__(self, split, path=None):
            super().__init__()
            self.source, self.count = Digits(split), 100

    run = selfsight.pretrain("digits/simclr", run="runs/a", data=Divided, **QUICK)
    ours = selfsight.knn(run, pixels=False)
    assert ours[0].data["train"] == ours[0].data["test"] == 100
    pair = {"train": Divided("train"), "test": Divided("test")}
    assert selfsight.knn(run, data=pair, pixels=False)[0].metrics == ours[0].metrics


# Hooks --------------------------------------------------------------------------------------------


def test_a_hook_is_called_and_what_it_returns_is_logged():
    seen = []

    def measure(state):
        seen.append((state.step, state.epoch, state.progress, state.method.training))
        return {"norm": next(state.backbone.parameters()).norm(), "odd": None} | {"odd": state.step}

    hooks = [selfsight.every(measure, steps=2), selfsight.every(lambda state: None, epochs=1)]
    keys = {**QUICK, "max_steps": 5, "log_every": 10, "log": {"csv": True}}
    run = selfsight.pretrain("digits/simclr", run="runs/a", hooks=hooks, **keys)
    assert [step for step, *_ in seen] == [2, 4, 5]
    assert seen[0][1:] == (2 / 28, 2 / 5, False)
    found = {r["step"]: r.get("odd") for r in run.metrics()}
    assert found == {1: None, 2: 2.0, 4: 4.0, 5: 5.0}
    assert all(r["norm"] > 0 for r in run.metrics() if "norm" in r)
    without = selfsight.pretrain("digits/simclr", run="runs/b", **keys)
    assert_equal(run, without)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda state: 3, "returned a int; return a dict or None"),
        (lambda state: {"loss": 3}, "returned 'loss', which the loop writes; rename it"),
        (lambda state: {"feature_std": 3}, "returned 'feature_std', which the loop writes"),
        (lambda state: {"knn": 3}, "returned 'knn', as another hook did; rename it"),
        (lambda state: {"x": "high"}, "x='high' is not a number"),
        (lambda state: 1 / 0, "in <lambda>: ZeroDivisionError: division by zero"),
    ],
)
def test_a_wrong_hook_is_named(function, message):
    hooks = [selfsight.every(function, steps=1)]
    with pytest.raises(UserError, match=message):
        selfsight.pretrain("digits/simclr", run="runs/a", hooks=hooks, **QUICK)


def test_a_metric_that_is_not_finite_is_null_and_not_left_out():
    hooks = [selfsight.every(lambda state: {"odd": float("nan")}, steps=4)]
    run = selfsight.pretrain("digits/simclr", run="runs/a", hooks=hooks, **QUICK)
    assert run.metrics()[-1]["odd"] is None


@pytest.mark.parametrize("when", [{}, {"steps": 2, "epochs": 1}, {"steps": -1}])
def test_when_a_hook_is_called_must_be_said_once(when):
    with pytest.raises(UserError, match="give one of them, at least 1"):
        selfsight.every(print, **when)


# Optimizers of timm -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timm:lion", "timm:muon"])
def test_an_optimizer_of_timm_continues_exactly(name):
    keys = {**QUICK, "optimizer": {"name": name, "lr": 1e-3}, "checkpoint": {"every_steps": 1}}
    stopped(3, **keys)
    again = selfsight.pretrain("digits/simclr", run="runs/stopped", **keys)
    assert_equal(again, selfsight.pretrain("digits/simclr", run="runs/whole", **keys))


class Counting(torch.optim.SGD):
    """Its rate follows a count that is not in its state."""

    count = 0

    def step(self, closure=None):
        self.count += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.count
        return super().step(closure)


class Sampling(torch.optim.SGD):
    """It draws numbers, which a few steps do not show."""

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.numbers = random.Random(0)

    def step(self, closure=None):
        self.numbers.random()
        return super().step(closure)


@pytest.mark.parametrize(("kind", "refused"), [(torch.optim.SGD, False), (Counting, True)])
def test_an_optimizer_with_hidden_state_is_refused(kind, refused, monkeypatch):
    monkeypatch.setattr("timm.optim.create_optimizer_v2", lambda groups, name, lr: kind(groups, lr))
    refuse(refused)


def test_an_optimizer_that_draws_numbers_is_refused(monkeypatch):
    make = lambda groups, name, lr: Sampling(groups, lr)  # noqa: E731
    monkeypatch.setattr("timm.optim.create_optimizer_v2", make)
    refuse(True)


def refuse(refused: bool) -> None:
    wanted = pytest.raises(UserError, match="keeps state outside of its state_dict")
    with wanted if refused else contextlib.nullcontext():
        selfsight.pretrain("digits/simclr", run="runs/a", optimizer="timm:sgd", **QUICK)


def test_its_arguments_are_options():
    keys = {"name": "timm:lion", "options": {"beta": 3}}
    with pytest.raises(UserError, match=r"timm:lion, optimizer.options=.*unexpected keyword"):
        selfsight.pretrain("digits/simclr", run="runs/a", optimizer=keys, **QUICK)


# The run ------------------------------------------------------------------------------------------


def test_a_run_is_a_path_and_knows_its_results(here):
    run = selfsight.pretrain("digits/simclr", run="runs/a", **QUICK)
    assert (here / run / "encoder.safetensors").is_file()
    assert str(run) == "runs/a"
    assert repr(run) == "Run('runs/a')"
    assert run.results() == []
    selfsight.knn(run, pixels=False)
    table = run._repr_html_()
    assert "<td" in table
    assert "simclr" in table
    assert "kNN k=20" in table
    other = selfsight.Run("runs/a")
    assert other.metrics() == run.metrics()
    assert other.metrics()[-1]["step"] == 4
    assert other.encoder().num_features == 128
    json.dumps(run.results())


def test_its_curves_are_a_picture():
    pytest.importorskip("matplotlib")
    run = selfsight.pretrain("digits/simclr", run="runs/a", **QUICK)
    figure = run.plot()
    assert [axes.get_title() for axes in figure.axes] == [
        "loss",
        "kNN (%)",
        "online probe (%)",
        "learning rate",
    ]
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_run_that_does_not_exist():
    with pytest.raises(UserError, match="is not a run folder"):
        selfsight.Run("runs/none").config()
    assert selfsight.Run("runs/none").metrics() == []


def test_a_configuration_that_was_composed(here):
    config = compose("digits/simclr", [*TINY, "max_steps=2"], "runs/a").config
    assert selfsight.pretrain(config, quiet=True).metrics()[-1]["step"] == 2
    more = selfsight.pretrain(config, run="runs/b", max_steps=3, quiet=True)
    assert more.metrics()[-1]["step"] == 3
