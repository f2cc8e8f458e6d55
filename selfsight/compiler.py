"""Whether torch.compile works here: on a CPU it needs a C++ compiler, on a GPU a C compiler."""

import contextlib
import functools
import sys

import torch

from selfsight import distributed


@functools.cache
def can_compile(device: str) -> bool:
    """Whether a small function compiles and runs on this type of device; if not, a line says why,
    and what was to be compiled runs as it is."""
    try:
        with _without_caches():
            torch.compile(lambda x: (2 * x).sin().sum())(torch.ones(64, device=device))
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


def _without_caches() -> contextlib.AbstractContextManager[object]:
    """What was compiled before on another machine, or with a compiler that is gone, proves
    nothing."""
    from torch._inductor import config  # takes a second

    has_key = hasattr(config, "force_disable_caches")
    return config.patch(force_disable_caches=True) if has_key else contextlib.nullcontext()
