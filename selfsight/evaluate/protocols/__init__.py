"""Whole evaluations of an encoder, by named protocols, beside what an untrained one scores."""

from selfsight.evaluate.protocols.frozen_features import knn, linear
from selfsight.evaluate.protocols.results import Result, notes, read_results
from selfsight.evaluate.protocols.retest import retest
from selfsight.evaluate.protocols.trained_classifier import finetune, linear_augmented

__all__ = [
    "Result",
    "finetune",
    "knn",
    "linear",
    "linear_augmented",
    "notes",
    "read_results",
    "retest",
]
