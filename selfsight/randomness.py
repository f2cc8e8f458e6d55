"""Randomness by coordinates: every random choice is a pure function of where it is used.

The value at (seed, epoch, image index, view, slot) comes from a counter-based hash, so a view of an
image depends neither on batch size, order, workers, ranks nor on where a run was resumed, and no
generator has a state that a checkpoint would have to keep.

The mixer is the 64-bit finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom
number generators, OOPSLA 2014), in two's complement: torch's int64 products wrap as unsigned ones
do.
"""

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the increment of SplitMix64
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ROUNDS = 6  # of the network in `shuffled`

_STEP = torch.tensor(_GOLDEN - (1 << 64))  # inductor's index arithmetic would refuse it as a number

# The first coordinate after the seed says what the number is for, so that no two purposes share
# one.
VIEWS, ORDER, SPLIT, SUBSET, STEP, WEIGHTS, MASKS, DIRECTIONS, MIX, ERASE = range(10)


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def mix(value: int) -> int:
    """The mixer on a Python integer; returns an integer in [0, 2^64)."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def key(*coordinates: int) -> int:
    """One 64-bit key of any number of integer coordinates; their order matters."""
    state = 0
    for coordinate in coordinates:
        state = mix(state + _GOLDEN * (2 * coordinate + 1))
    return state


def torch_seed(*coordinates: int) -> int:
    """The key as a seed for torch: shifted by a bit, to fit a signed 64-bit number."""
    return key(*coordinates) >> 1


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own is arithmetic on int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift(x, 27)) * _signed(_MIX_2)
    return x ^ _shift(x, 31)


def uniform(
    seed: int, epoch: int, index: Tensor, view: int, slots: int, purpose: int = VIEWS
) -> Tensor:
    """Uniform numbers in [0, 1), one for each image of a batch and each slot.

    Args:
        seed, epoch, view: coordinates that the batch shares.
        index: (B,) int64, each image's index in its source.
        slots: how many numbers an image needs.
        purpose: what the numbers are for.
    Returns: (B, slots) float32, multiples of 2^-24, on the device of `index`.
    """
    return numbers(index, stream(purpose, seed, epoch, view), slots)


def stream(*coordinates: int) -> Tensor:
    """() int64, the key of all coordinates but the index, for `numbers`.

    It stays on the CPU, whence every device takes it as a plain number. It is a tensor so that
    compiled functions take it as an argument: they would be compiled again for every integer.
    """
    return torch.tensor(_signed(key(*coordinates)))


def numbers(index: Tensor, stream: Tensor, slots: int) -> Tensor:
    """(B, slots), as `uniform`."""
    image = _mix(index[:, None] * _STEP + stream)
    slot = torch.arange(1, slots + 1, device=index.device) * _STEP
    return _shift(_mix(image + slot), 40).to(torch.float32) * 2.0**-24  # (B, slots)


def directions(seed: int, step: int, dim: int, count: int) -> Tensor:
    """(dim, count) unit columns, uniform on the sphere, of a training step: equal on all ranks."""
    generator = torch.Generator().manual_seed(torch_seed(DIRECTIONS, seed, step))
    return torch.nn.functional.normalize(torch.randn(dim, count, generator=generator), dim=0)


def permutation(n: int, *coordinates: int) -> np.ndarray:
    """A permutation of range(n), (n,) int64: the order of the hashes of (coordinates, i)."""
    x = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(key(*coordinates))
    return np.argsort(_mix_array(x), kind="stable")


def shuffled(places: np.ndarray, n: int, *coordinates: int) -> np.ndarray:
    """Where a keyed permutation of range(n) sends these places; no permutation is held in memory.

    Six rounds of a Feistel network on the smallest even number of bits that holds n, walked along
    its cycle until the value is below n (Black and Rogaway: Ciphers with Arbitrary Finite Domains,
    CT-RSA 2002). The walk takes fewer than four steps on average.

    Args:
        places: (B,) integers in [0, n).
    Returns: (B,) int64, different for different places.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    keys = [np.uint64(key(*coordinates, turn)) for turn in range(_ROUNDS)]
    out = np.asarray(places).astype(np.uint64)
    walking = np.arange(len(out))
    while len(walking):
        x = out[walking]
        left, right = x >> half, x & low
        for k in keys:
            left, right = right, left ^ (_mix_array(right + k) & low)
        out[walking] = (left << half) | right
        walking = walking[out[walking] >= np.uint64(n)]
    return out.astype(np.int64)


def _mix_array(x: np.ndarray) -> np.ndarray:
    """The mixer on uint64, which wraps."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_2)
    return x ^ (x >> np.uint64(31))
