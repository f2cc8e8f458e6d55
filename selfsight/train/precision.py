"""The device, and the number format that it computes fast in."""

import math
import os
import platform
import sys
from typing import Literal

import torch

from selfsight.errors import UserError

try:
    import resource
except ImportError:  # not on Windows
    resource = None

Precision = Literal["auto", "fp32", "bf16"]
KEPT = 28 * 2**20  # bytes; glibc ignores blocks above 32 MiB


def pick_device(name: str) -> torch.device:
    """auto: cuda, else mps, else cpu. Raises: UserError for a device that does not exist."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        reason = "its tensors hold no numbers" if device.type == "meta" else None
    # torch raises RuntimeError for an unknown name or a missing GPU, AssertionError in a build
    # without CUDA, ImportError for a device whose package is not installed
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
    if reason is not None:
        raise UserError(f"device={name}: {reason}. Use auto, cpu, cuda, cuda:1 or mps")
    return device


def pick_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """auto: bf16 where the hardware multiplies it natively, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and _cpu_multiplies_bf16()
    return "bf16" if native else "fp32"


def _cpu_multiplies_bf16() -> bool:
    """Whether the CPU has AVX512-BF16 or AMX. Others emulate bf16, which is slower than fp32."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def device_name(device: torch.device) -> str:
    """The device as results name it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()}, {os.cpu_count()} cores"


def peak_memory(device: torch.device) -> float:
    """In MiB: the most memory that was allocated on a GPU; on another device, the largest resident
    memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return 0.0
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 2**20 if sys.platform == "darwin" else kib / 2**10  # macOS counts bytes


def physical_memory() -> float:
    """Bytes of this machine's memory; infinity where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return math.inf


def prepare(device: torch.device) -> None:
    """Set process-wide switches: on a GPU, matrix products in fp32 may use TF32; on a CPU, freed
    memory is kept for the next batch of views."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    elif device.type == "cpu":
        # glibc returns free memory to the system when it is more than twice the largest block freed
        # so far, and getting it back page by page is slow. Allocating and freeing this block, which
        # is never written, raises that limit.
        torch.empty(KEPT, dtype=torch.uint8)
