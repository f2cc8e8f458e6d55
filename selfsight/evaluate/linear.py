"""Linear probes on cached features: logistic regression with all labels and with a few.

For N images of C classes with standardised features x (D,), the fit at strength c finds the weights
W (C, D) and biases b (C,) that minimise

    mean over images of  -log softmax(W x + b)[label]   +   |W|^2 / (2 c N)

which is scikit-learn's LogisticRegression(C=c). L-BFGS walks in coordinates V in which the problem
is nearly round: with the correlation matrix of the features U diag(e) U', W = V diag(s) U' and
s = (e / C + 1 / (c N))^(-1/2). This is the inverse root of the curvature where all classes are
equally likely, as in the bound of Boehning (Multinomial logistic regression algorithm, Ann. Inst.
Statist. Math. 44, 1992); the optimum is the same, the way to it a fraction as long.

Features are read chunk by chunk, so they may be float16, mapped from a file and larger than memory.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits
from torch import Tensor

from selfsight.data.labels import hold_out
from selfsight.errors import UserError
from selfsight.evaluate.features import Features, as_tensor, exact_products
from selfsight.evaluate.subsets import draw

STRENGTHS = tuple(10.0**e for e in range(-4, 2))  # c, from strong to weak penalty
VALIDATION = 0.2  # of the training split, class by class
SHOTS, DRAWS = (1, 5), 10
FIXED = 1.0  # strength where there are too few labels to choose it, the same for every encoder
TOLERANCE = 3e-5  # of the largest component of the gradient with respect to V
GAIN = 1e-8  # of the loss in one step; a smaller one is float32's noise
ITERATIONS = 1000  # of L-BFGS at most; it takes 15 to 300
CONSTANT = 1e-6  # a feature with a smaller deviation, relative to its size, counts as constant
CHUNK = 2**20, 2**24  # numbers held at a time: on a CPU (4 MiB stay in its cache), on a GPU
ROWS = 512  # of a chunk at least


@dataclass(frozen=True)
class LinearResult:
    """Accuracies in [0, 1].

    Attributes:
        top1, top5: on the test split, with all labels; of five classes or fewer top5 is 1.
        strength: the chosen c.
        few: labels per class -> (mean, standard deviation) of top-1 over the drawn subsets.
        validation: strength -> top-1 on the validation part; empty where there was none.
        right: (M,) bool, the test images that top1 counts.
    """

    top1: float
    top5: float
    strength: float
    few: dict[int, tuple[float, float]]
    validation: dict[float, float]
    right: Tensor = field(compare=False, repr=False)


def linear_probe(
    train: Features,
    train_labels: Features,
    test: Features,
    test_labels: Features,
    seed: int,
    device: torch.device | None = None,
    shots: tuple[int, ...] = SHOTS,
) -> LinearResult:
    """Logistic regression on features standardised by the training split.

    The strength is chosen on a fifth of the training split, class by class (of equals the strongest
    penalty); the classifier is then fitted to all of it and sees the test split once.
    A class of n >= 2 training images gives max(1, round(n / 5)) of them to that fifth, a class of
    one image none: so every class stays in the fit. If no class has two images there is nothing to
    choose by, and the strength is 1.

    Memory beyond the features: 40 D^2 + 300 D C bytes and 50 MiB (on a GPU 0.5 GiB); 0.8 GiB for
    D = 2048 and C = 1000.

    Args:
        train: (N, D), test: (M, D), of any float type and scale, in memory or mapped from a file.
        train_labels, test_labels: (N,) and (M,) integers; a test image of a class that the training
            split lacks counts as wrong.
        seed: of the validation part and of the drawn subsets.
        device: does the arithmetic (default: where `train` is).
        shots: labels per class of the few-label results; () for none.
    Raises: UserError if a training feature is not finite.
    """
    train, test = as_tensor(train), as_tensor(test)
    y, y_test = (as_tensor(labels).cpu().numpy() for labels in (train_labels, test_labels))
    names, places = np.unique(y, return_inverse=True)
    truth = np.searchsorted(names, y_test).clip(max=len(names) - 1)
    truth[names[truth] != y_test] = -1
    # scipy's vectors are short: threads of its BLAS would only fight with torch's for the cores.
    # The limit holds for libraries that are loaded by now.
    with exact_products(), threadpool_limits(1, user_api="blas"):
        space = _Space(train, train.device if device is None else device)
        data = _Labelled(space, train, places, len(names))
        asked = _Labelled(space, test, truth, len(names))
        strength, validation, weights = _choose(data, seed)
        right = asked.right(data.solve(strength, weights))
        top1, top5 = (int(count) / len(right) for count in right.sum(0))
        few = {count: _few(data, asked, count, seed) for count in shots}
    return LinearResult(top1, top5, strength, few, validation, right[:, 0])


def _choose(data: "_Labelled", seed: int) -> tuple[float, dict[float, float], "_Weights | None"]:
    """The strength that is best on the validation part, all top-1 there, and where it ended."""
    held = hold_out(data.labels, VALIDATION, seed)
    if not held.any():
        return FIXED, {}, None
    fit, check = data.part(np.flatnonzero(~held)), data.part(np.flatnonzero(held))
    path, validation = {}, {}
    for strength in STRENGTHS:
        path[strength] = fit.solve(strength, path[max(path)] if path else None)
        validation[strength], _ = check.accuracy(path[strength])
    best = max(validation, key=validation.__getitem__)  # of equals the first
    return best, validation, path[best]


def _few(data: "_Labelled", asked: "_Labelled", shots: int, seed: int) -> tuple[float, float]:
    """Mean and standard deviation of test top-1 with `shots` labels of each class."""
    scores = []
    for number in range(DRAWS):
        part = data.part(draw(data.labels, seed, shots=shots, number=number).rows)
        scores.append(asked.accuracy(part.solve(FIXED, few=True))[0])
    return float(np.mean(scores)), float(np.std(scores, ddof=1))


@dataclass(frozen=True)
class _Weights:
    w: Tensor  # (C, D) float32, of standardised features
    b: Tensor  # (C,) float32


class _Space:
    """Standardised coordinates, and the directions in which the training features spread.

    Attributes:
        axes: (D, D) float32, its columns the eigenvectors of the correlation matrix.
        spread: (D,) float32, their eigenvalues.
    """

    def __init__(self, x: Tensor, device: torch.device) -> None:
        width = x.shape[1]
        self.device = device
        self.mean, self.std = torch.zeros(width, device=device), torch.ones(width, device=device)
        mean = torch.zeros(width, dtype=torch.float64)  # on the CPU: Apple's GPUs have no float64
        for _, part in self.chunks(x):
            mean += part.sum(0).cpu() / len(x)
        if not mean.isfinite().all():
            raise UserError("The features are not finite: no linear probe can be fitted to them")
        self.mean = mean.float().to(device)
        moments = torch.zeros(width, width, dtype=torch.float64)
        for _, part in self.chunks(x):
            moments += (part.T @ part).cpu() / len(x)
        std = moments.diagonal().sqrt()
        std[std <= CONSTANT * torch.hypot(mean, std)] = math.inf  # makes a constant feature 0
        spread, axes = torch.linalg.eigh(moments / std / std[:, None])
        self.std = std.float().to(device)
        self.spread, self.axes = spread.clamp(min=0).float().to(device), axes.float().to(device)

    def chunks(
        self, x: Tensor, rows: Tensor | None = None, scores: int = 0
    ) -> Iterator[tuple[slice, Tensor]]:
        """(places, standardised float32 features) of all rows or of those, a chunk at a time.

        Args:
            scores: how many more numbers the caller holds for each row.
        """
        count = len(x) if rows is None else len(rows)
        step = max(ROWS, CHUNK[self.device.type != "cpu"] // (x.shape[1] + scores))
        for start in range(0, count, step):
            at = slice(start, min(start + step, count))
            part = (x[at] if rows is None else x[rows[at]]).to(self.device).float()
            yield at, (part - self.mean).div_(self.std)


class _Labelled:
    """Features, or some rows of them, with the places of their labels among the C classes."""

    def __init__(
        self,
        space: _Space,
        x: Tensor,
        labels: np.ndarray,
        classes: int,
        rows: np.ndarray | None = None,
    ) -> None:
        self.space, self.x, self.labels, self.classes = space, x, labels, classes
        self.rows = None if rows is None else torch.from_numpy(rows).to(x.device)
        self._y = torch.from_numpy(labels).to(space.device)[:, None]

    def part(self, rows: np.ndarray) -> "_Labelled":
        """Those rows alone; they are read where they lie, not copied."""
        return _Labelled(self.space, self.x, self.labels[rows], self.classes, rows)

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(n, D) standardised features and (n, 1) labels at a time."""
        for at, x in self.space.chunks(self.x, self.rows, 2 * self.classes):
            yield x, self._y[at]

    def solve(self, strength: float, start: _Weights | None = None, few: bool = False) -> _Weights:
        """The optimum at this strength, sought from `start` or from zero.

        Args:
            few: the rows are too few to curve the loss as the training split does; half as many
                steps lead there without its spread.
        """
        space, penalty = self.space, 1 / (strength * len(self.labels))
        spread = torch.zeros_like(space.spread) if few else space.spread
        scale = (spread / self.classes + penalty).rsqrt()  # (D,)

        def split(v: np.ndarray) -> tuple[Tensor, Tensor]:
            """The weights along the axes (C, D), and the biases (C,)."""
            v = torch.from_numpy(v.reshape(self.classes, -1)).float().to(space.device)
            return v[:, :-1] * scale, v[:, -1]

        def objective(v: np.ndarray) -> tuple[float, np.ndarray]:
            u, b = split(v)
            loss, gw, gb = self._loss(_Weights(u @ space.axes.T, b))
            gradient = torch.cat([(gw @ space.axes + penalty * u) * scale, gb[:, None]], 1)
            loss += penalty / 2 * float(u.square().sum())
            return loss, gradient.double().cpu().numpy().ravel()

        v = torch.zeros(self.classes, len(scale) + 1, device=space.device)
        if start is not None:
            v = torch.cat([start.w @ space.axes / scale, start.b[:, None]], 1)
        options = {"maxiter": ITERATIONS, "gtol": TOLERANCE, "ftol": GAIN}
        v = v.double().cpu().numpy().ravel()
        u, b = split(minimize(objective, v, jac=True, method="L-BFGS-B", options=options).x)
        return _Weights(u @ space.axes.T, b)

    def _loss(self, weights: _Weights) -> tuple[float, Tensor, Tensor]:
        """The mean cross-entropy and its gradients with respect to weights and biases."""
        gw, gb, losses = torch.zeros_like(weights.w), torch.zeros_like(weights.b), []
        for x, y in self._chunks():
            log_p = torch.addmm(weights.b, x, weights.w.T).log_softmax(1)  # (n, C)
            losses.append(log_p.gather(1, y))
            error = log_p.exp_().scatter_add_(1, y, -torch.ones_like(log_p[:, :1]))
            gw.addmm_(error.T, x)
            gb += error.sum(0)
        n = len(self.labels)
        return -float(torch.cat(losses).cpu().double().mean()), gw / n, gb / n

    def accuracy(self, weights: _Weights) -> tuple[float, float]:
        """top-1 and top-5."""
        first, five = self.right(weights).sum(0).tolist()
        return first / len(self.labels), five / len(self.labels)

    def right(self, weights: _Weights) -> Tensor:
        """(n, 2) bool: whether the class has the highest score, and one of the five highest."""
        found = []
        for x, y in self._chunks():
            scores = torch.addmm(weights.b, x, weights.w.T)
            hits = scores.topk(min(5, self.classes), 1).indices == y  # (n, 5), at most one true
            found.append(torch.stack([hits[:, 0], hits.any(1)], 1).cpu())
        return torch.cat(found)
