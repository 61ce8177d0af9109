"""What each operation does to the axes of its tensors: one rule an operation, in a small language like ``einsum``'s."""

from lightning_symmetry.symmetry.axis_rules import contraction, indexing, normalization, pointwise, reduction, spatial
from lightning_symmetry.symmetry.axis_rules.language import Binding, Contraction, Rule, parse
from lightning_symmetry.symmetry.axis_rules.registry import axis_rule, axis_table, registered, rule_of

__all__ = [
    "Binding",
    "Contraction",
    "Rule",
    "axis_rule",
    "axis_table",
    "contraction",
    "indexing",
    "normalization",
    "parse",
    "pointwise",
    "reduction",
    "registered",
    "rule_of",
    "spatial",
]
