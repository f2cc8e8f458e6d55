"""Dropout and stochastic depth by coordinates: each image of a batch has masks of its own.

A mask is a function of (seed, step, image, view, call), where a call is one of the random layers
that a step comes through. So it does not depend on the process that computes the image, on the part
of the batch (`accumulate`, `encoder_parts`), on the device, or on where a run was resumed.

Layers of torch, timm, torchvision and transformers are known, see `_probability`. What else draws
from torch's generators (a function in a model's code, the user's own layer) keeps doing so;
`Generators` finds it.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from selfsight import distributed, randomness
from selfsight.batch import Batch
from selfsight.errors import UserError
from selfsight.recompute import DRAWS, copies_of, wrap

LIBRARIES = ("torch", "timm", "torchvision", "transformers")
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
Work = Callable[..., Tensor]


class Draws:
    """The random numbers of a method's layers: for each image of the current batch its own.

    >>> draws = Draws()
    >>> draws.begin(seed=0, step=3, index=torch.tensor([7, 5]))
    >>> draws.uniform(4, 9).shape  # two views of both images
    torch.Size([4, 9])
    """

    def __init__(self) -> None:
        self._index: Tensor | None = None  # (B,) the images of the batch
        self._rows: Tensor | None = None  # the hashes of an encoder's inputs
        self._inside = False  # of an encoder
        self._repeats = False  # a work that draws the same numbers whenever it runs

    def begin(self, seed: int, step: int, index: Tensor) -> None:
        """From now on the numbers are those of a batch.

        Args:
            index: (B,) int64, each image's index in its source.
        """
        self._stream = randomness.stream(randomness.LAYERS, seed, step)
        self._call = torch.zeros((), dtype=torch.int64)
        self._index = index

    def uniform(self, n: int, *shape: int) -> Tensor | None:
        """(n, *shape) uniform numbers in [0, 1) for n rows: all images of the first view, then
        those of the second, and so on. Inside an encoder they are its inputs in their order, or the
        same number of rows for each, as windows are.

        Returns: None if the rows are not those of images of the batch.
        Raises: UserError where a layer is computed again outside of a repeatable work.
        """
        rows = self._rows if self._inside else self._hashed(0, n, n)
        if rows is None or n % len(rows):
            return None
        if not self._repeats and in_backward():
            raise UserError(
                "a random layer (dropout, stochastic depth) is computed again in the backward "
                "pass, by checkpointing in the encoder's own code, and would draw other numbers: "
                "switch that off; encoder_parts=K needs less memory in its place"
            )
        each = n // len(rows)
        wanted = shape if each == 1 else (each, *shape)
        self._call = randomness.following(self._call)
        return randomness.draw(rows, self._call, wanted).view(n, *shape)

    def _hashed(self, first: int, last: int, total: int) -> Tensor | None:
        """(last - first,) a hash of view and image for these rows of `total`."""
        if self._index is None or not total or total % len(self._index):
            return None
        at, count = torch.arange(first, last, device=self._index.device), len(self._index)
        image = randomness.hashed(self._index[at % count], self._stream)
        return randomness.hashed(at // count, image)

    def encoding(self, total: int) -> Callable[[Work, int, int], Work]:
        """A function of an encoder's work and of the rows `first` to `last` of its `total` inputs.
        It returns the work on these rows, which draws the same numbers whenever it runs."""
        if self._index is None:
            return lambda work, first, last: work
        start = self._start()
        return lambda work, first, last: functools.partial(
            self._run, work, start, self._hashed(first, last, total), True
        )

    def repeatable(self, work: Work) -> Work:
        """The work on the rows of now, whose calls follow those until now. In a block that is
        computed again in the backward pass it draws the same numbers as at first, which are those
        of a block that keeps its activations."""
        if self._index is None:
            return work
        first, computed = (self._call, self._rows, self._inside), False

        def run(*inputs: Any, **more: Any) -> Tensor:
            nonlocal computed
            before = self._call, self._rows, self._inside, self._repeats
            self._call, self._rows, self._inside, self._repeats = *first, True
            try:
                return work(*inputs, **more)
            finally:
                call = before[0] if computed else self._call  # after the first time what follows
                self._call, self._rows, self._inside, self._repeats = call, *before[1:]
                computed = True

        return run

    def _start(self) -> Tensor:
        """() int64, where the calls of a repeatable work begin."""
        self._call = randomness.following(self._call)
        return randomness.hashed(self._call, self._stream)

    def _run(
        self,
        work: Work,
        start: Tensor,
        rows: Tensor | None,
        inside: bool,
        *inputs: Any,
        **more: Any,
    ) -> Tensor:
        before = self._call, self._rows, self._inside, self._repeats
        self._call, self._rows, self._inside, self._repeats = start, rows, inside, True
        try:
            return work(*inputs, **more)
        finally:
            self._call, self._rows, self._inside, self._repeats = before


def in_backward() -> bool:
    """Whether an activation checkpoint computes something again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def follow_images(method: nn.Module, encoder: nn.Module) -> None:
    """Let a method's random layers draw by the coordinates of the images from now on. Without a
    layer that drops anything nothing changes.

    Args:
        encoder: of the method. Copies of it, such as a teacher, are known by their shape.
    """
    others = _sequence_first(method)
    layers = [layer for layer in method.modules() if _probability(layer) and layer not in others]
    if not layers:
        return
    draws = getattr(method, DRAWS, None)
    if draws is None:
        draws = method.draws = Draws()
        method.register_forward_pre_hook(functools.partial(_begin, draws))
    for layer in layers:
        if not hasattr(layer, DRAWS):
            layer.forward = functools.partial(_forward, layer, layer.forward)
    for module in method.modules():
        if getattr(module, "fused_attn", False) and _probability(
            getattr(module, "attn_drop", None)
        ):
            module.fused_attn = False  # timm's other way, through the layer attn_drop
    for copy in copies_of(method, encoder):
        wrap(copy)
    for module in method.modules():  # for encoders, and for blocks that are computed again
        if any(_probability(layer) for layer in module.modules()):
            module.draws = draws


def _sequence_first(method: nn.Module) -> set[nn.Module]:
    """All in torch's layers of a transformer that get (N, B, D): their rows are not the images."""
    blocks = (m for m in method.modules() if hasattr(m, "self_attn"))
    first = (m for m in blocks if getattr(m.self_attn, "batch_first", True) is False)
    return {layer for block in first for layer in block.modules()}


def _begin(draws: Draws, _method: nn.Module, inputs: tuple[Any, ...]) -> None:
    if inputs and isinstance(inputs[0], Batch):
        keys = inputs[0].keys
        draws.begin(keys.seed, inputs[0].step, keys.index)


def _probability(layer: nn.Module) -> float:
    """With which a layer drops; 0 if it is not known. A user's own class may mean something else by
    the same name."""
    kind = type(layer)
    if kind.__module__.partition(".")[0] not in LIBRARIES:
        return 0.0
    if kind.__name__.endswith("DropPath"):
        return getattr(layer, "drop_prob", None) or 0.0
    if kind.__name__ in ("PatchDropout", "PatchDropoutWithIndices"):
        return layer.prob
    if kind in DROPOUTS or (kind.__name__ == "StochasticDepth" and layer.mode == "row"):
        return layer.p
    return 0.0


def _forward(layer: nn.Module, plain: Callable[[Tensor], Any], x: Tensor) -> Any:
    """The forward of a random layer; `plain` is the one of its class."""
    if not layer.training or not _probability(layer):
        return plain(x)
    found = _patches(layer, x) if hasattr(layer, "num_prefix_tokens") else _dropped(layer, x)
    return plain(x) if found is None else found


def _dropped(layer: nn.Module, x: Tensor) -> Tensor | None:
    """x, with 0 in place of what the layer drops, and the rest scaled by 1 / (1 - p)."""
    keep = 1 - _probability(layer)
    each = {nn.Dropout: x.ndim}.get(type(layer), 2 if type(layer) in DROPOUTS else 1)
    u = layer.draws.uniform(*x.shape[:each])  # one number for each sample, channel or element
    if u is None:
        return None
    kept = (u < keep).view(*u.shape, *(1,) * (x.ndim - each))
    scale = 1 / keep if keep and getattr(layer, "scale_by_keep", True) else 1.0
    if kept.shape == x.shape:  # it needs less memory than a product does
        return x.masked_fill(~kept, 0.0) * scale
    return x * (kept.to(x.dtype) * scale)


def _patches(layer: nn.Module, x: Tensor) -> Any:
    """Tokens (n, prefix + N, D) without a random part of the N; see timm's PatchDropout."""
    prefix, patches = x[:, : layer.num_prefix_tokens], x[:, layer.num_prefix_tokens :]
    u = layer.draws.uniform(*patches.shape[:2])
    if u is None:
        return None
    at = u.argsort(dim=1, stable=True)[:, : max(1, int(patches.shape[1] * (1 - layer.prob)))]
    at = at.sort(dim=1)[0] if layer.ordered else at
    x = torch.cat([prefix, patches.gather(1, at[..., None].expand(-1, -1, x.shape[2]))], 1)
    return (x, at) if type(layer).__name__.endswith("Indices") else x


class Generators:
    """torch's own generators, from which only what is not known here draws.

    Args:
        parts: in which each process computes its images.
        say: called once, with a line, if something draws from them and a batch is in parts.
    """

    def __init__(
        self, seed: int, device: torch.device, parts: int, say: Callable[[str], None]
    ) -> None:
        self._seed, self._device, self._say = seed, device, say
        self._parts = parts * distributed.world_size()

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Seed them for the forward and backward pass of a step: other numbers on each rank."""
        seed = randomness.torch_seed(randomness.STEP, self._seed, step, distributed.rank())
        torch.manual_seed(seed)
        before = self._states()
        yield
        if self._parts > 1 and not all(map(torch.equal, before, self._states())):
            self._say(
                f"Something draws from torch's own random generator, such as torch.rand, "
                f"F.dropout or a random layer of your own: its numbers are not those of one "
                f"process with the whole batch (here {self._parts} parts). Draw from "
                f"batch.keys.uniform, or use nn.Dropout or timm's DropPath, which follow the images"
            )
            self._parts = 1

    def _states(self) -> list[Tensor]:
        if self._parts == 1:
            return []
        cuda = [torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else []
        return [torch.get_rng_state(), *cuda]
