# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own method in thirty lines
#
# A method is a class: what is trained, and how a batch becomes a loss. The one below is *Alignment and Uniformity* (Wang and Isola, arXiv
# 2005.10242): views of an image attract each other, and all images spread over the sphere.

# %%
import torch
import torch.nn.functional as F

import selfsight
from selfsight import distributed, heads
from selfsight.losses import full_precision

epochs = 10


# %%
class AlignUniform(selfsight.Method):
    """Alignment and Uniformity on the Hypersphere (Wang and Isola, ICML 2020, 2005.10242)."""

    class Config(selfsight.MethodConfig):
        width: int = 128
        uniformity: float = 1.0  # weight of the second term

    def __init__(self, backbone, config=None):
        super().__init__(backbone, config)
        self.projector = heads.mlp(backbone.num_features, 256, self.config.width)

    def forward(self, batch):
        x1, x2 = batch.views
        h1, h2 = self.backbone(x1), self.backbone(x2)  # (B, D)
        z1, z2 = self.projector(h1), self.projector(h2)  # (B, width)
        loss = align_uniform(z1, z2, self.config.uniformity)
        return selfsight.Output(loss, features=h1, embeddings=(z1, z2))


@full_precision
def align_uniform(z1, z2, weight):
    z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    loss = (z1 - z2).square().sum(1).mean()
    for z in (z1, z2):
        everyone = distributed.gather(z)  # the images of all processes
        loss = loss + weight / 2 * torch.pdist(everyone).square().mul(-2).exp().mean().log()
    return loss


# %% [markdown]
# Does it keep what the engine relies on: gradients where they belong, state that survives a checkpoint, two processes that equal one?

# %%
from selfsight.testing import BrokenContract, check_method

check_method(AlignUniform)


# %% [markdown]
# What a mistake looks like: this one compares only the images of its own process.


# %%
class Alone(AlignUniform):
    def forward(self, batch):
        x1, x2 = batch.views
        h = self.backbone(x1)
        z1, z2 = self.projector(h), self.projector(self.backbone(x2))
        z1, z2 = z1.float(), z2.float()
        loss = (z1 - z2).square().mean() - torch.pdist(z1).mean()  # no gather
        return selfsight.Output(loss, features=h)


try:
    check_method(Alone)
except BrokenContract as error:
    print(str(error).splitlines()[0])

# %% [markdown]
# Training, with a hook that watches how far the images are spread, beside SimCLR with the same encoder, data and seed.


# %%
def spread(state):
    """How many directions the weights of the last layer use."""
    weight = list(state.method.projector.parameters())[-2]
    return {"directions": float(torch.linalg.matrix_rank(weight.float()))}


run = selfsight.pretrain(
    "digits/simclr",
    run="runs/align",
    method=AlignUniform,
    epochs=epochs,
    hooks=[selfsight.every(spread, epochs=2)],
)
other = selfsight.pretrain("digits/simclr", run="runs/simclr", epochs=epochs)
run

# %%
{
    name: round(100 * selfsight.knn(r, pixels=False)[0].metrics["k20"], 1)
    for name, r in (("Align and Uniform", run), ("SimCLR", other))
}
