"""A program of torch.export, model.pt2: it needs neither Selfsight nor timm."""

import io
from pathlib import Path

import torch
from torch import Tensor, nn

from selfsight.errors import UserError
from selfsight.export import preparing
from selfsight.export.subject import Subject
from selfsight.export.target import Target

FILE = "model.pt2"


class Features(nn.Module):
    """The encoder with a named input, for what an export records of it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.encoder(pixel_values)


def example(subject: Subject) -> Tensor:
    """(2, C, h, w); a batch of one would be taken as fixed."""
    return torch.zeros(2, subject.channels, *subject.size)


def program(subject: Subject) -> torch.export.ExportedProgram:
    """The encoder as a graph of torch's operations, for batches of any size.

    Raises: UserError if the encoder's code cannot be written as a graph.
    """
    shapes = {"pixel_values": {0: torch.export.Dim("batch")}}
    module = Features(subject.encoder.backbone).eval()
    try:
        with torch.no_grad():
            made = torch.export.export(module, (example(subject),), dynamic_shapes=shapes)
    except Exception as error:  # of the encoder's code, or of torch's tracing: any type
        line = " ".join(str(error).split())[:300]
        raise UserError(
            f"{subject.model}: torch.export cannot write it as a graph for batches of any size: "
            f"{line}"
        ) from None
    for node in made.graph.nodes:  # paths of this machine
        node.meta.pop("stack_trace", None)
    return made


def write(subject: Subject, folder: Path) -> None:
    """Raises: UserError, see `program`; OSError."""
    buffer = io.BytesIO()  # on a full disk torch raises an error of its own
    torch.export.save(program(subject), buffer)
    (folder / FILE).write_bytes(buffer.getbuffer())


def nothing_refused(subject: Subject) -> str:
    """Any encoder may be tried."""
    return ""


_CODE = """\
import numpy as np
import torch
from torch.nn.functional import interpolate

model = torch.export.load(f"{{folder}}/model.pt2").module()

{prepare}


def features(pixels):  # (B, C, h, w) -> (B, D)
    with torch.inference_mode():
        return model(pixels)
"""


def _code(subject: Subject) -> str:
    return _CODE.format(prepare=preparing.with_torch(subject))


TORCH = Target(
    "torch",
    "torch.export",
    "pytorch",
    ("torch",),
    "",
    "torch",
    nothing_refused,
    write,
    _code,
    fresh=True,
)
