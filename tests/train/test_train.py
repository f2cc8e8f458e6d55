"""Optimizers, checkpoints and the loop itself, in process."""

import json
import os
import re
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from selfsight.encoders.artifact import weights_hash
from selfsight.encoders.encoder import load_encoder
from selfsight.errors import UserError
from selfsight.locks import locked
from selfsight.logging.log import read_metrics
from selfsight.methods import METHODS
from selfsight.methods.method import Output
from selfsight.pretraining import job as jobs
from selfsight.pretraining.build import build_method
from selfsight.pretraining.config import RunConfig, compose
from selfsight.train import engine, session
from selfsight.train.checkpoint import Checkpoints, read_checkpoint
from selfsight.train.optim import OptimizerConfig, build_optimizer, parameter_groups
from selfsight.train.precision import pick_device, pick_precision
from tests.channels import KINDS, NAMES, images_of, keys_of
from tests.conftest import TINY, heads
from tests.processes import two_ranks

CPU = torch.device("cpu")


# Optimizers ---------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head, self.frozen = nn.Linear(4, 2), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "lamb"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_parameter_groups(name, decay):
    net = Net()
    groups = parameter_groups(net, OptimizerConfig(name=name, weight_decay=decay), ("head",))
    names = {id(p): n for n, p in net.named_parameters()}
    found = {names[id(p)]: g for g in groups for p in g["params"]}
    assert set(found) == {n for n, p in net.named_parameters() if p.requires_grad}
    for key, group in found.items():
        matrix = key in ("conv.weight", "head.weight")
        assert group["weight_decay"] == (decay if matrix else 0)
        assert group["constant_lr"] == key.startswith("head")
        if name in ("lars", "lamb"):
            assert group["always_adapt"] == matrix


@pytest.mark.parametrize("decay", [0.0, 1e-2])
@pytest.mark.parametrize(("eta", "clip"), [(0.001, False), (0.001, True), (10.0, True)])
def test_lars_is_the_papers_and_leaves_out_biases(decay, eta, clip):
    """v = m v + trust (g + decay w); w -= lr v; trust = eta |w| / (|g| + decay |w|), or 1;
    clipped: min(trust, lr) in place of lr * trust
    """
    torch.manual_seed(0)
    net, lr, momentum = nn.Linear(5, 4), 0.3, 0.9
    keys = {"weight_decay": decay, "momentum": momentum}
    config = OptimizerConfig(name="lars", lr=lr, trust_coefficient=eta, clip_trust=clip, **keys)
    optimizer = build_optimizer(net, config, lr)
    w, b = net.weight.detach().clone(), net.bias.detach().clone()
    vw, vb = torch.zeros_like(w), torch.zeros_like(b)
    for step in range(3):
        gw, gb = torch.randn_like(w), torch.randn_like(b)
        net.weight.grad, net.bias.grad = gw.clone(), gb.clone()
        optimizer.step()
        trust = eta * w.norm() / (gw.norm() + decay * w.norm())
        trust = min(trust / lr, 1) if clip else trust
        vw = momentum * vw + trust * (gw + decay * w)
        vb = momentum * vb + gb
        w, b = w - lr * vw, b - lr * vb
        torch.testing.assert_close(net.weight.detach(), w, rtol=1e-5, atol=1e-7, msg=f"{step}")
        torch.testing.assert_close(net.bias.detach(), b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "lamb"])
@pytest.mark.parametrize("decay", [0.0, 1e-4])
def test_zero_initialised_tensors_move(name, decay):
    net = nn.Linear(3, 3)
    nn.init.zeros_(net.weight)
    optimizer = build_optimizer(net, OptimizerConfig(name=name, weight_decay=decay), 0.1)
    net.weight.grad, net.bias.grad = torch.ones(3, 3), torch.ones(3)
    optimizer.step()
    assert (net.weight != 0).all()


# Checkpoints --------------------------------------------------------------------------------------


def store(tmp_path, keep=2):
    said = []
    return Checkpoints(tmp_path, keep, said.append), said


def test_keep_and_order(tmp_path):
    checkpoints, _ = store(tmp_path, keep=2)
    for step in (1, 2, 10):
        checkpoints.save(step, {"x": torch.full((3,), float(step))})
    assert [s for s, _ in checkpoints.files()] == [2, 10]
    step, state = checkpoints.load(CPU)
    assert step == 10
    assert torch.equal(state["x"], torch.full((3,), 10.0))
    assert not list(tmp_path.glob(".*"))


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_damaged_file_is_noticed_and_the_one_before_used(data, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("damage")
    checkpoints, said = store(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"x": torch.arange(100.0) + step})
    newest = checkpoints.files()[-1][1]
    content = bytearray(newest.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= data.draw(st.integers(1, 255))
    else:
        del content[at:]
    newest.write_bytes(bytes(content))
    step, state = checkpoints.load(CPU)
    assert step == 1
    assert torch.equal(state["x"], torch.arange(100.0) + 1)
    assert len(said) == 1
    assert "step 2 is damaged" in said[0]
    assert list(tmp_path.glob("*.damaged"))


def test_a_crash_while_saving_leaves_the_old_one(tmp_path, monkeypatch):
    checkpoints, _ = store(tmp_path, keep=1)
    checkpoints.save(1, {"x": 1})

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("selfsight.files.os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(2, {"x": 2})
    monkeypatch.undo()
    assert checkpoints.load(CPU) == (1, {"x": 1})
    checkpoints.save(3, {"x": 3})
    assert [p.name for p in tmp_path.iterdir()] == [checkpoints.files()[0][1].name]


def test_loading_runs_no_code(tmp_path):
    checkpoints, said = store(tmp_path)
    flag = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(flag),)

    checkpoints.save(1, {"x": 1})
    path = checkpoints.save(2, {"x": Evil()})
    with pytest.raises(UserError, match=r"this file is damaged; .*could run code"):
        read_checkpoint(path, CPU, "resume=x")
    assert checkpoints.load(CPU) == (1, {"x": 1})
    assert "could run code" in said[0]
    assert not flag.exists()


# The loop -----------------------------------------------------------------------------------------


def config_of(folder, *keys: str, method: str = "moco_v2") -> RunConfig:
    overrides = [*TINY, *heads(method), "precision=fp32", *keys]
    return compose("digits/simclr", overrides, str(folder)).config


def weights(folder) -> str:
    return weights_hash(load_encoder(folder).backbone)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        *((method, None) for method in METHODS),
        *zip(("simclr", "mae", "moco_v2", "simmim", "byol", "ijepa"), KINDS, strict=True),
    ],
    ids=[*METHODS, *NAMES],
)
def test_interrupted_equals_uninterrupted(tmp_path, method, kind, monkeypatch):
    """Stopped by SIGTERM after every single step, and continued: the same bytes at the end."""
    keys, steps = ["checkpoint={every_epochs: 0}", "backbone.drop_path=0.2"], 3
    if kind is not None:
        steps = 2
        keys += [*keys_of(kind[0]), "views.0.noise=0.05"]
        if "views.0.count=1" in heads(method):
            keys += ["views.0.count=1", "views.0.size=[16, 8]", "views.0.rotate90=0"]
        monkeypatch.setattr(jobs, "training_images", lambda *_: images_of(*kind))
    keys.append(f"max_steps={steps}")
    jobs.pretrain(config_of(tmp_path / "whole", *keys, method=method), quiet=True)

    after = session.Session.after

    def stop_each_time(self, done, *rest):
        os.kill(os.getpid(), signal.SIGTERM)
        after(self, done, *rest)

    monkeypatch.setattr(session.Session, "after", stop_each_time)
    config = config_of(tmp_path / "pieces", *keys, method=method)
    for step in range(1, steps):
        with pytest.raises(session.Interrupted, match=f"after step {step} of {steps}"):
            jobs.pretrain(config, quiet=True)
    jobs.pretrain(config, quiet=True)
    whole, pieces = (
        (tmp_path / name / "encoder.safetensors").read_bytes() for name in ("whole", "pieces")
    )
    assert whole == pieces
    a, b = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "pieces"))
    varying = ("seconds", "images_per_second")
    a, b = ([{k: v for k, v in r.items() if k not in varying} for r in rs] for rs in (a, b))
    assert a == b
    assert [r["step"] for r in b] == list(range(1, steps + 1))


def test_a_crash_between_checkpoints_repeats_the_same_steps(tmp_path, monkeypatch):
    keys = ["max_steps=7", "checkpoint={every_epochs: 0, every_steps: 2}"]
    jobs.pretrain(config_of(tmp_path / "whole", *keys), quiet=True)
    forward_backward = engine._forward_backward
    calls = []

    def crash(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("power cut")
        return forward_backward(*arguments)

    monkeypatch.setattr(engine, "_forward_backward", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        jobs.pretrain(config_of(tmp_path / "cut", *keys), quiet=True)
    monkeypatch.undo()
    jobs.pretrain(config_of(tmp_path / "cut", *keys), quiet=True)
    assert weights(tmp_path / "whole") == weights(tmp_path / "cut")
    assert [r["step"] for r in read_metrics(tmp_path / "cut" / "metrics.jsonl")] == [*range(1, 8)]


def test_another_configuration_is_refused_with_a_diff(tmp_path):
    jobs.pretrain(config_of(tmp_path / "run", "max_steps=1"), quiet=True)
    with pytest.raises(UserError) as caught:
        jobs.pretrain(config_of(tmp_path / "run", "max_steps=1", "seed=5"), quiet=True)
    assert "seed: 0 -> 5" in str(caught.value)
    assert "--run" in str(caught.value)
    # what changes no result may change
    jobs.pretrain(config_of(tmp_path / "run", "max_steps=1", "checkpoint.keep=1"), quiet=True)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is not a run folder"):
        jobs.pretrain(config_of(tmp_path, "max_steps=1"), quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_crash_at_the_first_write_does_not_bar_the_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".config.yaml.123.tmp").write_text("half")
    jobs.pretrain(config_of(folder, "max_steps=1"), quiet=True)


def test_two_processes_never_write_one_folder(tmp_path):
    config = config_of(tmp_path / "run", "max_steps=1")
    jobs.pretrain(config, quiet=True)
    with locked(tmp_path / "run"), pytest.raises(UserError, match="another process is writing"):
        jobs.pretrain(config, quiet=True)
    jobs.pretrain(config, quiet=True)


def test_a_run_folder_holds_what_it_promises(tmp_path):
    keys = ["epochs=2", "batch_size=256", "evaluate.every_epochs=1", "checkpoint.every_epochs=1"]
    folder = jobs.pretrain(config_of(tmp_path / "run", *keys), quiet=True)
    head, *lines = (folder / "config.yaml").read_text().splitlines()
    assert re.match(r"# python 3\.\d+.* torch \d", head)
    assert any(line.startswith("seed: 0") for line in lines)
    assert (
        compose(str(folder / "config.yaml")).config.identity()
        == config_of(folder, "epochs=2", "batch_size=256", "evaluate.every_epochs=1").identity()
    )
    records = read_metrics(folder / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, 11))
    wanted = {"step", "epoch", "loss", "lr", "images_per_second", "seconds", "feature_std"}
    assert all(wanted | {"probe_top1", "alignment"} <= r.keys() for r in records)
    assert [r["step"] for r in records if "knn" in r] == [5, 10]
    description = json.loads((folder / "encoder.json").read_text())
    assert description["num_features"] == 16
    assert description["weights_sha256"] == weights(folder)
    assert len(list((folder / "checkpoints").glob("*.pt"))) == 2


def test_accumulation_equals_the_whole_batch(tmp_path, monkeypatch):
    """For a loss that does not couple samples and an encoder without batch statistics."""
    from tests.methods.test_methods import Batch, batch_of, build

    gradients = []
    for parts in (1, 4):
        method = build("moco_v2").double()
        whole = batch_of("moco_v2")
        views = [v.double().chunk(parts) for v in whole.views]
        batches = [Batch(list(v), None, whole.keys) for v in zip(*views, strict=True)]
        output = engine._forward_backward(method, batches, amp=False)
        gradients.append(
            [output.loss] + [p.grad for p in method.parameters() if p.grad is not None]
        )
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_one_image_at_a_time_is_refused_before_the_first_step(tmp_path):
    keys = [*TINY, *heads("simclr"), "max_steps=1", "batch_size=8", "accumulate=8"]
    with pytest.raises(UserError, match=r"accumulate=8: each of 1 processes .* one image at a"):
        jobs.pretrain(compose("digits/simclr", keys, str(tmp_path / "x")).config)
    assert not (tmp_path / "x" / "metrics.jsonl").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    forward_backward = engine._forward_backward
    calls = []

    def poison(*arguments):
        calls.append(1)
        output = forward_backward(*arguments)
        loss = output.loss * float("nan") if len(calls) == 5 else output.loss
        return Output(loss, output.features, output.embeddings)

    monkeypatch.setattr(engine, "_forward_backward", poison)
    keys = ["max_steps=9", "checkpoint={every_epochs: 0, every_steps: 2}"]
    config = config_of(tmp_path / "run", *keys)
    with pytest.raises(UserError, match=r"loss of step 4 is not finite; the checkpoint of step 4"):
        jobs.pretrain(config, quiet=True)
    report = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert report["step"] == 4
    assert len(report["images"]) == 64
    assert "step-00000004" in report["last_checkpoint"]
    monkeypatch.undo()
    # the coordinates are enough to make the step's batch again
    images = jobs.training_images(config, CPU)
    batch = jobs.make_loader(config, images).batch_of(report["epoch"], np.array(report["images"]))
    assert batch.index.tolist() == report["images"]


def test_clipping_bounds_the_gradient(tmp_path, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def watch(self, *arguments):
        parameters = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        if len(parameters) > 5:  # not the probe's
            norms.append(torch.stack([p.grad.norm() for p in parameters]).norm().item())
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    jobs.pretrain(config_of(tmp_path / "a", "max_steps=3", "clip_gradient=0.01"), quiet=True)
    assert len(norms) == 3
    assert max(norms) <= 0.01 * 1.001


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_networks_train(tmp_path, monkeypatch, backend):
    """Traced forwards and backwards; generating code for them takes inductor half a minute."""
    compile = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile(self, backend=backend))
    config = config_of(tmp_path / "run", "max_steps=2", "compile=true", method="simclr")
    plain = config_of(tmp_path / "plain", "max_steps=2", method="simclr")
    jobs.pretrain(config, quiet=True)
    jobs.pretrain(plain, quiet=True)
    a, b = (read_metrics(tmp_path / n / "metrics.jsonl")[-1]["loss"] for n in ("run", "plain"))
    assert a == pytest.approx(b, rel=1e-3)


def test_devices_and_precision():
    assert pick_device("cpu") == CPU
    # no such name; a backend without tensors, without its package, without numbers
    missing = ["gpu", "fpga", "hpu", "meta"]
    if not torch.cuda.is_available():
        missing.append("cuda")
    for name in missing:
        with pytest.raises(UserError, match=rf"^device={name}: .*\. Use auto, cpu"):
            pick_device(name)
    assert pick_precision("bf16", CPU) == "bf16"
    assert pick_precision("auto", CPU) in ("fp32", "bf16")
    assert pick_precision("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize("method", ["simclr", "mae", "ijepa"])
def test_compile_reaches_what_runs(tmp_path, method):
    """Transformers block by block, teachers and decoders too: methods call blocks one by one."""
    built = build_method(config_of(tmp_path, method=method))
    for network in built.children():
        engine._compile(network)
    compiled = [name for name, m in built.named_modules() if m._compiled_call_impl is not None]
    blocks = {"simclr": [], "mae": ["backbone", "decoder"], "ijepa": ["backbone", "teacher.0"]}
    for owner in blocks[method]:
        assert f"{owner}.blocks.0" in compiled
        assert owner not in compiled
    assert ("backbone" in compiled) == (method == "simclr")


@pytest.mark.parametrize("method", METHODS)
def test_sync_batchnorm_reaches_every_network(tmp_path, method, monkeypatch):
    """One process keeps its batch norm; as one of two on GPUs all of it is converted."""
    built = build_method(config_of(tmp_path, method=method))
    names = built.state_dict().keys()
    engine.place(built, CPU, sync_batchnorm=True)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in built.modules())
    monkeypatch.setattr(engine.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(engine, "check_sync_batchnorm", lambda *_: None)
    monkeypatch.setattr(engine, "DistributedDataParallel", lambda module, **_: module)
    engine.place(built, CPU, sync_batchnorm=True)
    norms = [m for m in built.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms or "ViT" in METHODS[method].needs
    assert all(isinstance(m, nn.SyncBatchNorm) for m in norms)
    assert names == built.state_dict().keys()


def test_one_process_synchronises_nothing(tmp_path):
    """The key that the recipes for ImageNet have changes no bit on one CPU."""
    for name, key in (("plain", "false"), ("sync", "true")):
        config = config_of(tmp_path / name, "max_steps=2", f"sync_batchnorm={key}")
        jobs.pretrain(config, quiet=True)
    assert weights(tmp_path / "plain") == weights(tmp_path / "sync")


def test_two_processes_without_gpus_synchronise_no_batchnorm(tmp_path):
    keys = [*TINY, *heads("simclr"), "max_steps=1", "sync_batchnorm=true", "--run", "r"]
    first, other = two_ranks("pretrain", "digits/simclr", *keys, cwd=tmp_path)
    assert first.returncode == other.returncode == 2
    assert "sync_batchnorm=true: torch's SyncBatchNorm works on GPUs only" in first.stderr
    assert "set sync_batchnorm=false" in first.stderr
    assert "Traceback" not in first.stderr
    assert other.stderr == ""  # the first speaks for all
    assert not (tmp_path / "r").exists()
