"""LeJEPA: views predict the mean of the large views; embeddings are made Gaussian. No teacher."""

from typing import Literal

import torch
from pydantic import Field, field_validator

from selfsight.config import added
from selfsight.losses import centre_distance, sigreg
from selfsight.methods.heads import encode, mlp
from selfsight.methods.method import Backbone, Batch, Method, MethodConfig, Output
from selfsight.randomness import directions


class LeJEPA(Method):
    """Provable and Scalable Self-Supervised Learning Without the Heuristics (Balestriero and LeCun,
    arXiv 2511.08544), algorithm 2. The first two views are the large ones.

    >>> import timm, torch
    >>> method = LeJEPA(timm.create_model("resnet18", num_classes=0))
    >>> method(*torch.rand(2, 4, 3, 32, 32)).loss.backward()
    """

    default_views = "lejepa"
    view_count = (2, None)
    needs = ("multi-crop",)
    couples_images = True
    remedy = "raise method.sigreg_weight, lower optimizer.lr"

    class Config(MethodConfig):
        name: Literal["lejepa"] = "lejepa"
        hidden_dim: int = Field(default=2048, ge=1)  # width of the projector's two hidden layers
        output_dim: int = Field(default=64, ge=1)  # width of z
        sigreg_weight: float = Field(
            default=0.05, ge=0, le=1
        )  # lambda; of the prediction 1 - lambda
        directions: int = Field(default=1024, ge=1)  # random directions of a step
        knots: int = Field(default=17, ge=3)  # points of the integral over [-t_max, t_max]; odd
        t_max: float = added(5.0, gt=0)  # end of the integral
        # the views whose mean all views predict; the authors' later code: all
        centre: Literal["large", "all"] = added("large")

        @field_validator("knots")
        @classmethod
        def _odd(cls, knots: int) -> int:
            if knots % 2 == 0:
                raise ValueError(f"knots={knots} is not odd")
            return knots

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        hidden, output = config.hidden_dim, config.output_dim
        self.projector = mlp(backbone.num_features, hidden, hidden, output)

    def forward(self, batch: Batch) -> Output:
        c = self.config
        h = encode(self.backbone, batch.views)  # of each view (B, D)
        z = self.projector(torch.cat(h)).chunk(len(h))  # of each view (B, output_dim)
        prediction = centre_distance(list(z), 2 if c.centre == "large" else len(z))
        a = directions(batch.keys.seed, batch.step, c.output_dim, c.directions).to(z[0].device)
        gauss = torch.stack([sigreg(x, a, c.knots, c.t_max) for x in z]).mean()
        loss = (1 - c.sigreg_weight) * prediction + c.sigreg_weight * gauss
        return Output(loss, features=h[0], embeddings=(z[0], z[1]))
