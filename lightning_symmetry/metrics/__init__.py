"""Streaming twins of the functions of representations and of gradients, to log from any LightningModule."""

from lightning_symmetry.metrics.activations import DormantFraction, TokenRankResidual
from lightning_symmetry.metrics.feature_spectrum import (
    AlphaReQ,
    CovarianceParticipationRatio,
    CovarianceStableRank,
    EffectiveRank,
    Isotropy,
    NESum,
)
from lightning_symmetry.metrics.neural_collapse import NC1, NC3, NC4, NC2Equiangularity, NC2Equinorm
from lightning_symmetry.metrics.noise import NoiseImbalance
from lightning_symmetry.metrics.similarity import CanonicalAlignment, LinearCKA

__all__ = [
    "NC1",
    "NC3",
    "NC4",
    "AlphaReQ",
    "CanonicalAlignment",
    "CovarianceParticipationRatio",
    "CovarianceStableRank",
    "DormantFraction",
    "EffectiveRank",
    "Isotropy",
    "LinearCKA",
    "NC2Equiangularity",
    "NC2Equinorm",
    "NESum",
    "NoiseImbalance",
    "TokenRankResidual",
]
