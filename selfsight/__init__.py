"""Selfsight: pretrain image encoders without labels, and measure honestly what they learned.

config = selfsight.compose("digits/simclr", ["epochs=10"]).config
run = selfsight.pretrain(config)
print(selfsight.knn(run))
encoder = selfsight.load_encoder(run)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfsight.encoders.encoder import load_encoder as load_encoder
    from selfsight.errors import UserError as UserError
    from selfsight.evaluate.protocols import finetune as finetune
    from selfsight.evaluate.protocols import knn as knn
    from selfsight.evaluate.protocols import linear as linear
    from selfsight.evaluate.protocols import linear_augmented as linear_augmented
    from selfsight.evaluate.protocols import retest as retest
    from selfsight.interop import convert as convert
    from selfsight.pretraining.config import RunConfig as RunConfig
    from selfsight.pretraining.config import compose as compose
    from selfsight.pretraining.job import pretrain as pretrain
    from selfsight.report.sheet import draw_views as draw_views

__version__ = "0.2.0"

# Importing selfsight must not import torch: names are looked up when they are first used.
_HOME = {
    "UserError": "selfsight.errors",
    "convert": "selfsight.interop",
    "finetune": "selfsight.evaluate.protocols",
    "knn": "selfsight.evaluate.protocols",
    "linear": "selfsight.evaluate.protocols",
    "linear_augmented": "selfsight.evaluate.protocols",
    "retest": "selfsight.evaluate.protocols",
    "load_encoder": "selfsight.encoders.encoder",
    "pretrain": "selfsight.pretraining.job",
    "RunConfig": "selfsight.pretraining.config",
    "compose": "selfsight.pretraining.config",
    "draw_views": "selfsight.report.sheet",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'selfsight' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
