"""Continuing another run's checkpoint with another batch, other settings or another optimizer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from selfsight.errors import UserError
from selfsight.logging.log import read_metrics
from selfsight.pretraining import job as jobs
from selfsight.pretraining.config import compose
from selfsight.train.checkpoint import Checkpoints
from selfsight.train.optim import OptimizerConfig, build_optimizer
from selfsight.train.resume import load_optimizer, step_here
from tests.test_legacy import KEYS as LEGACY_KEYS
from tests.test_legacy import LEGACY
from tests.train.test_train import CPU, Net, config_of

NAMES = ("sgd", "adamw", "lars", "lamb")


def loader(images: int, batch_size: int) -> SimpleNamespace:
    return SimpleNamespace(
        images=range(images), batch_size=batch_size, steps_per_epoch=images // batch_size
    )


def state(images: int, batch_size: int) -> dict:
    return {"place": {"images": images, "batch_size": batch_size}}


@pytest.mark.parametrize(
    ("before", "step", "now", "expected"),
    [
        ((200, 50), 16, (200, 100), 8),  # epoch 4 is epoch 4
        ((200, 50), 16, (200, 25), 32),
        ((200, 50), 17, (200, 100), 8),  # 50 images of epoch 4 were seen: they come again
        ((200, 50), 18, (200, 100), 9),
        ((200, 60), 5, (200, 90), 3),  # epoch 1 and 120 of its images, which are one step of 90
        ((200, 10), 19, (200, 90), 2),  # an epoch of 2 steps, which is over
        ((200, 50), 6, (400, 50), 12),  # half of epoch 1, of twice the images
        ((100, 50), 3, (1000, 50), 30),
    ],
)
def test_the_position_is_the_images_seen(before, step, now, expected):
    assert step_here("r", step, state(*before), loader(*now)) == expected


@given(st.integers(2, 300), st.integers(2, 300), st.integers(2, 300), st.integers(0, 2000))
def test_no_image_is_left_out_and_less_than_a_batch_comes_again(images, a, b, step):
    a, b = min(a, images), min(b, images)
    here = step_here("r", step, state(images, a), loader(images, b))
    epoch, rest = divmod(step, images // a)
    assert here // (images // b) in (epoch, epoch + 1)
    if here // (images // b) == epoch:
        assert 0 <= rest * a - here % (images // b) * b < b
    assert step_here("r", step, state(images, a), loader(images, a)) == step


def arrays(path, count: int) -> str:
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8))
    return f"data.path={path}"


def test_another_batch_size_goes_on_at_the_same_epoch(tmp_path):
    data = arrays(tmp_path / "a.npz", 96)
    jobs.pretrain(config_of(tmp_path / "r", data, "batch_size=24", "epochs=2"), quiet=True)
    more = [data, "batch_size=48", "epochs=4", f"resume={tmp_path / 'r'}"]
    jobs.pretrain(config_of(tmp_path / "r2", *more), quiet=True)
    assert [record["epoch"] for record in read_metrics(tmp_path / "r2/metrics.jsonl")] == [
        2.5,
        3.0,
        3.5,
        4.0,
    ]
    with pytest.raises(UserError, match="already at step 4 and this one ends at 4"):
        jobs.pretrain(config_of(tmp_path / "r3", *more, "epochs=2"), quiet=True)


def test_a_checkpoint_of_0_1_0_goes_on_at_the_same_epoch(tmp_path):
    keys = [*LEGACY_KEYS, "batch_size=25", "epochs=3", f"resume={LEGACY / 'runs/stopped'}"]
    jobs.pretrain(compose("digits/simclr", keys, str(tmp_path / "r")).config, quiet=True)
    records = read_metrics(tmp_path / "r/metrics.jsonl")
    assert [record["epoch"] for record in records] == [2.25, 2.5, 2.75, 3.0]  # 4 steps of 50 before


def trained(config: OptimizerConfig, steps: int = 3) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = Net()
    optimizer = build_optimizer(net, config, 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        net.head(net.norm(net.conv(torch.ones(2, 3, 4, 4))).mean((2, 3))).square().sum().backward()
        optimizer.step()
    return net, optimizer


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sgd", {"momentum": 0.5}),
        ("sgd", {"momentum": 0.0}),
        ("sgd", {"nesterov": True}),
        ("adamw", {"betas": (0.5, 0.9)}),
        ("lars", {"trust_coefficient": 0.02, "clip_trust": True, "nesterov": True}),
        ("lamb", {"betas": (0.5, 0.9)}),
    ],
)
def test_settings_are_the_new_ones_and_averages_those_of_the_checkpoint(name, change):
    _, before = trained(OptimizerConfig(name=name))
    config = OptimizerConfig(name=name, **change)
    _, optimizer = trained(config, 0)
    wanted = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    load_optimizer(optimizer, before.state_dict())
    for group, settings in zip(optimizer.param_groups, wanted, strict=True):
        assert settings.items() <= group.items()
    old, new = before.state_dict(), optimizer.state_dict()
    assert old["state"].keys() == new["state"].keys()
    for i, values in old["state"].items():
        for key, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(new["state"][i][key])), key
    steps = [[g.get("step") for g in s["param_groups"]] for s in (old, new)]
    assert steps[0] == steps[1], "timm's LAMB counts its steps in the groups"


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "lamb"])
def test_averages_have_the_layout_of_their_parameter(name):
    """A fused step reads memory in order: the averages of a device that stores channels last must
    not be taken for others on one that stores them first."""
    torch.manual_seed(0)
    start, gradients = torch.randn(4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2)
    found = []
    for before, after in (
        (torch.contiguous_format,) * 2,
        (torch.contiguous_format, torch.channels_last),
    ):
        values, state = start, None
        for layout, gradient in zip((before, after), gradients, strict=True):
            conv = nn.Conv2d(3, 4, 2, bias=False).to(memory_format=layout)
            conv.weight.data.copy_(values)
            optimizer = build_optimizer(conv, OptimizerConfig(name=name), 0.1)
            if state is not None:
                load_optimizer(optimizer, state)
            conv.weight.grad = gradient.contiguous(memory_format=layout)
            optimizer.step()
            values, state = conv.weight.detach().clone(), optimizer.state_dict()
        found.append(values)
    assert torch.allclose(*found, atol=1e-6)


def test_momentum_may_begin_later():
    _, before = trained(OptimizerConfig(name="sgd", momentum=0))
    net, optimizer = trained(OptimizerConfig(name="sgd", momentum=0.9), 0)
    load_optimizer(optimizer, before.state_dict())
    net.conv.weight.grad = torch.ones_like(net.conv.weight)
    optimizer.step()
    buffer = optimizer.state[net.conv.weight]["momentum_buffer"]
    assert torch.allclose(buffer, torch.ones_like(buffer), atol=1e-3)  # and a little weight decay


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("other", NAMES)
def test_another_optimizer_starts_fresh_and_says_so(name, other, capsys):
    _, before = trained(OptimizerConfig(name=name))
    _, optimizer = trained(OptimizerConfig(name=other), 0)
    load_optimizer(optimizer, before.state_dict())
    said = capsys.readouterr().err
    held = [v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    assert any(v.any() for v in held) == (name == other) == (said == "")
    if said:
        assert f"optimizer.name={other}: the checkpoint was made with {name}" in said


def test_a_run_goes_on_with_other_betas(tmp_path):
    jobs.pretrain(config_of(tmp_path / "r", "max_steps=1"), quiet=True)
    keys = ["max_steps=2", f"resume={tmp_path / 'r'}", "optimizer.betas=[0.5, 0.9]"]
    jobs.pretrain(config_of(tmp_path / "r2", *keys), quiet=True)
    _, saved = Checkpoints(tmp_path / "r2/checkpoints").load(CPU)
    assert {group["betas"] for group in saved["optimizer"]["param_groups"]} == {(0.5, 0.9)}
    keys[-1] = "optimizer.name=sgd"
    jobs.pretrain(config_of(tmp_path / "r3", *keys), quiet=True)
    assert [record["step"] for record in read_metrics(tmp_path / "r3/metrics.jsonl")] == [2]


def test_labels_may_be_new(tmp_path):
    """The probe beside the method is no part of the encoder: it starts anew."""
    jobs.pretrain(config_of(tmp_path / "r", "max_steps=1", "data.labels=false"), quiet=True)
    keys = ["max_steps=2", f"resume={tmp_path / 'r'}"]
    jobs.pretrain(config_of(tmp_path / "r2", *keys), quiet=True)
    assert "probe_top1" in read_metrics(tmp_path / "r2/metrics.jsonl")[0]
