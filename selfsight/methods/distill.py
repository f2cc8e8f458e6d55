"""Distillation: a student of any kind learns the features of a frozen teacher."""

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from selfsight.errors import UserError
from selfsight.losses import feature_distance, queue_similarity
from selfsight.methods.dense import dense, tried
from selfsight.methods.frozen import FrozenTeacher
from selfsight.methods.method import Backbone, Batch, Method, MethodConfig, Output
from selfsight.methods.phi_s import Match
from selfsight.methods.queue import Queue


class Distill(Method):
    """Agglomerative Vision Foundation Model (Ranzinger et al., CVPR 2024, 2312.06709), AM-RADIO,
    with one teacher, whose features are standardised by PHI-S (2410.01680). With `queue_weight`
    also SEED (2101.04731): similarities to the features of earlier images.

    differs: views are augmented, and teacher and student see the same ones (2106.05237).

    >>> import timm, torch
    >>> student, teacher = (timm.create_model("resnet18", num_classes=0) for _ in range(2))
    >>> method = Distill(student, teacher=FrozenTeacher(teacher))
    >>> method(torch.rand(4, 3, 64, 64)).loss.backward()
    """

    default_views = "distill"
    view_count = (1, None)
    needs = ("frozen teacher",)
    frozen_teacher = "required"

    class Config(MethodConfig):
        name: Literal["distill"] = "distill"
        hidden_dim: int = Field(default=2048, ge=1)  # hidden width of the heads
        image_weight: float = Field(default=1.0, ge=0)  # of the loss on features of images
        patch_weight: float = Field(default=1.0, ge=0)  # of the loss on features of patches
        smooth_l1: float = Field(default=0.1, ge=0, le=1)  # its share of smooth L1; cosine the rest
        standardise: bool = True  # the teacher's features by PHI-S
        standardise_images: int = Field(default=2048, ge=2)  # that it is measured on at the start
        queue_weight: float = Field(default=0.0, ge=0)  # of SEED's loss
        queue_size: int = Field(default=65536, ge=1)  # K
        temperature: float = Field(default=0.2, gt=0)  # of SEED, the student's
        teacher_temperature: float = Field(default=0.01, gt=0)

    def __init__(
        self,
        backbone: Backbone,
        config: Config | None = None,
        teacher: FrozenTeacher | None = None,
        sample: Tensor | None = None,
    ) -> None:
        """Args:
        sample: (1, 3, s, s) images of the views' size, by which widths are measured.
        """
        config = config or self.Config()
        super().__init__(backbone, config)
        if teacher is None:
            raise UserError(
                "teacher.weights=null: distill needs one; name the weights of a teacher"
            )
        self.teacher = teacher
        sample = torch.zeros(1, 3, 224, 224) if sample is None else sample
        student, theirs = tried(backbone, sample), teacher(sample)
        how = config.hidden_dim, config.standardise
        self.image = Match(student.image.shape[1], theirs.image.shape[1], *how)
        if config.patch_weight:
            for who, found in (("student", student), ("teacher", theirs)):
                if found.places is None:
                    raise UserError(
                        f"method.patch_weight={config.patch_weight}: the {who} gives no features "
                        f"of patches; set method.patch_weight=0"
                    )
            self.patch = Match(student.places.shape[2], theirs.places.shape[2], *how)
        if config.queue_weight:
            self.queue = Queue(config.queue_size, theirs.image.shape[1])

    @property
    def looks_at(self) -> int:
        return self.config.standardise_images if self.config.standardise else 0

    def look(self, batches: Iterable[Batch]) -> None:
        matches = [self.image, self.patch] if self.config.patch_weight else [self.image]
        for batch in batches:
            for view, x in enumerate(batch.views):
                targets = self.teacher.of(x, batch.index, view)[: len(matches)]
                for match, y in zip(matches, targets, strict=True):
                    match.standardise.add(y)
        for match in matches:
            match.standardise.fit()

    def forward(self, batch: Batch) -> Output:
        c, losses, features, embeddings = self.config, [], [], []  # an item a view
        for view, x in enumerate(batch.views):
            h, y = dense(self.backbone, x), self.teacher.of(x, batch.index, view)
            p, wanted = self.image.head(h.image), self.image.standardise(y.image)  # (B, E)
            loss = c.image_weight * feature_distance(p, wanted, 0.0)
            if c.patch_weight:
                patches = h._replace(places=self.patch.head(h.places)).at(y.grid)  # (B, N, E)
                target = self.patch.standardise(y.places)
                loss = loss + c.patch_weight * feature_distance(patches, target, c.smooth_l1)
            if c.queue_weight:
                t = c.temperature, c.teacher_temperature
                loss = loss + c.queue_weight * queue_similarity(p, wanted, self.queue.keys, *t)
                if self.training:
                    self.queue.stage(wanted)
            losses.append(loss)
            features.append(h.image)
            embeddings.append(p)
        loss = torch.stack(losses).mean()
        return Output(loss, features=features[0], embeddings=tuple(embeddings[:2]))

    def after_step(self, progress: float) -> None:
        if self.config.queue_weight:
            self.queue.commit()
