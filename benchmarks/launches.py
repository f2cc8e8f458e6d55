"""What one view makes a GPU do, counted without one.

Fake tensors carry a device and a shape but no numbers, so a view runs on the device "cuda" of a
machine that has none, and every operation is seen on its way. Inductor writes the code for an H200
from the same operations; that it is not run.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from types import SimpleNamespace
from unittest import mock

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch._dynamo import utils
from torch._inductor import compile_fx, config
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.exc import InductorError
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _triton
from torch.utils._python_dispatch import TorchDispatchMode

from selfsight import randomness
from selfsight.views import make

COPIES = ("aten._to_copy", "aten.copy_")
H200 = SimpleNamespace(
    name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, warp_size=32,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024,
    regs_per_multiprocessor=65536, shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472, L2_cache_size=50 * 2**20, total_memory=141 * 2**30,
    gcnArchName="",
)  # fmt: skip


@dataclass
class Launches(TorchDispatchMode):
    """Counts operations on a GPU; what only looks at memory in another way launches nothing.

    Attributes:
        operations: how often each ran.
        copies: those that brought more than a plain number from the host, or anything to it.
    """

    operations: Counter[str] = field(default_factory=Counter)
    copies: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        before, after = (
            [t for t in pytree.tree_leaves(tree) if isinstance(t, Tensor)]
            for tree in ((args, kwargs), out)
        )
        name = str(func.overloadpacket)
        here, there = ([t for t in before if t.is_cuda == gpu] for gpu in (False, True))
        if any(t.is_cuda for t in after):
            if any(t.dim() or name in COPIES for t in here):
                self.copies.append(name)
            if not (func.is_view or "empty" in name):
                self.operations[name] += 1
        elif there and after:
            self.copies.append(name)
        return out


def arguments(batch: int, source: int, crop: bool) -> list[Tensor]:
    """Fake: pixels of `source` px, a view's numbers and indices on a GPU, a stream on the host, and
    for crops their flips."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        pixels = torch.empty((batch, source, source, 3), dtype=torch.uint8, device="cuda")
        u = torch.empty((batch, make.SLOTS), device="cuda")
        index = torch.empty(batch, dtype=torch.int64, device="cuda")
        flips = [] if crop else [torch.empty(batch, dtype=torch.bool, device="cuda")]
        stream = torch.empty((), dtype=torch.int64)
        return [pixels.permute(0, 3, 1, 2), u, index, stream, *flips]


def launches(kind: make.ViewSpec, batch: int, source: int, crop: bool) -> Launches:
    """Of a view that is not compiled, with its draws. What must wait for the GPU raises.

    Args:
        crop: the view is cropped from whole images; else it comes cropped, with its flips.
    """
    pixels, _, index, stream, *flips = arguments(batch, source, crop)
    with index.fake_mode, Launches() as seen:
        u = randomness.numbers(index, stream, make.SLOTS)
        make._steps(pixels, kind, u, index, stream, *flips)
    return seen


def kernels(kind: make.ViewSpec, batch: int, source: int, crop: bool) -> Counter[str]:
    """Of a compiled view with its draws: how often it calls "triton" and "bmm".

    In a process of its own, since inductor is made to believe in a GPU, and remembers it.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        code = pool.submit(_written_view, kind, batch, source, crop).result()
    calls = re.findall(r"(triton)_\w+\.run\(|extern_kernels\.(\w+)\(", code)
    return Counter(name for call in calls for name in call if name)


def _written_view(kind: make.ViewSpec, batch: int, source: int, crop: bool) -> str:
    """What inductor writes for both parts of a view, in Python and Triton, for an H200."""

    def draw(index: Tensor, stream: Tensor) -> Tensor:
        return randomness.numbers(index, stream, make.SLOTS)

    def steps(*tensors: Tensor) -> Tensor:
        pixels, *others = tensors
        x = make._steps(pixels, kind, *others)
        return x.contiguous(memory_format=torch.channels_last)

    inputs = arguments(batch, source, crop)
    stream = inputs[3]
    return _written(draw, inputs[2:4], stream) + _written(steps, inputs, stream)


def _written(function: Callable[..., Tensor], inputs: list[Tensor], stream: Tensor) -> str:
    def pure(step: Tensor, *tensors: Tensor) -> list[Tensor]:
        randomness._STEP = step  # torch.compile makes it an input too
        return [function(*tensors)]

    def stop(graph: GraphLowering) -> None:
        code.append(graph.codegen()[0].value)
        raise InterruptedError

    code: list[str] = []
    inputs = [stream, *inputs]
    functional = torch.func.functionalize(pure, remove="mutations")
    graph = make_fx(functional, select_decomp_table(), "fake")(*inputs)
    answers = {
        "is_available": True, "current_device": 0, "device_count": 1, "_exchange_device": 0,
        "_maybe_exchange_device": 0, "_get_device_properties": H200, "_lazy_init": None,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            pretended = mock.patch.object(torch.cuda, name, create=True, return_value=answer)
            stack.enter_context(pretended)
        stack.enter_context(mock.patch.object(utils, "preserve_rng_state", contextlib.nullcontext))
        stack.enter_context(mock.patch.object(_triton, "triton_hash_with_backend", str))
        stack.enter_context(mock.patch.object(GraphLowering, "_compile_to_module", stop))
        stack.enter_context(config.patch(make.compiler_options()))
        try:
            compile_fx.compile_fx_inner(graph, inputs)
        except InductorError:
            if not code:
                raise
    return code[0]
