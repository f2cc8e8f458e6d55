"""Masks over the patches of a view, as functions of its coordinates.

Like a view, a mask does not depend on the batch, the ranks, or on where a run was resumed.
"""

import torch
from torch import Tensor

from selfsight.batch import SampleKey

Grid = tuple[int, int]  # rows and columns of patches


def random_mask(at: SampleKey, tokens: int, masked: int, view: int = 0) -> Tensor:
    """(B, tokens) bool with `masked` patches of each image, uniform over all such masks.

    Source: MAE, section 3 (arXiv 2111.06377).
    """
    order = at.mask_draws(view, tokens).argsort(dim=1, stable=True)
    mask = torch.zeros_like(order, dtype=torch.bool)
    return mask.scatter_(1, order[:, :masked], True)


def masked_positions(mask: Tensor, count: int) -> Tensor:
    """(B, count) the indices of the masked patches, in order; padded with indices of others."""
    return mask.logical_not().byte().argsort(dim=1, stable=True)[:, :count]


def _rectangle(top: Tensor, left: Tensor, h: Tensor, w: Tensor, grid: Grid) -> Tensor:
    """(B, rows, columns) bool, one rectangle for each image; positions and sizes are (B,)."""
    row = torch.arange(grid[0], device=top.device)[None, :, None]
    column = torch.arange(grid[1], device=top.device)[None, None, :]
    top, left, h, w = (x[:, None, None] for x in (top, left, h, w))
    return (row >= top) & (row < top + h) & (column >= left) & (column < left + w)


def _corner(u: Tensor, free: Tensor) -> Tensor:
    """A uniform integer in [0, free], from u in [0, 1)."""
    return (u * (free + 1)).long()


def block_mask(at: SampleKey, grid: Grid, masked: Tensor, view: int = 0, tries: int = 40) -> Tensor:
    """(B, rows * columns) bool: rectangles that cover nearly, and at most, `masked` patches.

    The area of a rectangle is uniform between 4 patches and the number still missing, its aspect
    ratio log-uniform in [0.3, 1 / 0.3]. It is added if it covers at least one new patch, but not
    more than are missing.
    Args:
        masked: (B,) number of patches to mask in each image.
        tries: number of rectangles drawn for an image.
    Source: BEiT, algorithm 1 (arXiv 2106.08254), where areas are at least 16; iBOT (arXiv
        2111.07832).
    """
    rows, columns = grid
    u = at.mask_draws(view, 4 * tries).unflatten(1, (tries, 4))
    mask = torch.zeros(len(masked), rows, columns, dtype=torch.bool, device=masked.device)
    least, log_ratio = 4.0, torch.tensor(1 / 0.3).log().item()
    for number in range(tries):
        area, ratio, down, right = u[:, number].unbind(1)
        missing = masked - mask.sum((1, 2))
        area = least + area * (missing - least).clamp_min(0)
        ratio = ((2 * ratio - 1) * log_ratio).exp()
        h = (area * ratio).sqrt().round().long()
        w = (area / ratio).sqrt().round().long()
        box = _rectangle(_corner(down, rows - h), _corner(right, columns - w), h, w, grid) & ~mask
        new = box.sum((1, 2))
        fits = (h < rows) & (w < columns) & (new > 0) & (new <= missing)
        mask |= box & fits[:, None, None]
    return mask.flatten(1)


def context_and_targets(
    at: SampleKey,
    grid: Grid,
    targets: int,
    target_scale: tuple[float, float],
    target_ratio: tuple[float, float],
    context_scale: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """One large block as context, and several target blocks, which are removed from the context.

    A target is not removed if that would leave fewer than 10 patches (or a quarter of the grid,
    whichever is less).
    Args:
        targets: number M of target blocks; those of one image have the same size.
        target_scale, context_scale: area as a fraction of the grid, uniform.
        target_ratio: height / width of targets, uniform; the context is square.
    Returns: context (B, N) bool and targets (B, M, N) bool.
    Source: I-JEPA, section 3 (arXiv 2301.08243).
    """
    n = grid[0] * grid[1]
    u = at.mask_draws(0, 5 + 2 * targets)

    def size(scale: Tensor, ratio: Tensor | float) -> tuple[Tensor, Tensor]:
        h, w = (scale * n * ratio).sqrt().round(), (scale * n / ratio).sqrt().round()
        return h.long().clamp(1, grid[0]), w.long().clamp(1, grid[1])

    def block(h: Tensor, w: Tensor, place: Tensor) -> Tensor:
        top, left = _corner(place[:, 0], grid[0] - h), _corner(place[:, 1], grid[1] - w)
        return _rectangle(top, left, h, w, grid).flatten(1)

    between = [
        low + (high - low) * u[:, i]
        for i, (low, high) in enumerate((target_scale, target_ratio, context_scale))
    ]
    h, w = size(between[0], between[1])
    blocks = [block(h, w, u[:, 5 + 2 * m : 7 + 2 * m]) for m in range(targets)]
    context = block(*size(between[2], 1.0), u[:, 3:5])
    for target in blocks:
        left = context & ~target
        enough = left.sum(1, keepdim=True) >= min(10, n // 4)
        context = torch.where(enough, left, context)
    return context, torch.stack(blocks, dim=1)
