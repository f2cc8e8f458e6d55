"""SwAV: predict the prototypes that one view is assigned to from the other views."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from selfsight import distributed
from selfsight.losses import sinkhorn, swapped_prediction
from selfsight.methods.heads import encode, mlp
from selfsight.methods.method import Backbone, Batch, Method, MethodConfig, Output
from selfsight.methods.queue import Queue


class SwAV(Method):
    """Unsupervised Learning of Visual Features by Contrasting Cluster Assignments (Caron et al.,
    NeurIPS 2020, 2006.09882), algorithm 1. The first two views are the large ones.

    >>> import timm, torch
    >>> method = SwAV(timm.create_model("resnet18", num_classes=0))
    >>> method(*torch.rand(2, 4, 3, 32, 32)).loss.backward()
    """

    default_views = "swav"
    view_count = (2, None)
    needs = ("multi-crop", "queue")
    couples_images = True
    remedy = "lower method.epsilon or optimizer.lr"

    class Config(MethodConfig):
        name: Literal["swav"] = "swav"
        hidden_dim: int = Field(default=2048, ge=1)  # width of the projector's hidden layer
        output_dim: int = Field(default=128, ge=1)  # width of z
        prototypes: int = Field(default=3000, ge=2)  # K
        temperature: float = Field(default=0.1, gt=0)  # tau of the predictions
        epsilon: float = Field(default=0.05, gt=0)  # softness of the assignments
        iterations: int = Field(default=3, ge=1)  # of Sinkhorn-Knopp
        queue_size: int = Field(default=3840, ge=0)  # stored z of each large view; 0: no queue
        queue_start: float = Field(
            default=0.075, ge=0, le=1
        )  # progress from which it fills: epoch 15 of 200
        freeze_prototypes: float = Field(default=0.005, ge=0, le=1)  # until then: 1 of 200 epochs

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        self.projector = mlp(backbone.num_features, config.hidden_dim, config.output_dim)
        self.prototypes = nn.Linear(config.output_dim, config.prototypes, bias=False)
        size = config.queue_size
        self.queues = nn.ModuleList(Queue(size, config.output_dim) for _ in range(2 if size else 0))
        self._normalise()

    @torch.no_grad()
    def _normalise(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def forward(self, batch: Batch) -> Output:
        h = encode(self.backbone, batch.views)  # of each view (B, D)
        z = [F.normalize(x, dim=1) for x in self.projector(torch.cat(h)).chunk(len(h))]
        scores = [self.prototypes(x) for x in z]  # (B, K)
        targets = [self.assign(number, scores[number].detach()) for number in range(2)]
        if self.training:
            for queue, x in zip(self.queues, z[: len(self.queues)], strict=True):
                queue.stage(x)
        loss = swapped_prediction(scores, targets, self.config.temperature)
        return Output(loss, features=h[0], embeddings=(z[0], z[1]))

    @torch.no_grad()
    def assign(self, view: int, scores: Tensor) -> Tensor:
        """(B, K) soft assignments, balanced over the batch of all ranks and a full queue."""
        b, earlier = len(scores), scores[:0]
        if self.queues and self.queues[view].full():
            # The queue is equal on all ranks, so each rank adds another part of it to the batch.
            share = self.queues[view].keys[distributed.rank() :: distributed.world_size()]
            earlier = self.prototypes(share).to(scores.dtype)
        everything = torch.cat([scores, earlier])
        return sinkhorn(everything, self.config.epsilon, self.config.iterations)[:b]

    def after_backward(self, progress: float) -> None:
        if progress < self.config.freeze_prototypes:
            self.prototypes.weight.grad = None

    def after_step(self, progress: float) -> None:
        self._normalise()
        for queue in self.queues:
            if progress >= self.config.queue_start:
                queue.commit()
            else:
                queue.drop()
