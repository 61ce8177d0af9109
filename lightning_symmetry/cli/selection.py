"""Which names two regular expressions leave."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from lightning_symmetry.cli.failure import Failure


def select(names: Iterable[str], include: str | None, exclude: str | None) -> list[str]:
    """Those names that `include` is found in and `exclude` is not, as `include` and `exclude` of the monitors.

    Raises:
        Failure: One is no regular expression, or is found in no name.

    Example:
        >>> select(["encoder.weight", "decoder.weight", "head.weight"], "coder", "^de")
        ['encoder.weight']
    """
    names = list(names)
    for option, pattern in (("--include", include), ("--exclude", exclude)):
        try:
            found = pattern is None or any(re.search(pattern, name) for name in names)
        except re.error as error:
            raise Failure(f"{option} {pattern!r} is no regular expression: {error}") from error
        if not found:
            nearest = difflib.get_close_matches(str(pattern), names, n=3, cutoff=0) or names[:3]
            raise Failure(
                f"{option} {pattern!r} is found in the name of no tensor; the nearest are {', '.join(nearest)}"
            )
    return [
        name
        for name in names
        if (include is None or re.search(include, name)) and not (exclude is not None and re.search(exclude, name))
    ]
