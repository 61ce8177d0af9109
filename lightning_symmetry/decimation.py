"""Decimation: a long series by a few of its points, which look the same when drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def decimate(steps: Sequence[int], values: Sequence[float], at_most: int) -> list[int]:
    """Choose at most so many points of a series that show its course: the extremes of each of equally wide stretches.

    The first and the last point stay, and in between, of each of `(at_most - 2) // 2` stretches of equally many steps,
    the lowest and the highest value. A line through them looks as one through all of them, to the width of a stretch.

    Args:
        steps: Where the values are, increasing.
        values: The values; NaN counts as the highest, so that it is not overlooked.
        at_most: How many points to keep, at least 2.

    Returns:
        The indices of the points kept, increasing: all of them, where there are no more than `at_most`.

    References:
        Jugel, Jerzak, Hackenbroich, Markl, "M4: A Visualization-Oriented Time Series Data Aggregation", VLDB 2014.

    Example:
        >>> decimate(range(9), [0, 1, 9, 1, 0, -9, 0, 1, 2], at_most=4)
        [0, 2, 5, 8]
    """
    count = len(values)
    if count <= at_most:
        return list(range(count))
    stretches = (at_most - 2) // 2
    if stretches < 1:
        return [0, count - 1]
    inner = np.asarray(steps, dtype=np.float64)[1:-1]
    stretch = (inner - steps[0]) * stretches // (steps[-1] - steps[0])
    by_value = np.lexsort((np.asarray(values, dtype=np.float64)[1:-1], stretch))  # within each stretch; NaN last
    ends = np.flatnonzero(np.diff(stretch))
    lowest, highest = by_value[[0, *(ends + 1)]], by_value[[*ends, count - 3]]
    return [0, *sorted({*(lowest + 1).tolist(), *(highest + 1).tolist()}), count - 1]
