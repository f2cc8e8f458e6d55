"""Classifiers on an encoder: frozen heads that learn alone, fine-tuning, the test pass."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.data.mixup import Mixup, mixup_target
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from selfsight import randomness
from selfsight.batch import Normalization, SampleKey
from selfsight.data.config import DataConfig
from selfsight.data.images import Images
from selfsight.data.sources.open import open_source
from selfsight.encoders.artifact import weights_hash
from selfsight.evaluate.classifiers import FineTuned, LinearHeads
from selfsight.evaluate.predict import accuracy
from selfsight.methods.method import Batch
from selfsight.train.optim import (
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    lr_factor,
    set_rates,
)
from tests.conftest import TinyEncoder, tiny_vit
from tests.processes import in_ranks

CPU = torch.device("cpu")


def batch(n: int = 12, step: int = 0, seed: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(n)
    views = [torch.randn(n, 3, 16, 16, generator=generator)]
    labels = torch.randint(10, (n,), generator=generator)
    return Batch(views, labels, SampleKey(seed, 0, torch.arange(n)), step)


def heads(*factors: float, **keys) -> LinearHeads:
    torch.manual_seed(0)
    return LinearHeads(TinyEncoder(), LinearHeads.Config(lr_factors=factors, **keys), 10)


def test_label_smoothing_of_frozen_heads():
    plain, smooth = heads(1.0), heads(1.0, label_smoothing=0.2)
    smooth.load_state_dict(plain.state_dict())
    x = batch()
    (scores,) = plain.scores(x.views[0])
    spread = -scores.log_softmax(1).mean(1).mean()  # against equal parts of all classes
    expected = 0.8 * plain(x).loss + 0.2 * spread
    assert torch.allclose(smooth(x).loss, expected)


@pytest.mark.parametrize("name", ["sgd", "lamb", "adamw"])
def test_each_head_learns_as_if_it_were_alone(name):
    together = heads(1.0, 10.0)
    alone = heads(10.0)
    alone.heads[0].load_state_dict(together.heads[1].state_dict())
    alone.backbone.load_state_dict(together.backbone.state_dict())
    config = OptimizerConfig(name=name, weight_decay=0)
    for method in (together, alone):
        optimizer = build_optimizer(method, config, 0.01, (), method.rate)
        for step in range(4):
            set_rates(optimizer, 0.01, 0.5, 0.0)
            method(batch(step=step)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(together.heads[1].parameters(), alone.heads[0].parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.allclose(together.heads[0][0].weight, together.heads[1][0].weight)


def test_the_encoder_under_heads_is_frozen_and_in_eval_mode():
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1))
    encoder.append(nn.Flatten()).num_features = 8
    method = LinearHeads(encoder, LinearHeads.Config(batch_norm=True), 10).train()
    before = weights_hash(encoder)
    method(batch()).loss.backward()
    assert not encoder.training
    assert not encoder[1].training
    assert all(p.grad is None and not p.requires_grad for p in encoder.parameters())
    assert weights_hash(encoder) == before
    assert method.heads[0][0].training, "the head's own normalisation learns"
    method.eval()
    assert not method.heads[0][0].training


def test_heads_loss_is_the_sum_of_their_cross_entropies():
    method, b = heads(1.0, 2.0, 3.0), batch()
    h = method.backbone(b.views[0])
    expected = sum(F.cross_entropy(head(h), b.labels) for head in method.heads)
    torch.testing.assert_close(method(b).loss, expected)


# Fine-tuning --------------------------------------------------------------------------------------


def test_layer_decay_is_timms():
    """timm counts the head as a layer; ours is outside the encoder, with the factor 1."""
    vit = tiny_vit()
    method = FineTuned(vit, FineTuned.Config(layer_decay=0.5), 10)
    twin = copy.deepcopy(vit)
    names, oracle = {id(p): n for n, p in twin.named_parameters()}, {}
    for group in param_groups_layer_decay(twin, layer_decay=0.5):
        oracle |= {names[id(p)]: group["lr_scale"] for p in group["params"]}
    # without a classifier timm's last group, of a block and the norm, has the factor 1
    assert oracle.keys() == dict(vit.named_parameters()).keys()
    for name, scale in oracle.items():
        assert method.rate(f"backbone.{name}") == pytest.approx(0.5 * scale), name
    assert method.rate("heads.0.weight") == 1.0


def test_learning_rates_follow_the_groups():
    method = FineTuned(tiny_vit(), FineTuned.Config(layer_decay=0.5), 10)
    optimizer = build_optimizer(method, OptimizerConfig(name="adamw"), 0.1, (), method.rate)
    set_rates(optimizer, 0.1, 0.25, 0.3)
    names = {id(p): n for n, p in method.named_parameters()}
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen[names[id(parameter)]] = group["lr"]
    assert seen.keys() == dict(method.named_parameters()).keys()
    for name, lr in seen.items():
        assert lr == pytest.approx(0.1 * 0.25 * method.rate(name))


def test_label_smoothing_is_torchs():
    method, b = FineTuned(TinyEncoder(), FineTuned.Config(label_smoothing=0.2), 10), batch()
    nn.init.normal_(method.heads[0].weight)
    expected = F.cross_entropy(method.scores(b.views[0])[0], b.labels, label_smoothing=0.2)
    torch.testing.assert_close(method(b).loss, expected)


def test_mixing_is_timms_and_follows_from_seed_and_step():
    keys = {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}
    method = FineTuned(TinyEncoder(), FineTuned.Config(**keys), 10).train()
    np.random.seed(7)
    state = np.random.get_state()[1].copy()
    mixed = [method._mixed(batch(step=s).views[0], batch(step=s)) for s in range(8)]
    again = [method._mixed(batch(step=s).views[0], batch(step=s)) for s in range(8)]
    assert np.array_equal(state, np.random.get_state()[1]), "NumPy's own state is left alone"
    for (x, y), (x2, y2) in zip(mixed, again, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
        torch.testing.assert_close(y.sum(1), torch.ones(12))
    assert len({float(x.sum()) for x, _ in mixed}) > 4
    assert torch.equal(batch().views[0], batch().views[0]), "the batch itself is not written to"
    other = method._mixed(batch(seed=4).views[0], batch(seed=4))
    assert not torch.equal(other[0], mixed[0][0])
    key = randomness.key(randomness.MIX, 3, 5)
    np.random.seed(key % 2**32)
    oracle = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=10)
    x, y = oracle(batch(step=5).views[0].clone(), batch(step=5).labels)
    assert torch.equal(x, mixed[5][0])
    assert torch.equal(y, mixed[5][1])
    assert method.eval()._mixed(x, batch())[0] is x, "nothing is mixed outside training"


def test_an_odd_number_of_images_is_mixed_as_an_even_one():
    method = FineTuned(TinyEncoder(), FineTuned.Config(mixup=0.8, cutmix=1.0), 10).train()
    whole = batch(step=5)
    odd = dataclasses.replace(whole, views=[whole.views[0][:11]], labels=whole.labels[:11])
    x, y = method._mixed(odd.views[0], odd)
    np.random.seed(randomness.key(randomness.MIX, 3, 5) % 2**32)
    oracle, expected = Mixup(0.8, 1.0, label_smoothing=0.0, num_classes=10), odd.views[0].clone()
    share = oracle._mix_batch(expected)  # what timm does when it has refused odd numbers
    assert torch.equal(x, expected)
    target = mixup_target(odd.labels, 10, share)
    torch.testing.assert_close(y, target)


def mixed_gradients(rank: int, world: int, folder: str) -> None:
    """The gradients of some steps with mixup and CutMix, of this rank's part of the batch."""
    if world > 1:
        dist.init_process_group("gloo", f"file://{folder}/store", world_size=world, rank=rank)
    torch.manual_seed(0)
    config = FineTuned.Config(mixup=0.8, cutmix=1.0)
    method = FineTuned(TinyEncoder(), config, 10).double().train()
    nn.init.normal_(method.heads[0].weight)
    wrapped = DistributedDataParallel(method) if world > 1 else method
    rows = slice(rank * 12 // world, (rank + 1) * 12 // world)
    for step in range(4):
        whole = batch(step=step)
        views = [view[rows].double() for view in whole.views]
        wrapped(dataclasses.replace(whole, views=views, labels=whole.labels[rows])).loss.backward()
    found = {key: p.grad for key, p in method.named_parameters()}
    torch.save(found, f"{folder}/{world}-{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_images_are_mixed_over_all_ranks(tmp_path, world):
    """Each with its mirror place, as in one process; the loss is in float32."""
    mixed_gradients(0, 1, str(tmp_path))
    in_ranks(mixed_gradients, str(tmp_path), world=world)
    one = torch.load(tmp_path / "1-0.pt")
    for rank in range(world):
        found = torch.load(tmp_path / f"{world}-{rank}.pt")
        for key, gradient in one.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6)


def test_a_step_schedule_falls_at_its_milestones():
    config = ScheduleConfig(name="step", milestones=(60, 80), gamma=0.1)
    epochs = [lr_factor(config, e / 100, 100) for e in (0, 59.9, 60.1, 79.9, 80.1, 99.9)]
    assert epochs == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    warm = ScheduleConfig(name="step", milestones=(5,), warmup_epochs=2)
    assert lr_factor(warm, 0.1, 10) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="milestones"):
        ScheduleConfig(name="step")
    with pytest.raises(ValueError, match="milestones"):
        ScheduleConfig(milestones=(3,))


# The test pass ------------------------------------------------------------------------------------


class Knows(nn.Module):
    """An 'encoder' whose features are the image's own pixels, a head that reads one of them."""

    num_features = 10

    def forward(self, x):
        return x.mean((2, 3)).repeat(1, 4)[:, :10]


def test_accuracy_against_a_naive_loop():
    config = DataConfig()
    images = Images(open_source(config, "test"), config, CPU)
    method = LinearHeads(Knows(), LinearHeads.Config(lr_factors=(1.0, 2.0)), 10)
    for head in method.heads:
        nn.init.normal_(head[0].weight, std=5)
    ours = accuracy(method, images, 8, Normalization((0.5,) * 3, (0.5,) * 3))
    x = torch.stack([torch.from_numpy(images.source.read(i)) for i in range(360)])
    x = (x.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    for head, right in zip(method.heads, ours, strict=True):
        order = head(Knows()(x)).argsort(dim=1, descending=True)
        hits = order == images.labels[:, None]
        assert right.top1 == pytest.approx(hits[:, 0].float().mean().item(), abs=1e-6)
        assert right.top5 == pytest.approx(hits[:, :5].any(1).float().mean().item(), abs=1e-6)
        assert 0 < right.top1 < right.top5 < 1
