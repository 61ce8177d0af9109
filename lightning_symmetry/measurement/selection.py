"""Which names two regular expressions leave."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def check_patterns(include: str | None, exclude: str | None) -> None:
    """Refuse what is no regular expression.

    Raises:
        ValueError: One is none.
    """
    for argument, pattern in (("include", include), ("exclude", exclude)):
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{argument}={pattern!r} is no regular expression: {error}") from error


def select(names: Iterable[str], include: str | None, exclude: str | None, of: str) -> list[str]:
    """Those names that `include` is found in and `exclude` is not.

    Args:
        names: The names to choose from.
        include: A regular expression; None for all names.
        exclude: A regular expression; None for no name.
        of: Of what the names are, for messages.

    Raises:
        ValueError: One is no regular expression, or is found in no name.

    Example:
        >>> select(["encoder.weight", "decoder.weight", "head.weight"], "coder", "^de", of="tensor")
        ['encoder.weight']
    """
    check_patterns(include, exclude)
    names = list(names)
    for argument, pattern in (("include", include), ("exclude", exclude)):
        if pattern is not None and not any(re.search(pattern, name) for name in names):
            nearest = difflib.get_close_matches(pattern, names, n=3, cutoff=0) or names[:3]
            raise ValueError(
                f"{argument}={pattern!r} is found in the name of no {of}; the nearest are {', '.join(nearest)}"
            )
    return [
        name
        for name in names
        if (include is None or re.search(include, name)) and not (exclude is not None and re.search(exclude, name))
    ]
