"""PHI-S: features of mean 0 and the same variance in each dimension, by one rotation and scale."""

import torch
from torch import Tensor, nn

from selfsight import distributed
from selfsight.errors import UserError


class PhiS(nn.Module):
    """PCA-Hadamard isotropic standardisation: y = H U^T (x - mean) / alpha.

    U holds the eigenvectors of the covariance of x, and alpha^2 is the mean of its eigenvalues. H
    is a Hadamard matrix with unit rows: it mixes all components equally, so that each dimension of
    y has variance 1 while no distance is distorted. Until `fit`, y is x.

    Source: PHI-S, section 3 (arXiv 2410.01680).

    >>> standardise = PhiS(4)
    >>> x = torch.randn(1000, 4) * torch.tensor([9.0, 1, 1, 0.1]) + 5
    >>> standardise.add(x)
    >>> standardise.fit()
    >>> standardise(x).var(0, correction=0)
    tensor([1.0000, 1.0000, 1.0000, 1.0000])
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        hadamard(width)  # if there is none, now is the time to say so
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.eye(width))
        self._added: tuple[int, Tensor | int] = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        with torch.autocast(x.device.type, enabled=False):
            return (x.to(self.mean.dtype) - self.mean) @ self.matrix.T

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Vectors (..., D) of this rank, whose mean and covariance `fit` will use."""
        x = x.detach().flatten(0, -2)
        x = (x.cpu() if x.device.type == "mps" else x).double()  # which has no float64
        sums = torch.cat([x.T @ x, x.sum(0, keepdim=True)])
        count, before = self._added
        self._added = count + len(x), sums + before

    @torch.no_grad()
    def fit(self) -> None:
        """Standardise by the vectors that all ranks added."""
        count, sums = self._added
        self._added = 0, 0
        sums = distributed.all_sum(sums) / distributed.all_sum(sums.new_tensor(float(count)))
        mean = sums[-1]
        covariance = sums[:-1] - mean[:, None] * mean
        # on the CPU, where eigenvectors do not depend on the device
        values, vectors = torch.linalg.eigh(covariance.cpu())
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        vectors = vectors * largest.sign()  # or rounding would decide the signs
        alpha = values.clamp_min(0).mean().sqrt().clamp_min(1e-12)
        self.mean.copy_(mean)
        self.matrix.copy_(hadamard(len(mean)).double() @ vectors.T / alpha)


class Match(nn.Module):
    """The student's head, as in AM-RADIO, and the standardisation of the teacher's features."""

    def __init__(self, width: int, output: int, hidden: int, standardise: bool) -> None:
        super().__init__()
        layers = nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU()
        self.head = nn.Sequential(*layers, nn.Linear(hidden, output))
        self.standardise = PhiS(output) if standardise else nn.Identity()


def hadamard(n: int) -> Tensor:
    """(n, n) an orthogonal matrix whose entries are all +/- n^-0.5.

    By the constructions of Sylvester (doubling) and Paley (for q + 1 with a prime q = 3 mod 4).
    Raises: UserError for a width for which these have none.

    >>> hadamard(2) * 2**0.5
    tensor([[ 1.,  1.],
            [ 1., -1.]])
    """
    core, doublings = n, 0
    while core % 2 == 0 and not _is_paley(core):
        core, doublings = core // 2, doublings + 1
    if core > 1 and not _is_paley(core):
        raise UserError(
            f"a teacher of {n} features: no Hadamard matrix of this width is known here; set "
            f"method.standardise=false"
        )
    matrix = _paley(core) if core > 1 else torch.ones(1, 1)
    for _ in range(doublings):
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix / n**0.5


def _is_paley(n: int) -> bool:
    q = n - 1
    return q % 4 == 3 and all(q % d for d in range(2, int(q**0.5) + 1))


def _paley(n: int) -> Tensor:
    """I + S, where the inner part of S says which differences are squares modulo q = n - 1."""
    q = n - 1
    squares = {i * i % q for i in range(1, q)}
    character = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)])
    at = torch.arange(q)
    matrix = torch.ones(n, n)
    matrix[1:, 0] = -1
    matrix[1:, 1:] = character[(at[:, None] - at) % q]
    matrix.fill_diagonal_(1)
    return matrix
