"""The register of axis rules: for each operation, what it does to the axes of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch._ops import OpOverload

from lightning_symmetry.labelling.axis_rules.language import Rule, parse

RuleText = str | tuple[str, dict[str, int]]
_RULES: dict[OpOverload, Callable[..., RuleText]] = {}


def axis_table(rules: Mapping[OpOverload, str]) -> None:
    """Register operations whose rule does not depend on their arguments.

    Raises:
        ValueError: An operation has a rule already, or a text is no rule.
    """
    for operation, text in rules.items():
        parse(text)
        _register(operation, lambda *args, _text=text, **kwargs: _text)


def axis_rule(*operations: OpOverload) -> Callable[[Callable[..., RuleText]], Callable[..., RuleText]]:
    """Register a function that is called with an operation's arguments and returns its rule.

    With the rule it may return the sizes of letters that no shape tells, as the number of groups of a convolution.

    Raises:
        ValueError: An operation has a rule already.
    """

    def decorate(function: Callable[..., RuleText]) -> Callable[..., RuleText]:
        for operation in operations:
            _register(operation, function)
        return function

    return decorate


def _register(operation: OpOverload, function: Callable[..., RuleText]) -> None:
    if operation in _RULES:
        raise ValueError(f"{operation} has two axis rules; delete one")
    _RULES[operation] = function


def rule_of(
    operation: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Rule, dict[str, int]] | None:
    """The rule of one call and the sizes of its letters; None where the operation has none."""
    function = _RULES.get(operation)
    if function is None:
        return None
    answer = function(*args, **kwargs)
    text, sizes = (answer, {}) if isinstance(answer, str) else answer
    return parse(text), sizes


def registered() -> frozenset[OpOverload]:
    """Every operation that has a rule."""
    return frozenset(_RULES)
