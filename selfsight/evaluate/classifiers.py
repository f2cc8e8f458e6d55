"""Classifiers on a pretrained encoder, as methods that `fit` trains: frozen, and fine-tuned."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from selfsight import distributed, randomness
from selfsight.methods.method import Batch, Method, MethodConfig, Output
from selfsight.train.layers import layer_rates


class Classifier(Method):
    """One or several linear heads on an encoder's features; trained by the mean over the views.

    Attributes:
        heads: each (B, D) features -> (B, C) scores.
    """

    view_count = (1, None)
    needs = ("labels",)
    remedy = None  # the collapse monitor is off: pretraining decided what the features are

    def scores(self, x: Tensor) -> list[Tensor]:
        """(B, C, h, w) -> for each head (B, C)."""
        h = self.backbone(x)
        return [head(h) for head in self.heads]


class LinearHeads(Classifier):
    """Linear classifiers on a frozen encoder in eval mode, which learn side by side.

    Each has its own learning rate; as no gradient joins them, each is trained as if alone. Of one
    pass over the data several rates can so be compared, as in DINOv2 (arXiv 2304.07193).
    """

    class Config(MethodConfig):
        name: Literal["heads"] = "heads"
        lr_factors: tuple[Annotated[float, Field(gt=0)], ...] = Field((1.0,), min_length=1)
        batch_norm: bool = False  # without weights, before the head, as in MAE's linear probe
        label_smoothing: float = Field(0.0, ge=0, lt=1)

    def __init__(self, backbone: nn.Module, config: Config, classes: int) -> None:
        super().__init__(backbone.requires_grad_(False), config)
        width = backbone.num_features
        self.heads = nn.ModuleList(self._head(width, classes) for _ in config.lr_factors)

    def _head(self, width: int, classes: int) -> nn.Module:
        linear = nn.Linear(width, classes)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        norm = [nn.BatchNorm1d(width, affine=False)] if self.config.batch_norm else []
        return nn.Sequential(*norm, linear)

    def train(self, mode: bool = True) -> "LinearHeads":
        super().train(mode)
        self.backbone.eval()
        return self

    def rate(self, name: str) -> float:
        return self.config.lr_factors[int(name.split(".")[1])]

    def forward(self, batch: Batch) -> Output:
        losses = []
        for x in batch.views:
            with torch.no_grad():
                h = self.backbone(x)  # (B, D)
            losses += [self._loss(head(h), batch.labels) for head in self.heads]
        return Output(sum(losses) / len(batch.views), features=h)

    def _loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        smoothing = self.config.label_smoothing
        return F.cross_entropy(scores.float(), labels, label_smoothing=smoothing)


class FineTuned(Classifier):
    """The whole network, with what helps it against overfitting.

    mixup (arXiv 1710.09412) and CutMix (1905.04899) are timm's, one of them a batch: each image is
    mixed with its mirror place in the batch of all ranks, in a proportion that they share.
    Layer-wise decay: a layer d layers below the head learns at layer_decay^d of the rate (BEiT,
    2106.08254).
    """

    class Config(MethodConfig):
        name: Literal["finetuned"] = "finetuned"
        layer_decay: float = Field(1.0, gt=0, le=1)
        label_smoothing: float = Field(0.0, ge=0, lt=1)
        mixup: float = Field(0.0, ge=0)  # alpha of its Beta distribution; 0: none
        cutmix: float = Field(0.0, ge=0)  # the same
        mix_probability: float = Field(1.0, ge=0, le=1)  # of either, for a batch
        switch_probability: float = Field(0.5, ge=0, le=1)  # of CutMix where both are asked for

    def __init__(self, backbone: nn.Module, config: Config, classes: int) -> None:
        super().__init__(backbone.requires_grad_(True), config)
        head = nn.Linear(backbone.num_features, classes)
        nn.init.zeros_(head.weight)  # all scores start equal
        nn.init.zeros_(head.bias)
        self.heads = nn.ModuleList([head])
        self._rate = layer_rates(backbone, config.layer_decay)
        self._mix = self._mixing(classes) if config.mixup or config.cutmix else None

    def _mixing(self, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        from timm.data import Mixup

        c = self.config
        return Mixup(
            c.mixup,
            c.cutmix,
            prob=c.mix_probability,
            switch_prob=c.switch_probability,
            label_smoothing=c.label_smoothing,
            num_classes=classes,
        )

    def rate(self, name: str) -> float:
        return self._rate(name)

    def forward(self, batch: Batch) -> Output:
        losses = []
        for x in batch.views:
            x, target = self._mixed(x, batch)
            h = self.backbone(x)  # (B, D)
            smoothing = 0.0 if self._mix else self.config.label_smoothing
            scores = self.heads[0](h).float()
            losses.append(F.cross_entropy(scores, target, label_smoothing=smoothing))
        return Output(sum(losses) / len(losses), features=h)

    def _mixed(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images, and labels (B,) or, where they are mixed, (B, C)."""
        if self._mix is None or not self.training:
            return x, batch.labels
        count, both = len(x), (x, batch.labels)
        # timm mixes each image with that at the mirror place of these; it refuses odd numbers
        if distributed.world_size() > 1 or count % 2:
            both = tuple(torch.cat([own, distributed.mirror(own)]) for own in both)
        with _numpy_seeded(randomness.key(randomness.MIX, batch.keys.seed, batch.step)):
            mixed, target = self._mix(both[0].clone(), both[1])
        return mixed[:count], target[:count]


@contextmanager
def _numpy_seeded(key: int) -> Iterator[None]:
    """Seed NumPy's global generator, which timm draws from; restore it at the end."""
    before = np.random.get_state()
    np.random.seed(key % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)
