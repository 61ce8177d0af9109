"""Find the symmetries of an existing model: trace one step, label its axes, read off the groups, verify them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_symmetry.stacks import first_of, n_stacked
from lightning_symmetry.symmetry.actions import Block
from lightning_symmetry.symmetry.exchange import innermost, propose_with_exchanges, unexchanged
from lightning_symmetry.symmetry.groups import Symmetries, SymmetryGroup
from lightning_symmetry.symmetry.kinds import KINDS
from lightning_symmetry.symmetry.proposals import propose
from lightning_symmetry.symmetry.verification import Verified, verify
from lightning_symmetry.tracing.step import Step
from lightning_symmetry.tracing.tracing import trace


def find_symmetries(
    model: nn.Module, batch: Any, *, kinds: Sequence[str] | None = None, verify_up_to: int = 200_000_000
) -> Symmetries:
    """Find every symmetry of a model's parameters, and verify each on the model.

    A parameter symmetry is a transformation of the parameters that leaves the model's outputs unchanged for every
    input. One step is run on the batch and traced; neither the model nor any random stream is changed by it.

    Args:
        model: A `LightningModule`, whose `training_step` is traced, or any module, which is called as ``model(batch)``,
            ``model(*batch)`` for a tuple, ``model(**batch)`` for a mapping.
        batch: One batch of data, on the device of the model: what `training_step` of a LightningModule gets, and of
            another module its argument; a tuple for several, a mapping for keyword arguments.
        kinds: The kinds of symmetry to look for; None for all: ``"permutation"``, ``"sign"``,
            ``"rescaling"``, ``"rotation"``, ``"scale"``, ``"translation"``.
        verify_up_to: The largest number of parameters at which groups are verified; above it they have
            ``verified=None``.

    Returns:
        The groups, in the order of the parameters that they move.

    Raises:
        ValueError: A kind is unknown, the model has no parameters, one step returns nothing to compare, or nothing
            that depends on a parameter, or a module is called ``*`` or ``{a,b}``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [(group.kind, group.name, group.size) for group in find_symmetries(model, torch.randn(16, 4))]
        [('permutation', '0', 8), ('rescaling', '0.rescaling', 8)]

    References:
        Ziyin, Xu, Poggio, Chuang, "Parameter Symmetry Potentially Unifies Deep Learning Theory", arXiv:2502.05300.
    """
    check_kinds(kinds)
    step = Step(model, batch)
    tape = trace(step)
    if not any(output.depends for output in tape.outputs):
        raise ValueError(
            f"what one step of {type(model).__name__} returns depends on none of its parameters, or reaches them by a "
            "global variable or a weak reference; reach them by `self`"
        )
    odd = next((name for name in tape.leaves if n_stacked(name)), None)
    if odd is not None:
        raise ValueError(f"the name {odd!r} of a parameter or buffer stands for several; give its module another one")
    kinds = tuple(KINDS) if kinds is None else kinds
    apart = propose(tape, step.parameters, kinds)
    left: list[str] = []
    while True:
        proposals, exchanged = propose_with_exchanges(tape, step.parameters, kinds, apart, left)
        verified = Verified(proposals.groups)
        if sum(parameter.numel() for parameter in step.parameters.values()) <= verify_up_to:
            verified = verify(step, proposals.groups)
        refuted = unexchanged(verified.groups, exchanged)
        if not refuted:
            break
        left += innermost(refuted, exchanged)
    return Symmetries(
        groups=tuple(verified.groups),
        blocks=proposals.blocks,
        share=_share(verified.groups, proposals.blocks, step),
        rejected=tuple(group.name for group in verified.rejected),
        without_rule=proposals.without_rule,
        one_batch=verified.one_batch,
    )


def check_kinds(kinds: Sequence[str] | None) -> None:
    """Refuse an unknown kind of symmetry.

    Raises:
        ValueError: A kind is unknown.
    """
    for kind in kinds or ():
        if kind not in KINDS:
            raise ValueError(
                f"kinds={list(kinds or ())!r}: {kind!r} is no kind of symmetry; known kinds: {', '.join(KINDS)}"
            )


def _share(groups: Sequence[SymmetryGroup], blocks: Sequence[Block], step: Step) -> float:
    """The share of the parameters' entries that are in a block which a group moves, or in a tensor moved as a whole."""
    moved = {block for group in groups for block in group.blocks}
    wholes = {block.tensor for block in moved.difference(blocks)}
    of_parameters = [block for block in blocks if first_of(block.tensor) in step.parameters]
    entries = sum(block.numel for block in of_parameters if block in moved or block.tensor in wholes)
    return entries / sum(parameter.numel() for parameter in step.parameters.values())
