"""Tacit: pretrain image encoders without labels, and measure honestly what they learned.

config = tacit.compose("digits/simclr", ["epochs=10"]).config
run = tacit.pretrain(config)
print(tacit.knn(run))
encoder = tacit.load_encoder(run)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tacit.dialects import convert as convert
    from tacit.errors import UserError as UserError
    from tacit.evaluate.encoder import load_encoder as load_encoder
    from tacit.measure import finetune as finetune
    from tacit.measure import knn as knn
    from tacit.measure import linear as linear
    from tacit.measure import linear_augmented as linear_augmented
    from tacit.measure import retest as retest
    from tacit.run import draw_views as draw_views
    from tacit.run import pretrain as pretrain
    from tacit.run_config import RunConfig as RunConfig
    from tacit.run_config import compose as compose

__version__ = "0.1.0"

# Importing tacit must not import torch: names are looked up when they are first used.
_HOME = {
    "UserError": "tacit.errors",
    "convert": "tacit.dialects",
    "finetune": "tacit.measure",
    "knn": "tacit.measure",
    "linear": "tacit.measure",
    "linear_augmented": "tacit.measure",
    "retest": "tacit.measure",
    "load_encoder": "tacit.evaluate.encoder",
    "pretrain": "tacit.run",
    "RunConfig": "tacit.run_config",
    "compose": "tacit.run_config",
    "draw_views": "tacit.run",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tacit' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
