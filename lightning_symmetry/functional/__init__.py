"""The mathematics: pure functions from tensors to tensors, which know no Trainer."""

from lightning_symmetry.functional.activations import dormant_fraction, token_rank_residual
from lightning_symmetry.functional.charges import (
    angular_speed,
    effective_learning_rate,
    mean_component,
    rescaling_charges,
    rescaling_imbalance,
    rotation_charges,
    rotation_imbalance,
)
from lightning_symmetry.functional.complexity import effective_parameters
from lightning_symmetry.functional.continuous import alive_units, living_units, product_rank
from lightning_symmetry.functional.feature_spectrum import (
    alpha_req,
    covariance_participation_ratio,
    covariance_stable_rank,
    feature_indicators,
    isotropy,
    moments,
    nesum,
)
from lightning_symmetry.functional.matching import Inner, Product
from lightning_symmetry.functional.neural_collapse import nc1, nc2_equiangularity, nc2_equinorm, nc3, nc4
from lightning_symmetry.functional.noise import noise_imbalance
from lightning_symmetry.functional.order_parameters import (
    broken_fraction,
    distinct_units,
    effective_units,
    nearest_distances,
    pair_distances,
    permutation_indicators,
    relative_distance,
)
from lightning_symmetry.functional.products import attention_logit_bound, product_core, rotary_attention_logit_bound
from lightning_symmetry.functional.similarity import canonical_alignment, linear_cka
from lightning_symmetry.functional.singular_values import singular_values
from lightning_symmetry.functional.spectrum import (
    alpha,
    condition_number,
    effective_rank,
    entropy_rank,
    frobenius_norm,
    nuclear_norm,
    numerical_rank,
    participation_ratio,
    perplexity,
    spectral_indicators,
    spectral_norm,
    srank,
    stable_rank,
)
from lightning_symmetry.functional.units import Units
from lightning_symmetry.functional.updates import update_ratio, update_stable_rank

__all__ = [
    "Inner",
    "Product",
    "Units",
    "alive_units",
    "alpha",
    "alpha_req",
    "angular_speed",
    "attention_logit_bound",
    "broken_fraction",
    "canonical_alignment",
    "condition_number",
    "covariance_participation_ratio",
    "covariance_stable_rank",
    "distinct_units",
    "dormant_fraction",
    "effective_learning_rate",
    "effective_parameters",
    "effective_rank",
    "effective_units",
    "entropy_rank",
    "feature_indicators",
    "frobenius_norm",
    "isotropy",
    "linear_cka",
    "living_units",
    "mean_component",
    "moments",
    "nc1",
    "nc2_equiangularity",
    "nc2_equinorm",
    "nc3",
    "nc4",
    "nearest_distances",
    "nesum",
    "noise_imbalance",
    "nuclear_norm",
    "numerical_rank",
    "pair_distances",
    "participation_ratio",
    "permutation_indicators",
    "perplexity",
    "product_core",
    "product_rank",
    "relative_distance",
    "rescaling_charges",
    "rescaling_imbalance",
    "rotary_attention_logit_bound",
    "rotation_charges",
    "rotation_imbalance",
    "singular_values",
    "spectral_indicators",
    "spectral_norm",
    "srank",
    "stable_rank",
    "token_rank_residual",
    "update_ratio",
    "update_stable_rank",
]
