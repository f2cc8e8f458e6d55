"""Random numbers as pure functions of coordinates, without any state.

The number at (seed, epoch, image index, view, slot) is a hash of these integers. A view of an image
therefore does not depend on batch size, order, workers, ranks, or on where a run was resumed, and a
checkpoint stores no state of a generator.

The hash is the 64-bit finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom
number generators, OOPSLA 2014). In torch it runs on int64, whose products overflow to the same 64
bits as unsigned ones.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the increment of SplitMix64
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ROUNDS = 6  # of the network in `shuffled`
_BLOCK = 2**20  # numbers that `first_of` hashes at a time

_STEP = torch.tensor(_GOLDEN - (1 << 64))  # inductor's index arithmetic would refuse it as a number

# The first coordinate: what the numbers are for, so that no two purposes share a number.
VIEWS, ORDER, SPLIT, SUBSET, STEP, WEIGHTS, MASKS, DIRECTIONS, MIX, ERASE, DRAWS, LAYERS = range(12)


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def mix(value: int) -> int:
    """The hash of a Python integer: an integer in [0, 2^64)."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def key(*coordinates: int) -> int:
    """A 64-bit hash of any number of integers; their order matters."""
    state = 0
    for coordinate in coordinates:
        state = mix(state + _GOLDEN * (2 * coordinate + 1))
    return state


def torch_seed(*coordinates: int) -> int:
    """A seed for torch's generators: the key without its last bit, to fit a signed integer."""
    return key(*coordinates) >> 1


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift, since torch's shift of int64 is arithmetic."""
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
        seed, epoch, view: the coordinates that all images of the batch share.
        index: (B,) int64, each image's index in its source.
        slots: how many numbers each image gets.
        purpose: one of the constants VIEWS, ORDER, ...
    Returns: (B, slots) float32, multiples of 2^-24, on the device of `index`.
    """
    return numbers(index, stream(purpose, seed, epoch, view), slots)


def stream(*coordinates: int) -> Tensor:
    """() int64, the hash of all coordinates but the index, for `numbers`.

    It is a tensor, since functions would be compiled again for every new Python integer. It stays
    on the CPU, since operations on every device accept a CPU tensor of shape () as a number.
    """
    return torch.tensor(_signed(key(*coordinates)))


def numbers(index: Tensor, stream: Tensor, slots: int, first: int = 0) -> Tensor:
    """The same as `uniform`, (B, slots), given `stream` of the other coordinates; from slot `first`
    on."""
    image = _mix(index[:, None] * _STEP + stream) + _signed(first * _GOLDEN)
    slot = torch.arange(1, slots + 1, device=index.device) * _STEP
    return fractions(image + slot)  # (B, slots)


def fractions(x: Tensor) -> Tensor:
    """The hashes of int64 numbers as float32 in [0, 1), multiples of 2^-24, of the same shape."""
    return _shift(_mix(x), 40).to(torch.float32) * 2.0**-24


def hashed(x: Tensor, start: Tensor) -> Tensor:
    """The hashes of int64 numbers, given one of the coordinates before them."""
    return _mix(x * _STEP + start)


def following(call: Tensor) -> Tensor:
    """() int64, after the one of a call the one of the next; a tensor as in `stream`."""
    return call + _STEP


def draw(rows: Tensor, call: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, *shape) uniform numbers in [0, 1). A number depends on its place in each dimension, not
    on their lengths.

    Args:
        rows: (B,) int64, a hash for each row.
        call: () int64, of a sequence that `following` makes.
    """
    x = rows + call
    for size in shape:
        x = _mix(x)[..., None] + torch.arange(1, size + 1, device=x.device) * _STEP
    return fractions(x)


def directions(seed: int, step: int, dim: int, count: int) -> Tensor:
    """(dim, count) random unit columns of a training step, uniform on the sphere.

    They are equal on all ranks.
    """
    generator = torch.Generator().manual_seed(torch_seed(DIRECTIONS, seed, step))
    return torch.nn.functional.normalize(torch.randn(dim, count, generator=generator), dim=0)


def permutation(n: int, *coordinates: int) -> np.ndarray:
    """A permutation of range(n), (n,) int64: the order of the hashes of (coordinates, i)."""
    return np.argsort(hashes_at(np.arange(n), *coordinates), kind="stable")


def first_of(n: int, count: int, *coordinates: int) -> np.ndarray:
    """The first `count` numbers of `permutation(n, *coordinates)`, in its order, (count,) int64.

    It needs memory for a block and `count` hashes, not for a permutation.
    """
    hashes, places = np.empty(0, np.uint64), np.empty(0, np.int64)
    for start in range(0, n, _BLOCK):
        block = np.arange(start, min(start + _BLOCK, n))
        found = hashes_at(block, *coordinates)
        if len(places) == count:  # what is behind the last of these stays behind it
            block, found = block[found < hashes.max()], found[found < hashes.max()]
        hashes, places = np.concatenate([hashes, found]), np.concatenate([places, block])
        if len(hashes) > count:
            least = np.argpartition(hashes, count - 1)[:count]
            hashes, places = hashes[least], places[least]
    return places[np.argsort(hashes)]


def hashes_at(places: np.ndarray, *coordinates: int) -> np.ndarray:
    """The hashes of (coordinates, i) for these i, uint64; those of different i differ."""
    x = np.asarray(places).astype(np.uint64) + np.uint64(1)
    return _mix_array(x * np.uint64(_GOLDEN) + np.uint64(key(*coordinates)))


def shuffled(places: np.ndarray, n: int, *coordinates: int) -> np.ndarray:
    """The values of a random permutation of range(n) at some places, without storing it.

    A Feistel network of six rounds permutes the integers of the smallest even number of bits that
    can express n - 1. It is applied again to results of n or more, until all are below n (cycle
    walking; Black and Rogaway: Ciphers with Arbitrary Finite Domains, CT-RSA 2002). That takes
    fewer than four steps on average.

    Args:
        places: (B,) integers in [0, n).
        coordinates: they select the permutation.
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
    """The hash of each element of a uint64 array, whose products overflow without an error."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_2)
    return x ^ (x >> np.uint64(31))
