"""The splits of a run and its encoder's features of them, for what shows them."""

from collections.abc import Iterator
from contextlib import contextmanager

from selfsight.evaluate.protocols.config import KnnConfig, compose_cached
from selfsight.evaluate.protocols.context import EvaluationContext, open_context
from selfsight.evaluate.protocols.frozen_features import SplitFeatures, features_of
from selfsight.evaluate.protocols.target import EvaluationTarget


@contextmanager
def open_features(
    target: EvaluationTarget, overrides: list[str] | None = None
) -> Iterator[tuple[EvaluationContext, SplitFeatures]]:
    """Both splits and the encoder's features of them, as the protocol `knn` measures them: those
    that it stored are read, others are computed and stored.

    Args:
        overrides: 'key=value' of KnnConfig.
    Raises: UserError if there are no labels or no test split, or for a shared image unless
        allow_overlap=true.
    """
    config = compose_cached(KnnConfig, target.base, overrides or [])
    with open_context(target, config) as context:
        yield context, features_of(context, "encoder", target.encoder)
