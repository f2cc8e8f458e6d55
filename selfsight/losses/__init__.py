"""Losses as pure functions of this rank's embeddings.

A loss that compares samples gathers them from all ranks. The mean over ranks of its value, and of
its gradient (which DistributedDataParallel computes), is that of one rank with the whole batch.
"""

from selfsight.losses.contrast import batch_info_nce, dcl, info_nce, nt_xent, sup_con
from selfsight.losses.features import feature_distance, gram_distance, queue_similarity
from selfsight.losses.masked import (
    mae,
    masked_cross_entropy,
    masked_smooth_l1,
    simmim,
    weighted_cross_entropy,
)
from selfsight.losses.moments import barlow_twins, koleo, sigreg, vicreg
from selfsight.losses.precision import full_precision as full_precision  # for losses of your own
from selfsight.losses.prototypes import (
    centre_distance,
    centred_softmax,
    negative_cosine,
    sinkhorn,
    swapped_prediction,
)

__all__ = [
    "barlow_twins",
    "batch_info_nce",
    "centre_distance",
    "centred_softmax",
    "dcl",
    "feature_distance",
    "gram_distance",
    "info_nce",
    "koleo",
    "mae",
    "masked_cross_entropy",
    "masked_smooth_l1",
    "negative_cosine",
    "nt_xent",
    "queue_similarity",
    "sigreg",
    "simmim",
    "sinkhorn",
    "sup_con",
    "swapped_prediction",
    "vicreg",
    "weighted_cross_entropy",
]
