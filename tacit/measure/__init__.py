"""Whole evaluations of an encoder, by named protocols, beside what an untrained one scores."""

from tacit.measure.cached import knn, linear
from tacit.measure.results import Result, notes, read_results
from tacit.measure.retest import retest
from tacit.measure.trained import finetune, linear_augmented

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
