"""Selfsight: pretrain image encoders without labels, and measure honestly what they learned.

run = selfsight.pretrain("digits/simclr", epochs=10)
print(selfsight.knn(run))
features = run.encoder().embed(["cat.jpg"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfsight import distributed as distributed
    from selfsight import losses as losses
    from selfsight import methods as methods
    from selfsight import testing as testing
    from selfsight.batch import Batch as Batch
    from selfsight.encoders.encoder import load_encoder as load_encoder
    from selfsight.errors import UserError as UserError
    from selfsight.evaluate.protocols.retest import retest as retest
    from selfsight.front.evaluation import finetune as finetune
    from selfsight.front.evaluation import knn as knn
    from selfsight.front.evaluation import linear as linear
    from selfsight.front.evaluation import linear_augmented as linear_augmented
    from selfsight.front.pretraining import pretrain as pretrain
    from selfsight.front.run import Run as Run
    from selfsight.front.views import Views as Views
    from selfsight.interop import convert as convert
    from selfsight.methods import heads as heads
    from selfsight.methods.ema import EMA as EMA
    from selfsight.methods.method import Method as Method
    from selfsight.methods.method import MethodConfig as MethodConfig
    from selfsight.methods.method import Output as Output
    from selfsight.pretraining.config import RunConfig as RunConfig
    from selfsight.pretraining.config import compose as compose
    from selfsight.report.sheet import draw_views as draw_views
    from selfsight.train.hooks import every as every

__version__ = "0.2.0"

# Importing selfsight must not import torch: names are looked up when they are first used.
_HOME = {
    "Batch": "selfsight.batch",
    "EMA": "selfsight.methods.ema",
    "Method": "selfsight.methods.method",
    "MethodConfig": "selfsight.methods.method",
    "Output": "selfsight.methods.method",
    "Run": "selfsight.front.run",
    "RunConfig": "selfsight.pretraining.config",
    "UserError": "selfsight.errors",
    "Views": "selfsight.front.views",
    "compose": "selfsight.pretraining.config",
    "convert": "selfsight.interop",
    "draw_views": "selfsight.report.sheet",
    "every": "selfsight.train.hooks",
    "finetune": "selfsight.front.evaluation",
    "knn": "selfsight.front.evaluation",
    "linear": "selfsight.front.evaluation",
    "linear_augmented": "selfsight.front.evaluation",
    "load_encoder": "selfsight.encoders.encoder",
    "pretrain": "selfsight.front.pretraining",
    "retest": "selfsight.evaluate.protocols",
}
_MODULES = {
    "distributed": "selfsight.distributed",
    "heads": "selfsight.methods.heads",
    "losses": "selfsight.losses",
    "methods": "selfsight.methods",
    "testing": "selfsight.testing",
}
__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    import importlib

    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name not in _HOME:
        raise AttributeError(f"module 'selfsight' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
