"""Weights that are split over the processes of a run, for networks too large to be held by each.

PyTorch's `fully_shard` splits each tensor along its first dimension (source: FSDP, arXiv
2304.11277). The matrices of a transformer's block are whole only while it computes; all else of a
method (vectors, patches, positions, tokens, heads, prototypes) is whole from the forward pass to
the end of the backward pass, so that a method reads it as if nothing was split. Between the steps
a process holds its rows alone: of weights, gradients, the optimizer's state and the teacher.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from selfsight import distributed
from selfsight.agreement import Keys
from selfsight.batch import Batch
from selfsight.errors import UserError
from selfsight.methods.method import Method, Output
from selfsight.recompute import blocks_of, depends_on_batch
from selfsight.train.optim import OptimizerConfig, check_rows
from selfsight.train.pieces import each_tensor, has_rows

_WRAPPED = (
    "_sharded"  # attribute of a method: (Sharded,), a tuple since it is no part of the method
)


class _Root(nn.Module):
    """A method, split. By the tensors that a module returns PyTorch knows when its backward pass
    begins: the loss alone, since the others are views, of which it warns."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch) -> tuple[Tensor | None, Callable[[], Output]]:
        output = self.method(batch)
        return getattr(output, "loss", None), lambda: output

    def look(self, batches: Iterable[Batch]) -> None:
        self.method.look(batches)


class Sharded(nn.Module):
    """What `fit` calls in place of a method: the method's weights are split from now on.

    Attributes:
        module: the method, whose parameters are DTensors between the steps.
        whole: on rank 0 a copy for evaluations, without weights until `collect` is called.
    """

    def __init__(self, method: Method, device: torch.device, bf16: bool) -> None:
        """Args:
        bf16: blocks get their matrices in bfloat16, to which autocast would round them; gradients
            are summed in float32.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import (  # a second, which other commands do not pay for
            FSDPModule,
            MixedPrecisionPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )

        super().__init__()
        self.module, self._root = method, _Root(method)
        self.whole = (_without_weights(method),) if distributed.rank() == 0 else ()
        mesh = init_device_mesh(device.type, (distributed.world_size(),))
        for tensor in (*method.parameters(), *method.buffers()):  # all start with those of rank 0
            if tensor.numel():
                numbers = tensor.detach().view(-1).view(torch.uint8)  # gloo sends no bool
                dist.broadcast(numbers, src=0)
        blocks = blocks_of(method)
        matrices = {p for block in blocks for p in block.parameters() if p.ndim > 1}
        low = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        policy = low if bf16 else MixedPrecisionPolicy()
        # The root first: it takes the vectors of the blocks, which autocast does not round.
        fully_shard(self._root, mesh=mesh, ignored_params=matrices)
        for block in blocks:
            done = {p for p in block.parameters() if p not in matrices}
            fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=done)
        for part in self.modules():
            if isinstance(part, FSDPModule):  # gloo knows no mean: a sum, which is then divided
                part.set_force_sum_reduction_for_comms(True)
        register_fsdp_forward_method(self._root, "look")

    def forward(self, batch: Batch) -> Output:
        _, output = self._root(batch)
        return output()

    def look(self, batches: Iterable[Batch]) -> None:
        """The method's `look`, with whole weights."""
        self._root.look(batches)
        self._root.reshard()


def shard(method: Method, device: torch.device, bf16: bool) -> nn.Module:
    """Split a method's weights, once. Returns: the module that `fit` calls."""
    if not is_split(method):
        setattr(method, _WRAPPED, (Sharded(method, device, bf16),))
    return getattr(method, _WRAPPED)[0]


def is_split(method: Method) -> bool:
    return hasattr(method, _WRAPPED)


def check_shard(method: Method, optimizer: OptimizerConfig) -> None:
    """Raises: UserError for a method or an optimizer whose weights cannot be split over several
    processes."""
    if distributed.world_size() == 1:  # holds all rows
        return
    check_rows(optimizer)
    if depends_on_batch(method.backbone):
        raise UserError(
            "shard=true: the encoder has batch normalisation, whose statistics differ between "
            "processes and are not split; choose an encoder without it (a ViT, convnext_tiny, "
            "resnet50_gn), or leave out shard"
        )
    for name, parameter in method.named_parameters():
        if parameter.ndim == 0:
            raise UserError(
                f"shard=true: {name} is a number without rows to split; give it the shape (1,), "
                f"or leave out shard"
            )
    shared = _shared_matrix(method)
    if shared is not None:
        raise UserError(
            f"shard=true: {shared} is a matrix of a block that another block, or what is outside "
            f"of the blocks, has as well; a block is gathered for itself. Give each its own, or "
            f"leave out shard"
        )


def _shared_matrix(method: Method) -> str | None:
    """The name of a matrix in a block that is in another part, too: that part would train a whole
    matrix of its own on each process."""
    everywhere, before = _uses(method), Counter[nn.Parameter]()
    for block in blocks_of(method):
        inside = _uses(block)
        for name, parameter in method.named_parameters():
            others = everywhere[parameter] - inside[parameter] + before[parameter]
            if parameter.ndim > 1 and inside[parameter] and others:
                return name
        before += inside
    return None


def _uses(module: nn.Module) -> Counter[nn.Parameter]:
    """How many modules have a parameter."""
    return Counter(p for part in module.modules() for p in part.parameters(recurse=False))


# A whole copy -------------------------------------------------------------------------------------


def _without_weights(method: Method) -> Method:
    """A copy of a method whose parameters take no memory."""
    empty = {id(p): _empty(p) for p in method.parameters()}
    return copy.deepcopy(method, empty)


def _empty(parameter: Tensor) -> nn.Parameter:
    shape = torch.empty_like(parameter, device="meta")
    return nn.Parameter(shape, requires_grad=parameter.requires_grad)


def whole(method: Method) -> Method:
    """On rank 0 a method with whole weights: itself, or of a split one the copy that the last
    `collect` has filled."""
    return getattr(method, _WRAPPED)[0].whole[0] if is_split(method) else method


def collect(method: Method) -> None:
    """Give the copy of a split method the weights of this step. All ranks call it."""
    if is_split(method):
        state = gathered(method.state_dict(), next(method.parameters()).device)
        if distributed.rank() == 0:
            whole(method).load_state_dict(state, assign=True)


def release(method: Method) -> None:
    """Let the copy of a split method take no memory again."""
    if is_split(method) and distributed.rank() == 0:
        for part in whole(method).modules():
            for name, parameter in part.named_parameters(recurse=False):
                setattr(part, name, _empty(parameter))


# States -------------------------------------------------------------------------------------------


def gathered(state: Any, device: torch.device | str = "cpu") -> Any:
    """A state with whole tensors on rank 0, one after the other; others get None in place of those
    that are split. All ranks call it.

    Args:
        device: where rank 0 gets the tensors that were split; others stay where they are.
    """

    def work(_: Keys, tensor: Tensor) -> Tensor | None:
        if not has_rows(tensor):
            return tensor
        found = tensor.full_tensor().detach()
        return found.to(device) if distributed.rank() == 0 else None

    split: list[bool] = []
    each_tensor(state, lambda _, tensor: split.append(has_rows(tensor)))
    return each_tensor(state, work) if any(split) else state


def own_rows(parts: Mapping[str, Any]) -> Callable[[Keys, Tensor], Tensor]:
    """A function that gives what a rank keeps of a tensor of a checkpoint: its rows, if the run has
    split it.

    Args:
        parts: modules and optimizers of the run, by their names in the checkpoint.
    """
    like: dict[Keys, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, torch.optim.Optimizer):
            every = [p for group in part.param_groups for p in group["params"]]
            like |= {(name, "state", number): p for number, p in enumerate(every)}
        else:
            like |= {(name, key): value for key, value in part.state_dict().items()}

    def keep(keys: Keys, tensor: Tensor) -> Tensor:
        keys = keys[1:]  # of (step, state, ...) those in the state
        wanted = like.get(keys, like.get(keys[:-1]))  # of an optimizer: several for a parameter
        if not has_rows(wanted) or tensor.shape != wanted.shape:
            return tensor
        rows = -(-len(tensor) // distributed.world_size())
        own = tensor[rows * distributed.rank() :][:rows].contiguous()
        own = own.to(wanted.device, copy=True)  # the rows alone, not a view of the whole
        about = wanted.device_mesh, wanted.placements
        return type(wanted).from_local(own, *about, shape=tensor.shape, stride=wanted.stride())

    return keep


def clip_gradient(parameters: Sequence[Tensor], most: float) -> None:
    """Scale all gradients so that their L2 norm together is at most this."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not any(map(has_rows, gradients)):
        nn.utils.clip_grad_norm_(parameters, most)
        return
    rows = [gradient.to_local() for gradient in gradients]
    total = distributed.all_sum(nn.utils.get_total_norm(rows).square()).sqrt()
    torch._foreach_mul_(rows, (most / (total + 1e-6)).clamp(max=1.0))
