"""Operations that act on each entry by itself, with broadcasting."""

import torch

from lightning_symmetry.labelling.axis_rules.registry import axis_rule, axis_table

aten = torch.ops.aten

POINTWISE = """
    abs acos acosh add angle asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or bitwise_xor ceil clamp
    copysign cos cosh digamma div elu eq erf erfc erfinv exp exp2 expm1 floor fmax fmin fmod ge gelu gt hardtanh hypot
    isinf isnan le leaky_relu lgamma log log10 log1p log2 logical_and logical_not logical_or logical_xor lt maximum
    minimum mul ne neg pow reciprocal relu remainder round rsqrt sigmoid sign signbit sin sinh sqrt sub tan tanh trunc
    where
"""

axis_table(
    {
        getattr(packet, overload): "..."
        for packet in (getattr(aten, name) for name in POINTWISE.split())
        for overload in packet.overloads()
        if not getattr(packet, overload)._schema.is_mutable and torch.Tag.pointwise in getattr(packet, overload).tags
        if getattr(packet, overload) != aten.eq.Tensor
    }
)


@axis_rule(aten.eq.Tensor)
def _(input, other):
    """Pointwise; indices compared with all numbers in order are one-hot along the axis of which they are indices."""
    numbers = getattr(other, "constant", other)
    one_hot = (
        numbers is not None
        and input.dtype == numbers.dtype == torch.int64
        and input.shape[-1:] == (1,)
        and torch.equal(numbers, torch.arange(numbers.numel(), device=numbers.device))
    )
    return ("... 1 @ e, _ -> ... e", {"e": numbers.numel()}) if one_hot else "..."
