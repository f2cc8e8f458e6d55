"""The contract, for every method in METHODS, and the parts they are made of."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from selfsight.batch import Normalization, SampleKey
from selfsight.data.sources.arrays import Digits
from selfsight.errors import UserError
from selfsight.methods import METHODS, Method
from selfsight.methods.ema import EMA, Center
from selfsight.methods.heads import BatchNorm, CosinePrototypes, encode, mlp
from selfsight.methods.method import Batch
from selfsight.methods.queue import Queue
from selfsight.pretraining.config import compose
from selfsight.testing import tiny_teacher
from selfsight.views.make import make_views
from tests.channels import KINDS, Bands, keys_of
from tests.conftest import TinyEncoder, small_heads, tiny_vit


def batch_of(name: str, n: int = 32, step: int = 0, kind: tuple = (3, np.uint8)) -> Batch:
    """Real digits through the method's own default views, at 16 px; small crops at 8 px.

    Args:
        kind: the number of channels, and the type of a value.
    """
    channels, _ = kind
    index = torch.arange(n) + step * n
    source = Digits("train") if kind == (3, np.uint8) else Bands("train", *kind)
    pixels = torch.stack([torch.from_numpy(source.read(int(i))).permute(2, 0, 1) for i in index])
    labels = torch.tensor([source.labels[int(i)] for i in index])
    keys = [key for key in keys_of(channels) if not key.startswith("views")]
    groups = [
        group.model_copy(update={"size": 8 if group.count > 4 else 16})
        for group in compose(None, [f"method.name={name}", *keys]).config.views
    ]
    at, normalization = (
        SampleKey(0, step, index),
        Normalization((0.3,) * channels, (0.4,) * channels),
    )
    return Batch(make_views(pixels, groups, at, normalization), labels, at, step)


def build(name: str, kind: tuple = (3, np.uint8), vit: bool = False, **keys) -> Method:
    """The method with small heads around a tiny encoder of the kind that it needs.

    Args:
        vit: a ViT even if it needs none.
    """
    torch.manual_seed(0)
    cls = METHODS[name]
    channels = kind[0]
    tokens = {"ViT", "frozen teacher"} & {*cls.needs}
    encoder = tiny_vit(16, channels) if vit or tokens else TinyEncoder(channels)
    more = tiny_teacher(16, channels) if cls.frozen_teacher == "required" else {}
    return cls(encoder, cls.Config(**{**small_heads(name), **keys}), **more).train()


every_method = pytest.mark.parametrize("name", METHODS)


@every_method
@pytest.mark.parametrize("amp", [False, True], ids=["fp32", "bf16"])
def test_loss_is_finite(name, amp):
    batch = batch_of(name)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        output = build(name)(batch)
    assert output.loss.shape == ()
    assert output.loss.dtype == torch.float32
    assert math.isfinite(output.loss.item())
    assert output.features.shape[0] == 32
    assert output.features.ndim == 2
    assert all(len(z) == 32 for z in output.embeddings)


@every_method
def test_gradients_reach_all_that_is_trained_and_nothing_else(name):
    method = build(name)
    method(batch_of(name)).loss.backward()
    for key, parameter in method.named_parameters():
        if "teacher" in key:
            assert not parameter.requires_grad, key
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.abs().max() > 0, key
        else:
            assert parameter.grad is None, key


@every_method
def test_every_method_learns_from_other_channels(name):
    """Through its own views, or what they are for these channels."""
    kind = KINDS[list(METHODS).index(name) % len(KINDS)]
    method = build(name, kind)
    loss = method(batch_of(name, 16, kind=kind)).loss
    loss.backward()
    assert math.isfinite(loss.item())
    first = next(p for p in method.backbone.parameters() if p.ndim == 4)
    assert first.shape[1] == kind[0]
    assert first.grad.abs().sum() > 0


def train(
    method: Method, batches: list[Batch], until: float = 0.0, lr: float = 2e-3
) -> list[float]:
    """The losses, up to the one that is below this fraction of the first."""
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr)
    losses = []
    for step, batch in enumerate(batches):
        loss = method(batch).loss
        loss.backward()
        method.after_backward(step / len(batches))
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step / len(batches))
        losses.append(loss.item())
        if losses[-1] < until * losses[0]:
            break
    return losses


@every_method
def test_state_dict_gives_the_same_next_loss(name):
    method = build(name)
    train(method, [batch_of(name, step=s) for s in range(3)])
    other = build(name)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    other.load_state_dict(method.state_dict())
    follow = [batch_of(name, step=s) for s in (3, 4)]
    assert train(method, follow[:1]) == train(other, follow[:1])
    assert method(follow[1]).loss.item() != method(follow[0]).loss.item()


def _reset(module: nn.Module) -> None:
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


@every_method
def test_overfits_32_images(name):
    """The loss on one batch at least halves.

    Teachers and queues are held still and the student starts apart from its teacher: a queue full
    of the images that are shown again and again would hold nothing but false negatives.
    """
    cls = METHODS[name]
    small = {"queue_size": 32} if "queue_size" in cls.Config.model_fields else {}
    if name.startswith("dinov"):  # soft targets have an entropy, which no student gets below
        small = {"teacher_temperature": 0.01}
    if name == "swav":  # with 0.1 it leaves its start after 400 to 1,500 steps, as the CPU rounds
        small["temperature"] = 0.2
    method = build(name, **small)
    for module in method.children():
        if not isinstance(module, EMA):
            module.apply(_reset)
    method.after_step = lambda progress: None
    losses = train(method, [batch_of(name)] * 1200, until=0.5)
    assert losses[-1] < 0.5 * losses[0], losses[::20]


@every_method
def test_defaults_are_valid_and_named(name):
    assert METHODS[name].Config().name == name
    assert METHODS[name].__doc__
    paper = METHODS[name].paper()
    assert re.fullmatch(r"\d{4}\.\d{5}", paper.arxiv)
    assert paper.year == 2000 + int(paper.arxiv[:2])
    word = r"([A-Z][\w-]*|a|and|are|by|for|from|in|of|the|to|via|with|without|weighted)"
    assert re.fullmatch(rf"{word}(,? {word}){{0,11}}", paper.title), "no name and no sentence"
    same = [other for other in METHODS if METHODS[other].paper().title == paper.title]
    assert same == [name], "a title is of one method"


@every_method
def test_needs_are_what_the_method_has(name):
    """What `selfsight methods` says of it."""
    cls, method = METHODS[name], build(name)
    parts = [type(m) for m in method.modules()]
    assert ("teacher" in cls.needs) == (EMA in parts)
    assert ("frozen teacher" in cls.needs) == (cls.frozen_teacher == "required")
    assert ("queue" in cls.needs) == (Queue in parts)
    assert ("multi-crop" in cls.needs) == (cls.view_count == (2, None))
    unlabelled = dataclasses.replace(batch_of(name), labels=None)
    if "labels" in cls.needs:
        with pytest.raises((TypeError, AttributeError)):
            method(unlabelled)
    else:
        method(unlabelled)
    if "ViT" in cls.needs:
        with pytest.raises(UserError, match="Vision Transformer"):
            cls(TinyEncoder(), cls.Config())


# Parts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 8, 20])
def test_queue_keeps_the_last_keys_in_order(size):
    queue = Queue(size, 3)
    batches = [F.normalize(torch.randn(4, 3), dim=1) for _ in range(7)]
    for keys in batches:
        queue.stage(keys)
        queue.commit()
    pushed = torch.cat(batches)  # key number i lies at place i modulo size, until overwritten
    expected = {place % size: pushed[place] for place in range(len(pushed))}
    for place, key in expected.items():
        torch.testing.assert_close(queue.keys[place], key)
    assert queue.next == len(pushed) % size


def test_queue_takes_all_parts_of_an_accumulated_batch():
    queue, before = Queue(16, 3), None
    before = queue.keys.clone()
    for _ in range(2):
        queue.stage(torch.randn(4, 3))
        assert torch.equal(queue.keys, before)
    queue.commit()
    assert (queue.keys != before).any(1).sum() == 8
    assert queue.next == 8


def test_teacher_follows_and_keeps_its_own_statistics():
    student = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    teacher = EMA(student)
    with torch.no_grad():
        student[0].weight.fill_(1.0)
    old = teacher[0][0].weight.clone()
    student(torch.randn(8, 4) + 5)
    teacher.ema_update(student, momentum=0.75)
    torch.testing.assert_close(teacher[0][0].weight, 0.75 * old + 0.25)
    assert torch.equal(teacher[0][1].running_mean, torch.zeros(4))
    assert not teacher(torch.randn(2, 4)).requires_grad


def test_heads():
    assert [type(m) for m in mlp(4, 8, 2)] == [nn.Linear, BatchNorm, nn.ReLU, nn.Linear]
    assert [type(m) for m in mlp(4, 8, 2, norm=False)] == [nn.Linear, nn.ReLU, nn.Linear]
    assert mlp(4, 8, 2)[0].bias is None
    assert mlp(4, 8, 2)[-1].bias is not None


def test_queue_is_full_after_as_many_keys_and_can_drop():
    queue = Queue(8, 3)
    for number in range(3):
        assert queue.full() == (number == 2)
        queue.stage(torch.randn(4, 3))
        queue.commit()
    before = queue.keys.clone()
    queue.stage(torch.randn(4, 3))
    queue.drop()
    queue.commit()
    assert torch.equal(queue.keys, before)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(8))
    resumed = Queue(8, 3)
    resumed.load_state_dict(queue.state_dict())
    assert resumed.full()


def test_center_moves_by_the_mean_of_all_parts_at_the_end():
    """Eq. 4 of DINO: c = m c + (1 - m) mean; an accumulated batch is one batch."""
    center, outputs = Center(3, 0.9), torch.randn(2, 8, 5, 3)
    center.value.fill_(2.0)
    for part in outputs:
        center.stage(part)
        assert torch.equal(center.value, torch.full((3,), 2.0))
    center.commit()
    torch.testing.assert_close(center.value, 0.9 * 2 + 0.1 * outputs.mean((0, 1, 2)))
    before = center.value.clone()
    center.commit()
    assert torch.equal(center.value, before)


def test_cosines_are_a_weight_normalised_layer_with_gains_of_one():
    ours, theirs = CosinePrototypes(6, 4).double(), nn.Linear(6, 4, bias=False).double()
    theirs = nn.utils.parametrizations.weight_norm(theirs)
    gain, direction = theirs.parametrizations.weight.parameters()
    with torch.no_grad():
        gain.fill_(1.0)
        direction.copy_(ours.weight)
    x = torch.randn(5, 3, 6).double()
    y, expected = ours(x), theirs(x / x.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(y, expected)
    assert y.abs().max() <= 1
    a, b = (
        torch.autograd.grad(v.exp().sum(), p)[0]
        for v, p in ((y, ours.weight), (expected, direction))
    )
    torch.testing.assert_close(a, b)


def test_encode_keeps_the_order_of_views():
    """Neighbours of one size go through together, as in SwAV and DINO; the outputs do not tell."""
    sizes = []

    class Means(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append((len(x), x.shape[-1]))
            return x.mean((2, 3))

    views = [torch.randn(2, 3, s, s) for s in (16, 16, 8, 8, 8, 16)]
    for got, view in zip(encode(Means(), views), views, strict=True):
        torch.testing.assert_close(got, view.mean((2, 3)))
    assert sizes == [(4, 16), (6, 8), (2, 16)]
