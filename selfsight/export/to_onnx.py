"""An ONNX file, model.onnx: input pixel_values (B, C, h, w), output features (B, D).

Pixels are normalised before they go in, as for every other library.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from selfsight.errors import UserError
from selfsight.export import preparing
from selfsight.export.subject import Subject
from selfsight.export.target import Target
from selfsight.export.to_torch import nothing_refused, program

FILE = "model.onnx"
LARGEST = 2**31 - 2**24  # bytes of weights in one file of ONNX


def write(subject: Subject, folder: Path) -> None:
    """Raises: UserError if an operation has no counterpart in ONNX; OSError."""
    import onnx

    made, size = program(subject), 4 * sum(p.numel() for p in subject.encoder.parameters())
    try:
        with _quiet():
            converted = torch.onnx.export(
                made,
                dynamo=True,
                input_names=["pixel_values"],
                output_names=["features"],
                verbose=False,
            )
    except Exception as error:  # of a library that raises any type
        line = " ".join(str(error).split())[:300]
        raise UserError(f"{subject.model}: ONNX cannot express it: {line}") from None
    _without_traces(converted.model)
    converted.save(folder / FILE, external_data=size > LARGEST)
    onnx.checker.check_model(str(folder / FILE), full_check=True)


def _without_traces(model: Any) -> None:
    """Drop what the exporter notes of its own work: names of files of this machine are among it."""
    graphs = [model.graph, *model.functions.values()]
    for value in (model, *graphs):
        value.metadata_props.clear()
    for graph in graphs:
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *getattr(graph, "initializers", {}).values()):
            value.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter prints of its progress and of packages that it does not need."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_CODE = """\
import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(
    f"{{folder}}/model.onnx", providers=["CPUExecutionProvider"]
)

{prepare}


def features(pixels):  # (B, C, h, w) -> (B, D)
    return session.run(["features"], {{"pixel_values": pixels}})[0]
"""


def _code(subject: Subject) -> str:
    return _CODE.format(prepare=preparing.with_numpy(subject))


def _pillow(subject: Subject) -> bool:
    """Pillow resizes images of 8 bits in integers of its own."""
    return True


ONNX = Target(
    "onnx",
    "ONNX",
    "onnx",
    ("onnx", "onnxscript", "onnxruntime"),
    "onnx",
    "onnx",
    nothing_refused,
    write,
    _code,
    _pillow,
)
