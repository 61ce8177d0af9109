"""The mathematics: pure functions from tensors to tensors, which know no Trainer."""

from lightning_symmetry.functional.continuous import alive_units, product_rank
from lightning_symmetry.functional.order_parameters import (
    broken_fraction,
    distinct_units,
    effective_units,
    nearest_distances,
    pair_distances,
    permutation_indicators,
    relative_distance,
)
from lightning_symmetry.functional.spectrum import (
    condition_number,
    effective_rank,
    entropy_rank,
    frobenius_norm,
    nuclear_norm,
    numerical_rank,
    participation_ratio,
    perplexity,
    singular_values,
    spectral_indicators,
    spectral_norm,
    srank,
    stable_rank,
)
from lightning_symmetry.functional.units import Units

__all__ = [
    "Units",
    "alive_units",
    "broken_fraction",
    "condition_number",
    "distinct_units",
    "effective_rank",
    "effective_units",
    "entropy_rank",
    "frobenius_norm",
    "nearest_distances",
    "nuclear_norm",
    "numerical_rank",
    "pair_distances",
    "participation_ratio",
    "permutation_indicators",
    "perplexity",
    "product_rank",
    "relative_distance",
    "singular_values",
    "spectral_indicators",
    "spectral_norm",
    "srank",
    "stable_rank",
]
