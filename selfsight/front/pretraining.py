"""Pretraining from Python."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from selfsight import own
from selfsight.front.keys import read_keys
from selfsight.front.run import Run
from selfsight.methods.method import Method
from selfsight.pretraining import job
from selfsight.pretraining.config import RunConfig, compose
from selfsight.train.hooks import Hook


def pretrain(
    config: str | os.PathLike[str] | RunConfig | None = None,
    quiet: bool = False,
    *,
    run: str | os.PathLike[str] | None = None,
    method: str | Mapping[str, Any] | type[Method] | None = None,
    backbone: str | Mapping[str, Any] | nn.Module | Callable[..., nn.Module] | None = None,
    data: Any = None,
    hooks: Sequence[Hook] = (),
    **keys: Any,
) -> Run:
    """Pretrain an encoder; a run that was stopped continues when the call is repeated.

    Args:
        config: a recipe's name, a YAML file, or a configuration that `compose` made.
        quiet: print no progress.
        run: the run's folder (default: runs/<recipe>).
        method: a name, or a class that derives from `selfsight.methods.Method`.
        backbone: a name, or an encoder (B, 3, s, s) -> (B, D): a module, which is copied and stays
            as it is, or a function that returns one.
        data: the path of images, keys below `data`, or a data set that is read by index: of PIL
            images or uint8 arrays, or of (image, label). {"train": ..., "test": ...} has two.
        hooks: functions that are called while it trains, see `selfsight.every`.
        keys: keys of the configuration, as on the command line: `epochs=50`,
            `optimizer={"lr": 0.1}`, `**{"optimizer.lr": 0.1}`.
    Raises: UserError for a mistake, as the command `selfsight pretrain`.

    >>> run = pretrain("digits/simclr", run="runs/a", epochs=1, quiet=True)
    >>> run.metrics()[-1]["step"]
    22
    >>> run.encoder().num_features
    128
    """
    overrides, parts = read_keys(keys, method, backbone, data)
    folder = None if run is None else os.fspath(run)
    with own.given(parts), own.named_in(overrides):
        if isinstance(config, RunConfig):
            config = config if folder is None else config.model_copy(update={"run": folder})
            if overrides:
                tree = {key: value for key, value in config.tree().items() if key != "run"}
                config = compose(None, [*read_keys(tree)[0], *overrides], config.run).config
        else:
            what = None if config is None else os.fspath(config)
            config = compose(what, overrides, folder, "Python").config
        return Run(Path(job.pretrain(config, quiet, hooks)), parts)
