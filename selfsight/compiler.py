"""Whether torch.compile works here: on a CPU it needs a C++ compiler, on a GPU a C compiler."""

import functools
import sys
import time

import torch

from selfsight import distributed


@functools.cache
def can_compile(device: str) -> bool:
    """Whether a small function compiles and runs on this type of device; if not, a line says why,
    and what was to be compiled runs as it is."""
    try:
        # A new size: what was compiled before, by a compiler that is gone, proves nothing.
        x = torch.ones(64 + time.time_ns() % 100_000, device=device)
        torch.compile(lambda x: (2 * x).sin().sum())(x)
    except Exception as error:  # torch, its compiler and the C++ compiler each raise their own
        if distributed.rank() == 0:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
            print(
                f"compile: torch.compile does not work here ({reason}); going on without it, "
                f"which is slower. Install a C++ compiler, or set compile=false",
                file=sys.stderr,
            )
        return False
    return True
