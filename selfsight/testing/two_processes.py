"""Two processes on this machine that are one distributed run."""

import multiprocessing
import os
import socket
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from selfsight import blame


def in_two_processes(work: Callable[[int, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """What work(rank, 2) returns in each of two processes that are joined by gloo.

    Raises: RuntimeError with the words of an error in one of them.
    """
    if not hasattr(os, "fork"):
        raise RuntimeError("cannot be tested on this system, which has no fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # so that the class may be of a notebook
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    processes = [
        context.Process(target=_process, args=(work, rank, port, pipes[rank][1]))
        for rank in range(2)
    ]
    with warnings.catch_warnings():  # Python 3.12: of threads, none of which the child uses
        warnings.simplefilter("ignore", DeprecationWarning)
        for process in processes:
            process.start()
    results = []
    for process, (receiver, sender) in zip(processes, pipes, strict=True):
        sender.close()
        try:
            results.append(_as_tensors(receiver.recv()))
        except EOFError:
            results.append("it ended without a result")
        process.join()
    failed = [result for result in results if isinstance(result, str)]
    if failed:
        raise RuntimeError(failed[0])
    return results


def _as_tensors(found: Any) -> Any:
    """Arrays, which a pipe carries without shared memory, as tensors."""
    if not isinstance(found, dict):
        return torch.from_numpy(found) if isinstance(found, np.ndarray) else found
    return {key: _as_tensors(value) for key, value in found.items()}


def _process(work: Callable[[int, int], dict[str, Any]], rank: int, port: int, sender: Any) -> None:
    """One of two processes."""
    torch.set_num_threads(1)  # a thread pool does not survive a fork
    try:
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
        found: Any = work(rank, 2)
        found = {
            key: {k: v.numpy() for k, v in value.items()} if isinstance(value, dict) else value
            for key, value in found.items()
        }
    except BaseException as error:
        found = blame.words(error)
    sender.send(found)
    sys.stdout.flush()
    os._exit(0)
