"""Memory and time of single losses and of a teacher's step: Selfsight against lightly.

Losses: peak memory above the inputs and seconds of forward and backward (Sinkhorn: forward) on
random float32 matrices; neither depends on their values. Every case runs in its own fresh process,
after one small call that loads libraries: on the CPU the rise of the process's peak resident
memory, on a GPU that of the allocator. Each call is done --repeats times, the median time counts.

    NT-Xent      2 x (N, 128): losses.nt_xent against NTXentLoss, at a size that lightly can hold;
                 what it would need at Selfsight's size follows from its square law
    Sinkhorn     (B, K) scores, 3 iterations: selfsight.losses.sinkhorn against SwAV's of lightly
    Barlow Twins 2 x (B, 8192): selfsight.losses.barlow_twins against BarlowTwinsLoss

Then NT-Xent against its plain form, with the whole matrix of logits, in value and gradient; and one
update of a ViT-B teacher: methods.ema.EMA.ema_update against update_momentum, in turns.
"""

import argparse
import copy
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from lightly.loss import BarlowTwinsLoss, NTXentLoss
from lightly.loss.swav_loss import sinkhorn
from lightly.models.utils import update_momentum
from torch import Tensor

from benchmarks.common import machine, report
from selfsight import losses
from selfsight.encoders.backbones import BackboneConfig, build_backbone
from selfsight.errors import UserError
from selfsight.methods.ema import EMA
from selfsight.train.precision import pick_device

TEMPERATURE = 0.1
LIMIT = 12.0  # GiB that a case of lightly may take
MATRICES = 10  # of (2N)^2 float32 that its NT-Xent is taken to hold before it was measured

WORK: dict[str, dict[str, Callable[..., Tensor]]] = {
    "nt_xent": {
        "selfsight": partial(losses.nt_xent, temperature=TEMPERATURE),
        "lightly": NTXentLoss(temperature=TEMPERATURE),
    },
    "barlow_twins": {
        "selfsight": partial(losses.barlow_twins, off_diagonal_weight=0.005),
        "lightly": BarlowTwinsLoss(lambda_param=0.005),
    },
    "sinkhorn": {
        "selfsight": partial(losses.sinkhorn, epsilon=0.05, iterations=3),
        "lightly": partial(sinkhorn, epsilon=0.05, iterations=3),
    },
}


def inputs(loss: str, rows: int, columns: int, device: torch.device) -> list[Tensor]:
    """Embeddings of two views, or cosines of samples with prototypes.

    Made without copies, which would raise the peak before the work begins.
    """
    if loss == "sinkhorn":
        return [torch.empty(rows, columns, device=device).uniform_(-1, 1)]
    return [torch.randn(rows, columns, device=device, requires_grad=True) for _ in range(2)]


def call(work: Callable[..., Tensor], tensors: list[Tensor]) -> tuple[float, str]:
    """(seconds, dtype of the result) of forward and backward."""
    for x in tensors:
        x.grad = None
    _wait(tensors[0].device)
    began = time.perf_counter()
    out = work(*tensors)
    if out.requires_grad:
        out.backward()
    _wait(out.device)
    return time.perf_counter() - began, str(out.dtype).removeprefix("torch.")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak(device: torch.device) -> int:
    """Bytes held at most so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(case: dict) -> dict:
    """One case, in a process that has done nothing else."""
    device = torch.device(case["device"])
    work = WORK[case["loss"]][case["side"]]
    call(work, inputs(case["loss"], 64, 128, device))
    tensors = inputs(case["loss"], case["rows"], case["columns"], device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = peak(device)
    times = []
    for _ in range(case["repeats"]):
        seconds, dtype = call(work, tensors)
        times.append(seconds)
    return {"bytes": peak(device) - before, "seconds": median(times), "dtype": dtype}


def fresh(case: dict) -> dict:
    """`measure` or `gradients` in a new process.

    A process starts with the peak that its parent had at the fork, so this one does no work itself.
    """
    command = [sys.executable, "-m", "benchmarks.memory", "--case", json.dumps(case)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{case} ended with {done.returncode}")
    return json.loads(done.stdout)


def row(title: str, side: str, result: dict) -> None:
    print(
        f"  {title}: {side} {result['bytes'] / 2**20:,.0f} MiB, {result['seconds']:.2f} s, "
        f"{result['dtype']}",
        flush=True,
    )


def compare_nt_xent(options: argparse.Namespace) -> None:
    case = {"loss": "nt_xent", "columns": options.dim, "device": options.device}
    case["repeats"] = options.repeats
    print("NT-Xent, forward and backward")
    for n in sorted({*options.peer_rows, options.rows}):
        row(f"N={n:,}", "selfsight", fresh({**case, "side": "selfsight", "rows": n}))
    law, source = MATRICES * 4 * 2**2, "a guess"  # bytes = law * N^2
    for n in sorted(options.peer_rows):
        if law * n**2 > LIMIT * 2**30:
            print(f"  N={n:,}: lightly left out, about {law * n**2 / 2**30:,.0f} GiB")
            continue
        result = fresh({**case, "side": "lightly", "rows": n})
        row(f"N={n:,}", "lightly", result)
        law, source = result["bytes"] / n**2, f"N={n:,}"
    need = law * options.rows**2 / 2**30
    print(
        f"  N={options.rows:,}: lightly would need {need:,.1f} GiB, by the square law from {source}"
    )


def compare_others(options: argparse.Namespace) -> None:
    sizes = [("sinkhorn", *(int(n) for n in size.split("x"))) for size in options.sinkhorn]
    sizes += [("barlow_twins", batch, options.features) for batch in options.batches]
    for loss, rows, columns in sizes:
        print(f"{loss}, {rows:,} x {columns:,}")
        for side in WORK[loss]:
            case = {"loss": loss, "side": side, "rows": rows, "columns": columns}
            row(loss, side, fresh({**case, "device": options.device, "repeats": options.repeats}))


def plain_nt_xent(z1: Tensor, z2: Tensor) -> Tensor:
    """The definition, all logits at once."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / TEMPERATURE).masked_fill(itself, float("-inf"))
    partner = torch.arange(len(z), device=z.device).roll(len(z1))
    return F.cross_entropy(logits, partner)


def gradients(case: dict) -> dict:
    """Values of both forms, and the largest difference of gradients over the largest gradient."""
    tensors = inputs("nt_xent", case["rows"], case["columns"], torch.device(case["device"]))
    values, found = [], []
    for work in (WORK["nt_xent"]["selfsight"], plain_nt_xent):
        value = work(*tensors)
        found.append(torch.stack(torch.autograd.grad(value, tensors)))
        values.append(value.item())
    ours, plain = found
    return {"values": values, "difference": float((ours - plain).abs().max() / plain.abs().max())}


def teachers(device: torch.device, model: str, calls: int) -> None:
    """Milliseconds of moving a teacher of this architecture, in turns."""
    student = build_backbone(BackboneConfig(name=model), 224, seed=0).to(device)
    ours, theirs = EMA(student), copy.deepcopy(student)

    def milliseconds(work: Callable[[], None]) -> float:
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        return 1000 * (time.perf_counter() - began)

    def both() -> tuple[float, float]:
        return (
            milliseconds(lambda: ours.ema_update(student, momentum=0.99)),
            milliseconds(lambda: update_momentum(student, theirs, m=0.99)),
        )

    both()
    pairs = [both() for _ in range(calls)]
    count = sum(p.numel() for p in student.parameters())
    title = f"teacher's step, {model} ({count / 1e6:.1f} M parameters)"
    report(title, [a for a, _ in pairs], [b for _, b in pairs], "ms")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rows", type=int, default=32768, help="N of Selfsight's NT-Xent")
    parser.add_argument("--dim", type=int, default=128, help="width of its embeddings")
    parser.add_argument("--peer-rows", type=int, nargs="+", default=[4096, 8192], help="lightly's")
    parser.add_argument("--plain-rows", type=int, default=4096, help="N of the plain form")
    parser.add_argument("--sinkhorn", nargs="+", default=["4096x3000", "8192x8192"], help="BxK")
    parser.add_argument("--features", type=int, default=8192, help="of Barlow Twins")
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024], help="likewise")
    parser.add_argument("--teacher", default="vit_base_patch16_224", help="any timm model")
    parser.add_argument("--calls", type=int, default=20, help="of the teacher's step")
    parser.add_argument("--repeats", type=int, default=3, help="of each loss")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.case:
        case = json.loads(options.case)
        print(json.dumps(measure(case) if "side" in case else gradients(case)))
        return
    try:
        device = pick_device(options.device)
    except UserError as error:
        sys.exit(str(error))
    print(machine(), torch.cuda.get_device_name() if device.type == "cuda" else "", flush=True)
    compare_nt_xent(options)
    plain = {"rows": options.plain_rows, "columns": options.dim, "device": options.device}
    result = fresh(plain)
    ours, theirs = result["values"]
    print(f"NT-Xent at N={options.plain_rows:,}: {ours:.7f}, plain form {theirs:.7f};", end=" ")
    print(f"gradients differ by {result['difference']:.1e} of the largest")
    compare_others(options)
    teachers(device, options.teacher, options.calls)


if __name__ == "__main__":
    main()
