"""The online probe: a linear classifier that is trained on the features while the encoder is. Its
gradient does not reach the encoder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight import distributed
from selfsight.metrics import top_k

LEARNING_RATE = 2e-3  # AdamW on standardised features


class OnlineProbe(nn.Module):
    """Standardised features -> classes, with an optimizer of its own.

    Its accuracy is that on augmented training views, before it learns from them: it shows how
    training goes, and is no result of an evaluation.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features, affine=False)
        self.linear = nn.Linear(features, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.optimizer = torch.optim.AdamW(self.linear.parameters(), LEARNING_RATE, weight_decay=0)

    def learn(self, features: Tensor, labels: Tensor) -> Tensor:
        """Train one step. Returns: the top-1 accuracy on the batch before the step, a scalar."""
        with torch.autocast(features.device.type, enabled=False):
            scores = self.linear(self.norm(features.detach().float()))
            self.optimizer.zero_grad()
            F.cross_entropy(scores, labels).backward()
        for parameter in self.linear.parameters():
            parameter.grad = distributed.mean(parameter.grad)
        self.optimizer.step()
        return top_k(scores.detach(), labels, 1)
