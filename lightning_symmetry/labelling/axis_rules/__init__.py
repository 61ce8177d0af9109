"""What each operation does to the axes of its tensors: one rule an operation, in a small language like ``einsum``'s.

Adding a rule is one line in a table, or a decorated function where the arguments decide::

    axis_table({torch.ops.mine.matmul.default: "m k, k n -> m n"})

    @axis_rule(torch.ops.mine.normalize.default)
    def _(input, dim):
        return "... a -> ... a; ..." if dim == -1 else "a ... -> a ...; ..."

The language is that of `language`. An operation without a rule is asked by experiment: see `experiment`.
"""

from lightning_symmetry.labelling.axis_rules import (  # noqa: F401 - each registers its rules
    contraction,
    indexing,
    normalization,
    pointwise,
    reduction,
    spatial,
)
from lightning_symmetry.labelling.axis_rules.binding import Binding, Contraction
from lightning_symmetry.labelling.axis_rules.language import Rule, parse
from lightning_symmetry.labelling.axis_rules.registry import axis_rule, axis_table, registered, rule_of

__all__ = ["Binding", "Contraction", "Rule", "axis_rule", "axis_table", "parse", "registered", "rule_of"]
