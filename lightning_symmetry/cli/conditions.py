"""What `--fail-on` looks for: `nonfinite`, or a bound on an indicator, as `effective_rank_fraction<0.1`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import click

_COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_PATTERN = re.compile(r"\s*([a-z_0-9]+)\s*(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Condition:
    """A bound on an indicator; on none, it asks only whether what is judged is finite.

    Attributes:
        text: As the user wrote it.
        indicator: The name of the indicator; None for `nonfinite`.
        comparison: `<`, `<=`, `>` or `>=`.
        bound: What to compare with.
    """

    text: str
    indicator: str | None = None
    comparison: str = "<"
    bound: float = 0.0

    def holds(self, values: Mapping[str, float]) -> bool:
        """Whether it is so; never of a value that there is not, or that is NaN."""
        return self.indicator is not None and bool(
            _COMPARISONS[self.comparison](values.get(self.indicator, math.nan), self.bound)
        )


class ConditionType(click.ParamType[Condition]):
    """A condition on the command line."""

    name = "condition"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Condition:
        """Read a condition."""
        if isinstance(value, Condition):
            return value
        text = str(value).strip()
        if text == "nonfinite":
            return Condition(text)
        match = _PATTERN.fullmatch(text)
        if match is None:
            self.fail(
                f"{text!r} is no condition: give nonfinite, or a bound in quotes, as 'effective_rank_fraction<0.1'",
                param,
                ctx,
            )
        return Condition(text, match[1], match[2], float(match[3]))


@dataclass(frozen=True)
class Finding:
    """What a condition was found to hold of.

    Attributes:
        name: The layer or the group.
        condition: The condition, as the user wrote it, or `nonfinite`.
        value: The value that it holds of.
    """

    name: str
    condition: str
    value: float | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.condition}" + ("" if self.value is None else f" (it is {self.value:.4g})")


def judge(
    conditions: Sequence[Condition], rows: Iterable[tuple[str, Mapping[str, float]]], nonfinite: Sequence[str]
) -> list[Finding]:
    """All findings: where there is any condition, what is not finite is one, since no bound can be said to hold.

    Args:
        conditions: What to look for.
        rows: The name of each layer and group, with the values of its indicators.
        nonfinite: The names of the tensors that hold a NaN or an infinity.

    Example:
        >>> print(*judge([Condition("rank<2", "rank", "<", 2.0)], [("a", {"rank": 1.0}), ("b", {"rank": 3.0})], ["c"]))
        c: nonfinite a: rank<2 (it is 1)
    """
    if not conditions:
        return []
    return [Finding(name, "nonfinite") for name in nonfinite] + [
        Finding(name, condition.text, values[condition.indicator or ""])
        for name, values in rows
        for condition in conditions
        if condition.holds(values)
    ]
