"""The papers' algorithm boxes, written down plainly and replayed beside the methods.

Both start from the same weights and see the same views, in float64; after each step the loss and
all state must be equal.
"""

import copy
import dataclasses
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.methods import METHODS, Method
from selfsight.methods.ibot import large_masks
from selfsight.methods.method import Batch
from selfsight.randomness import directions
from selfsight.train.optim import OptimizerConfig, build_optimizer, set_rates
from selfsight.views.masks import context_and_targets, random_mask
from tests.conftest import TINY_VIT, TinyEncoder, small_heads, tiny_vit
from tests.losses.test_losses import (
    naive_batch_info_nce,
    naive_centre_distance,
    naive_sigreg,
    naive_sinkhorn,
)
from tests.methods.test_methods import batch_of, build


def class_token_vit() -> nn.Module:
    import timm

    options = {**TINY_VIT, "class_token": True, "dynamic_img_size": True}
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, num_classes=0, **options
    )


ENCODERS = {"convolutions": TinyEncoder, "vit": tiny_vit, "class token": class_token_vit}


def build_on(encoder: str, name: str, **keys) -> Method:
    """As `build`, around an encoder of this kind, in float64."""
    torch.manual_seed(0)
    cls = METHODS[name]
    config = cls.Config(**{**small_heads(name), **keys})
    return cls(ENCODERS[encoder](), config).train().double()


def batch_in_float64(name: str, n: int = 32, step: int = 0) -> Batch:
    batch = batch_of(name, n, step)
    return dataclasses.replace(batch, views=[v.double() for v in batch.views])


def copies(*modules: nn.Module) -> list[nn.Module]:
    return [copy.deepcopy(module) for module in modules]


def sgd(parameters, lr: float) -> None:
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter -= lr * parameter.grad
            parameter.grad = None


def update(modules: list[nn.Module], lr: float) -> None:
    sgd([p for m in modules for p in m.parameters()], lr)


def step(method: Method, batch: Batch, lr: float, progress: float) -> float:
    loss = method(batch).loss
    loss.backward()
    method.after_backward(progress)
    sgd(method.parameters(), lr)
    method.after_step(progress)
    return loss.item()


@torch.no_grad()
def average(slow: list[nn.Module], fast: list[nn.Module], m: float) -> None:
    """slow = m * slow + (1 - m) * fast"""
    for a, b in zip(slow, fast, strict=True):
        for x, y in zip(a.parameters(), b.parameters(), strict=True):
            x.copy_(m * x + (1 - m) * y)


def half_cosine(base: float, progress: float) -> float:
    """The momentum of BYOL, which DINO, iBOT and MoCo v3 took over."""
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


def same(ours: list[nn.Module], theirs: list[nn.Module], near: float = 1e-9) -> None:
    for a, b in zip(ours, theirs, strict=True):
        for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
            message = functools.partial("{}: {}".format, name)
            torch.testing.assert_close(x, y, rtol=near, atol=near, msg=message)


def crops(network: nn.Module, views: list[Tensor]) -> list[Tensor]:
    """One view after the other: an encoder without batch statistics cannot tell."""
    return [network(x) for x in views]


def cross_entropy(target: Tensor, logits: Tensor, t: float) -> Tensor:
    """Of distributions (..., K), for each sample: H(target, softmax(logits / t))."""
    return -(target.detach() * torch.log(torch.softmax(logits / t, dim=-1))).sum(-1)


# Contrast -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "t", "hidden"), [("moco_v1", 0.07, 0), ("moco_v2", 0.2, 32)])
def test_moco_replays_algorithm_1(name, t, hidden):
    method = build(name, hidden_dim=hidden, queue_size=80, momentum=0.9).double()
    assert METHODS[name].Config().temperature == t
    f_q = nn.Sequential(*copies(method.backbone, method.projector))
    (f_k,) = copies(f_q)
    queue, m, lr = method.queue.keys.clone(), 0.9, 0.1
    for number in range(4):
        batch = batch_in_float64(name, step=number)
        x_q, x_k = batch.views
        # Algorithm 1 of arXiv 1911.05722, line by line
        q = F.normalize(f_q(x_q), dim=1)
        with torch.no_grad():
            k = F.normalize(f_k(x_k), dim=1)
        l_pos = torch.einsum("nc,nc->n", q, k)[:, None]
        l_neg = torch.einsum("nc,kc->nk", q, queue)
        logits = torch.cat([l_pos, l_neg], dim=1) / t
        loss = F.cross_entropy(logits, torch.zeros(32, dtype=torch.long))
        loss.backward()
        update([f_q], lr)
        average([f_k], [f_q], m)
        for row in range(32):
            queue[(number * 32 + row) % 80] = k[row]

        before = method.queue.keys.clone()
        ours = step(method, batch, lr, number / 4)
        assert ours == pytest.approx(loss.item(), rel=1e-9)
        # no query met its own key: until the step was over the queue held none of this batch
        assert not (before[:, None] - k).abs().sum(2).lt(1e-6).any()
        torch.testing.assert_close(method.queue.keys, queue)
        same([method.backbone, method.projector, *method.teacher], [*f_q, *f_k])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_moco_v3_replays_algorithm_1(encoder):
    method = build_on(encoder, "moco_v3", momentum=0.9)
    f_q = copies(method.backbone, method.projector, method.predictor)
    f_k = copies(method.backbone, method.projector)
    lr, steps, t = 0.1, 4, 0.2
    fixed = [p.clone() for n, p in method.backbone.named_parameters() if "embed" in n]
    for number in range(3):
        batch = batch_in_float64("moco_v3", step=number)
        x1, x2 = batch.views
        # Algorithm 1 of arXiv 2104.02057
        q1, q2 = (f_q[2](f_q[1](f_q[0](x))) for x in (x1, x2))
        with torch.no_grad():
            k1, k2 = (f_k[1](f_k[0](x)) for x in (x1, x2))
        ctr = [2 * t * naive_batch_info_nce(q, k, t) for q, k in ((q1, k2), (q2, k1))]
        loss = sum(ctr)
        loss.backward()
        update(f_q, lr)
        average(f_k, f_q[:2], half_cosine(0.9, number / steps))

        assert step(method, batch, lr, number / steps) == pytest.approx(loss.item(), rel=1e-9)
        same([method.backbone, method.projector, method.predictor], f_q)
        same([*method.teacher], f_k)
    # ViTs: positions and the random patch embedding stay as they were
    after = [p for n, p in method.backbone.named_parameters() if "embed" in n]
    assert all(torch.equal(a, b) for a, b in zip(after, fixed, strict=True))
    assert len(fixed) == (0 if encoder == "convolutions" else 3)


def test_nnclr_replays_algorithm_1():
    method = build("nnclr", queue_size=80).double()
    f, g = nn.Sequential(*copies(method.backbone, method.projector)), *copies(method.predictor)
    support, lr, t = list(method.queue.keys.clone()), 0.1, 0.1
    place = 0

    def nearest(z: Tensor) -> Tensor:
        found = []
        for row in z:
            similarity = [float(row.detach() @ q) / float(q.norm()) for q in support]
            found.append(support[similarity.index(max(similarity))])
        return torch.stack(found)

    for number in range(4):
        batch = batch_in_float64("nnclr", step=number)
        # Algorithm 1 of arXiv 2104.14548
        z1, z2 = (f(x) for x in batch.views)
        p1, p2 = g(z1), g(z2)
        nn1, nn2 = nearest(z1), nearest(z2)
        loss = naive_batch_info_nce(nn1, p2, t) / 2 + naive_batch_info_nce(nn2, p1, t) / 2
        loss.backward()
        update([f, g], lr)
        for row in F.normalize(z1.detach(), dim=1):  # first in, first out
            support[place % 80] = row
            place += 1

        before = method.queue.keys.clone()
        assert step(method, batch, lr, number / 4) == pytest.approx(loss.item(), rel=1e-9)
        # no embedding found itself
        for z in (z1, z2):
            own = F.normalize(z.detach(), dim=1)
            assert not (before[:, None] - own).abs().sum(2).lt(1e-6).any()
        torch.testing.assert_close(method.queue.keys, torch.stack(support))
        same([method.backbone, method.projector, method.predictor], [*f, g])


# Two networks without negatives -------------------------------------------------------------------


def test_byol_replays_its_algorithm():
    method = build("byol", hidden_dim=32, output_dim=16, momentum=0.9).double()
    online = nn.Sequential(*copies(method.backbone, method.projector))
    predictor, target = *copies(method.predictor), *copies(online)
    lr, steps = 0.05, 4
    for number in range(3):
        batch = batch_in_float64("byol", step=number)
        v1, v2 = batch.views
        # eq. 2 and 3 of arXiv 2006.07733 and the target's update, with its growing tau
        loss = 0
        for a, b in ((v1, v2), (v2, v1)):
            q = predictor(online(a))
            with torch.no_grad():
                z = target(b)
            loss = loss + (F.normalize(q, dim=1) - F.normalize(z, dim=1)).square().sum(1).mean()
        loss.backward()
        update([online, predictor], lr)
        average([target], [online], half_cosine(0.9, number / steps))

        assert step(method, batch, lr, number / steps) == pytest.approx(loss.item(), rel=1e-9)
        same([method.backbone, method.projector, method.predictor], [*online, predictor])
        same([*method.teacher], [*target])


def test_simsiam_replays_algorithm_1_with_a_constant_rate_of_the_predictor():
    """Eq. 4 of arXiv 2011.10566; section 4.2: the predictor's rate does not decay."""
    method = build("simsiam").double()
    f, h = nn.Sequential(*copies(method.backbone, method.projector)), *copies(method.predictor)
    config = OptimizerConfig(name="sgd", lr=0.1, momentum=0, weight_decay=0)
    optimizer = build_optimizer(method, config, 0.1, method.constant_lr)

    def distance(p: Tensor, z: Tensor) -> Tensor:
        z = z.detach()
        return -(F.normalize(p, dim=1) * F.normalize(z, dim=1)).sum(1).mean()

    for number, factor in enumerate((1.0, 0.5, 0.1)):
        batch = batch_in_float64("simsiam", step=number)
        z1, z2 = (f(x) for x in batch.views)
        p1, p2 = h(z1), h(z2)
        loss = distance(p1, z2) / 2 + distance(p2, z1) / 2
        loss.backward()
        update([f], 0.1 * factor)
        update([h], 0.1)

        ours = method(batch).loss
        ours.backward()
        set_rates(optimizer, 0.1, factor, 0.0)
        optimizer.step()
        optimizer.zero_grad()
        assert ours.item() == pytest.approx(loss.item(), rel=1e-9)
        same([method.backbone, method.projector, method.predictor], [*f, h])


@pytest.mark.parametrize("centre", ["large", "all"])
def test_lejepa_replays_algorithm_2(centre):
    """Of arXiv 2511.08544, where all views and the centres have gradients; and its later code."""
    later = {} if centre == "large" else {"knots": 33, "t_max": 3.0, "centre": "all"}
    keys = {"directions": 3, "output_dim": 8, "sigreg_weight": 0.2}
    method = build("lejepa", **keys, **later).double()
    f = nn.Sequential(*copies(method.backbone, method.projector))
    for number in range(3):
        batch = batch_in_float64("lejepa", 5, number)
        emb = f[1](torch.cat(crops(f[0], batch.views))).split(5)
        slices = directions(batch.keys.seed, number, 8, 3).double()
        how = (17, 5.0) if centre == "large" else (33, 3.0)
        sigreg = sum(naive_sigreg(z, slices, *how) for z in emb) / len(emb)
        large = 2 if centre == "large" else len(emb)
        loss = (1 - 0.2) * naive_centre_distance(emb, large) + 0.2 * sigreg
        loss.backward()
        update([f], 0.1)
        assert step(method, batch, 0.1, number / 4) == pytest.approx(loss.item(), rel=1e-9)
        same([method.backbone, method.projector], [*f])


# Prototypes and distillation ----------------------------------------------------------------------


def test_swav_replays_algorithm_1():
    """Of arXiv 2006.09882, with the queue for small batches and prototypes frozen at first."""
    keys = {"queue_size": 64, "queue_start": 0.25, "freeze_prototypes": 0.2}
    method = build("swav", **keys).double()
    method._normalise()  # anew in float64
    f, projector = copies(method.backbone, method.projector)
    weight = method.prototypes.weight.detach().clone().requires_grad_()  # C, (K, D)
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(12).double())
    earlier: list[list[Tensor]] = [[], []]  # of each large view, at most 64
    lr, steps, t = 0.1, 8, 0.1
    was_used = []
    for number in range(7):
        batch, progress = batch_in_float64("swav", step=number), number / steps
        z = F.normalize(projector(torch.cat(crops(f, batch.views))), dim=1).split(32)
        scores = [x @ weight.T for x in z]
        codes = []
        for view in range(2):
            block = scores[view].detach()
            if len(earlier[view]) == 64:
                block = torch.cat([torch.stack(earlier[view]) @ weight.detach().T, block])
            was_used.append(len(block) > 32)
            codes.append(naive_sinkhorn(block, 0.05, 3)[-32:])
        pairs = [(i, v) for i in range(2) for v in range(len(scores)) if v != i]
        loss = sum(cross_entropy(codes[i], scores[v], t).mean() for i, v in pairs) / len(pairs)
        loss.backward()
        if progress < 0.2:
            weight.grad = None
        update([f, projector], lr)
        sgd([weight], lr)
        with torch.no_grad():
            weight.copy_(F.normalize(weight, dim=1))
        if progress >= 0.25:
            for view in range(2):
                earlier[view] = (earlier[view] + list(z[view].detach()))[-64:]

        before = method.prototypes.weight.clone()
        assert step(method, batch, lr, progress) == pytest.approx(loss.item(), rel=1e-9)
        same([method.backbone, method.projector], [f, projector])
        torch.testing.assert_close(method.prototypes.weight, weight, rtol=1e-8, atol=1e-10)
        moved = (method.prototypes.weight - before).abs().max()
        assert (moved > 1e-6) == (progress >= 0.2)
        for queue, rows in zip(method.queues, earlier, strict=True):
            held = {tuple(row.tolist()) for row in queue.keys.float()}
            assert all(tuple(row.tolist()) in held for row in map(Tensor.float, rows))
    assert was_used == [False] * 8 + [True] * 6  # two batches of 32 fill it, from step 2 on


def test_dino_replays_algorithm_1():
    steps, lr, t_s, m = 8, 0.1, 0.1, 0.8
    method = build(
        "dino",
        momentum=0.9,
        center_momentum=m,
        freeze_last_layer=0.2,
        final_teacher_temperature=0.07,
        temperature_warmup=0.5,
    ).double()
    method.teacher_temperature.fill_(0.04)  # which float32 rounded
    g_s = nn.Sequential(*copies(method.backbone, method.head))
    (g_t,) = copies(g_s)
    center = torch.zeros(16).double()
    for number in range(6):
        batch, progress = batch_in_float64("dino", step=number), number / steps
        # the temperature of a step is set at the end of the one before
        t_t = 0.04 + (0.07 - 0.04) * min(1.0, max(0, number - 1) / steps / 0.5)
        # Algorithm 1 of arXiv 2104.14294, with the crops of eq. 3
        s = crops(g_s, batch.views)
        with torch.no_grad():
            t = crops(g_t, batch.views[:2])
        terms = []
        for i in range(2):
            target = F.softmax((t[i] - center) / t_t, dim=1)
            terms += [cross_entropy(target, x, t_s).mean() for v, x in enumerate(s) if v != i]
        loss = sum(terms) / len(terms)
        loss.backward()
        last = g_s[1][-1].weight
        if progress < 0.2:
            last.grad = None
        update([g_s], lr)
        average([g_t], [g_s], half_cosine(0.9, progress))
        center = m * center + (1 - m) * torch.cat(t).mean(0)

        before = method.head[-1].weight.clone()
        assert step(method, batch, lr, progress) == pytest.approx(loss.item(), rel=1e-9)
        same([method.backbone, method.head, *method.teacher], [*g_s, *g_t])
        torch.testing.assert_close(method.center.value, center)
        moved = (method.head[-1].weight - before).abs().max()
        assert (moved > 1e-6) == (progress >= 0.2)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("name", ["dino", "ibot", "swav"])
def test_optimizers_leave_a_frozen_last_layer_alone(name, optimizer):
    """A gradient of zero would still be decayed, and moved by earlier moments."""
    freeze = "freeze_prototypes" if name == "swav" else "freeze_last_layer"
    method = build(name, **{freeze: 0.5})
    last = method.prototypes if name == "swav" else method.head[-1]
    config = OptimizerConfig(name=optimizer, lr=1e-2, weight_decay=0.1)
    optimizer = build_optimizer(method, config, config.lr)
    for number, frozen in enumerate((True, True, False)):
        before = last.weight.clone()
        method(batch_of(name, step=number)).loss.backward()
        method.after_backward(number / 4)
        optimizer.step()
        assert torch.equal(last.weight, before) == frozen
        optimizer.zero_grad()
        method.after_step(number / 4)


# Masked patches -----------------------------------------------------------------------------------


def tokens_of(
    backbone: nn.Module, x: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None
) -> Tensor:
    """(B, prefix + N, D) as in the ViT paper; masked patches are replaced before positions."""
    tokens = backbone.patch_embed.proj(x).flatten(2).transpose(1, 2)
    if mask is not None:
        tokens = tokens * ~mask[..., None] + mask_token * mask[..., None]
    if backbone.cls_token is not None:
        tokens = torch.cat([backbone.cls_token.expand(len(x), -1, -1), tokens], dim=1)
    tokens = tokens + backbone.pos_embed
    for block in backbone.blocks:
        tokens = block(tokens)
    return backbone.norm(tokens)


def class_or_mean(backbone: nn.Module, tokens: Tensor) -> Tensor:
    return tokens[:, 0] if backbone.cls_token is not None else tokens.mean(1)


@pytest.mark.parametrize("encoder", ["vit", "class token"])
def test_ibot_replays_algorithm_1(encoder):
    steps, lr, t_s, m = 8, 0.1, 0.1, 0.8
    keys = {"momentum": 0.9, "center_momentum": m, "freeze_last_layer": 0.2}
    keys["final_teacher_temperature"] = 0.04
    method = build_on(encoder, "ibot", **keys, patch_weight=0.7)
    method.teacher_temperature.fill_(0.04)
    f_s, h_s = copies(method.backbone, method.head)
    f_t, h_t = copies(f_s, h_s)
    mask_token = method.mask_token.detach().clone().requires_grad_()
    center, patch_center = torch.zeros(16).double(), torch.zeros(16).double()
    prefix = 1 if encoder == "class token" else 0
    for number in range(3):
        progress, batch = number / steps, batch_in_float64("ibot", step=number)
        masks = large_masks(batch, f_s, 0.5, (0.1, 0.5)).chunk(2)
        assert any(mask.any() for mask in masks)
        assert not all(mask.any(1).all() for mask in masks)
        # Algorithm 1 of arXiv 2111.07832, with small crops as in DINO
        student, patches = [], []
        for u, mask in zip(batch.views[:2], masks, strict=True):
            tokens = tokens_of(f_s, u, mask, mask_token)
            student.append(h_s(class_or_mean(f_s, tokens)))
            patches.append(h_s(tokens[:, prefix:]))
        student += [h_s(f_s(x)) for x in batch.views[2:]]
        with torch.no_grad():
            seen = [tokens_of(f_t, u) for u in batch.views[:2]]
            teacher = [h_t(class_or_mean(f_t, tokens)) for tokens in seen]
            teacher_patches = [h_t(tokens[:, prefix:]) for tokens in seen]
        terms = []
        for i in range(2):
            target = F.softmax((teacher[i] - center) / 0.04, dim=-1)
            terms += [cross_entropy(target, x, t_s).mean() for v, x in enumerate(student) if v != i]
        l_mim = []
        for i in range(2):
            target = F.softmax((teacher_patches[i] - patch_center) / 0.04, dim=-1)
            h = cross_entropy(target, patches[i], t_s)  # (B, N)
            per_image = [
                row[mask].mean() if mask.any() else row.sum() * 0
                for row, mask in zip(h, masks[i], strict=True)
            ]
            l_mim.append(torch.stack(per_image).mean())
        loss = sum(terms) / len(terms) + 0.7 * (l_mim[0] + l_mim[1]) / 2
        loss.backward()
        if progress < 0.2:
            h_s[-1].weight.grad = None
        update([f_s, h_s], lr)
        sgd([mask_token], lr)
        average([f_t, h_t], [f_s, h_s], half_cosine(0.9, progress))
        center = m * center + (1 - m) * torch.cat(teacher).mean(0)
        patch_center = m * patch_center + (1 - m) * torch.cat(teacher_patches).mean((0, 1))

        assert step(method, batch, lr, progress) == pytest.approx(loss.item(), rel=1e-9)
        torch.testing.assert_close(method.center.value, center)
        torch.testing.assert_close(method.patch_center.value, patch_center)
        torch.testing.assert_close(method.mask_token, mask_token)
        assert method.mask_token.abs().max() > 0
        # timm resizes positions for small views in float32
        same([method.backbone, method.head, *method.teacher], [f_s, h_s, f_t, h_t], 1e-8)


def through(network: nn.Module, tokens: Tensor) -> Tensor:
    """The blocks and the last normalisation."""
    for block in network.blocks:
        tokens = block(tokens)
    return network.norm(tokens)


def embedded(backbone: nn.Module, x: Tensor) -> Tensor:
    """(B, N, D) patches with their positions."""
    prefix = backbone.num_prefix_tokens
    return backbone.patch_embed.proj(x).flatten(2).transpose(1, 2) + backbone.pos_embed[:, prefix:]


def test_ijepa_replays_section_3():
    """Image by image and block by block, so that nothing is padded."""
    method = build("ijepa", momentum=0.9, targets=3).double()
    f, g = copies(method.backbone, method.predictor)
    (f_bar,) = copies(f)
    steps, lr, n, c = 4, 0.1, 6, method.config
    for number in range(3):
        batch = batch_in_float64("ijepa", n, number)
        contexts, blocks = context_and_targets(
            batch.keys, (4, 4), 3, c.target_scale, c.target_ratio, c.context_scale
        )
        (x,) = batch.views
        tokens = embedded(f, x)
        with torch.no_grad():
            s_y = through(f_bar, embedded(f_bar, x))
            s_y = (s_y - s_y.mean(-1, keepdim=True)) / (
                s_y.var(-1, keepdim=True, unbiased=False) + 1e-5
            ).sqrt()
        distances = []
        for i in range(n):
            s_x = through(f, tokens[i : i + 1, contexts[i]])
            for block in blocks[i]:
                context = g.embed(s_x) + g.positions[contexts[i]]
                asked = g.mask_token + g.positions[block]
                out = through(g, torch.cat([context, asked[None]], dim=1))
                predicted = g.project(out[0, -int(block.sum()) :])
                distances.append(F.smooth_l1_loss(predicted, s_y[i, block]))
        loss = sum(distances) / (n * 3)
        loss.backward()
        update([f, g], lr)
        average([f_bar], [f], 0.9 + (1 - 0.9) * number / steps)

        # its targets are normalised in float32
        assert step(method, batch, lr, number / steps) == pytest.approx(loss.item(), rel=1e-6)
        same([method.backbone, method.predictor, *method.teacher], [f, g, f_bar], 1e-6)


@pytest.mark.parametrize("encoder", ["vit", "class token"])
def test_mae_is_section_3_image_by_image(encoder):
    method = build_on(encoder, "mae")
    f, g = copies(method.backbone, method.decoder)
    for number in range(3):
        batch = batch_in_float64("mae", 6, number)
        (x,) = batch.views
        masks = random_mask(batch.keys, 16, 12)
        errors = []
        for image, mask in zip(x, masks, strict=True):
            tokens = embedded(f, image[None])[0, ~mask]
            prefix = f.num_prefix_tokens
            if prefix:
                tokens = torch.cat([f.cls_token[0] + f.pos_embed[0, :1], tokens])
            latent = g.embed(through(f, tokens[None]))[0]
            full, seen = [*latent[:prefix]], iter(latent[prefix:])
            for place in range(16):
                token = g.mask_token if mask[place] else next(seen)
                full.append(token + g.positions[place])
            painted = g.pixels(g.norm(g.blocks(torch.stack(full)[None])))[0, prefix:]
            for place in mask.nonzero().flatten().tolist():
                top, left = place // 4 * 4, place % 4 * 4
                patch = image[:, top : top + 4, left : left + 4].permute(1, 2, 0).flatten()
                patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
                errors.append((painted[place] - patch).square().mean())
        loss = sum(errors) / len(errors)
        loss.backward()
        update([f, g], 0.1)
        assert len(errors) == 6 * 12
        assert step(method, batch, 0.1, number / 4) == pytest.approx(loss.item(), rel=1e-9)
        same([method.backbone, method.decoder], [f, g])


def test_simmim_is_section_3():
    method = build("simmim").double()
    f, g = copies(method.backbone, method.decoder)
    mask_token = method.mask_token.detach().clone().requires_grad_()
    for number in range(3):
        batch = batch_in_float64("simmim", 8, number)
        (x,), mask = batch.views, method.mask(batch)
        painted = g(tokens_of(f, x, mask, mask_token))
        error, pixels = 0, 0
        for i, place in mask.nonzero().tolist():
            top, left = place // 4 * 4, place % 4 * 4
            patch = x[i, :, top : top + 4, left : left + 4].permute(1, 2, 0).flatten()
            error = error + (painted[i, place] - patch).abs().sum()
            pixels += 48
        loss = error / pixels
        loss.backward()
        update([f, g], 0.1)
        sgd([mask_token], 0.1)
        assert step(method, batch, 0.1, number / 4) == pytest.approx(loss.item(), rel=1e-9)
        same([method.backbone, method.decoder], [f, g])
        torch.testing.assert_close(method.mask_token, mask_token)
