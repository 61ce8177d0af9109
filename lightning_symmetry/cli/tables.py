"""What a scan found, and which symmetries, as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_symmetry.cli.listing import Listing, Row, count, fraction, number, shape, signed
from lightning_symmetry.cli.order_parameters import OrderParameters
from lightning_symmetry.cli.spectra import Scan
from lightning_symmetry.symmetry.groups import Symmetries, SymmetryGroup

_COUNTS = {"distinct_units": "distinct", "alive_units": "alive", "product_rank": "in rank"}
_AGGREGATES = (
    ("mean broken fraction", "symmetry/broken_fraction", fraction),
    ("effective parameters", "complexity/effective_parameters", "{:,.0f}".format),
)


def spectra_table(files: Sequence[Path], scan: Scan, indicators: Sequence[str], limit: int, bad: set[str]) -> Listing:
    """The layers of a checkpoint, worst first.

    Args:
        files: What was read.
        scan: What was found.
        indicators: The columns beside the effective rank fraction.
        limit: How many layers to show; 0 for all.
        bad: The names of what is to be seen first.
    """
    others = [each for each in indicators if each != "effective_rank_fraction"]
    rows = [
        Row(
            [
                layer.name.removesuffix(".weight"),
                shape(layer.shape),
                fraction(layer.values["effective_rank_fraction"]),
                *(_indicator(each, layer.values[each]) for each in others),
            ],
            share=layer.values["effective_rank_fraction"] if layer.finite else None,
            bad=layer.name in bad or not layer.finite,
        )
        for layer in scan.layers
    ]
    finite = [layer.values["effective_rank_fraction"] for layer in scan.layers if layer.finite]
    mean = f", mean effective rank fraction {fraction(sum(finite) / len(finite))}" if finite else ""
    return Listing(
        f"{_counted(len(rows), 'layer')}{mean}" + (", worst first" if len(rows) > 1 else ""),
        [
            ("layer", "name"),
            ("shape", "number"),
            ("effective rank fraction", "number"),
            *((each.replace("_", " "), "number") for each in others),
        ],
        _limited(rows, limit),
        [*_left_out(len(rows), limit), *_notes(scan)],
        bar=2,
        of=str(files[0]),
        meaning="Effective rank is the number of directions that a weight matrix uses, and its fraction that of the "
        "directions that it could use: 1 = all alike; random weights have about 0.80 in a square matrix, and more in "
        "others. A layer far below the others has lost rank: often by too much weight decay or too large a learning "
        "rate; if the model does well nevertheless, the layer can be made smaller.",
    )


def changes_table(files: Sequence[Path], scan: Scan, indicators: Sequence[str], limit: int, bad: set[str]) -> Listing:
    """The layers of two checkpoints, the largest change first; arguments as of `spectra_table`."""
    rows = [
        Row(
            [
                change.name.removesuffix(".weight"),
                shape(change.shape),
                *(
                    cell
                    for each in indicators
                    for cell in (
                        _indicator(each, change.before[each]),
                        _indicator(each, change.after[each]),
                        signed(change.change(each)),
                    )
                ),
                number(change.distance),
            ],
            share=min(abs(change.change(indicators[0])), 1.0) if change.finite else None,
            bad=change.name in bad or not change.finite,
        )
        for change in scan.changes
    ]
    reshaped = [f"{name} {shape(old)} → {shape(new)}" for name, (old, new) in scan.reshaped.items()]
    return Listing(
        f"{_counted(len(rows), 'layer')} in both" + (", largest change from A to B first" if len(rows) > 1 else ""),
        [
            ("layer", "name"),
            ("shape", "number"),
            *((heading, "number") for each in indicators for heading in (f"{each.replace('_', ' ')} A", "B", "change")),
            ("relative distance", "number"),
        ],
        _limited(rows, limit),
        [
            *_left_out(len(rows), limit),
            *_named("only in A", scan.only_in_first),
            *_named("only in B", scan.only_in_second),
            *_named("of another shape", reshaped),
            *_notes(scan),
        ],
        bar=4,
        of=f"A = {files[0]}, B = {files[1]}",
        meaning=f"A is {files[0]}, B is {files[1]}; the bars show the size of the change in "
        f"{indicators[0].replace('_', ' ')}. Relative distance is |B - A| / |A|: 0 = the same weights, about 1.4 = "
        "unrelated ones. A rank that falls much means that the layer has lost directions since A.",
    )


def symmetries_table(symmetries: Symmetries) -> Listing:
    """The symmetry groups of a model."""
    rows = [
        Row([group.kind, group.name, _units(group), str(len(group.parameters)), _verdict(group)])
        for group in symmetries
    ]
    return Listing(
        _counted(len(rows), "symmetry group"),
        [
            ("kind", "words"),
            ("name", "name"),
            ("units", "number"),
            ("parameters", "number"),
            ("verified", "words"),
        ],
        rows,
        [str(symmetries).rpartition("\n")[2]],  # the sentence below the table that it prints as
    )


def broken_table(symmetries: Symmetries, points: Sequence[OrderParameters], limit: int, bad: set[str]) -> Listing:
    """How far the symmetries of a model are broken, the least broken first; or at two checkpoints, most changed first.

    Args:
        symmetries: All groups.
        points: What was measured at one checkpoint or at two.
        limit: How many groups to show; 0 for all.
        bad: The names of what is to be seen first.
    """
    last = points[-1]

    def broken(group: SymmetryGroup) -> list[float]:
        return [point.groups[group.name]["broken_fraction"] for point in points]

    def order(group: SymmetryGroup) -> tuple[bool, float, float]:
        first, then = broken(group)[0], broken(group)[-1]
        return not math.isnan(first + then), -abs(then - first), then

    groups = sorted((group for group in symmetries if group.name in last.groups), key=order)
    rows = [
        Row(
            [group.kind, group.name, _units(group), *map(fraction, broken(group)), _effective(last.groups[group.name])],
            share=broken(group)[-1] if order(group)[0] else None,
            bad=group.name in bad or not order(group)[0],
        )
        for group in groups
    ]
    without = len(symmetries) - len(groups) - len(last.unmeasured)
    headings = ["broken fraction"] if len(points) == 1 else ["broken fraction A", "B"]
    first = "least broken first" if len(points) == 1 else "largest change from A to B first"
    return Listing(
        _counted(len(symmetries), "symmetry group") + (f", {first}" if len(rows) > 1 else ""),
        [
            ("kind", "words"),
            ("name", "name"),
            ("units", "number"),
            *((heading, "number") for heading in headings),
            ("effective units", "number"),
        ],
        _limited(rows, limit),
        [
            *_left_out(len(rows), limit),
            *(
                f"{name}: {' → '.join(text(point.aggregates[key]) for point in points)}"
                for name, key, text in _AGGREGATES
                if key in last.aggregates
            ),
            *([f"without a symmetric state, as scales have none: {_counted(without, 'group')}"] if without else []),
            *_named("too large to measure", last.unmeasured),
        ],
        bar=len(headings) + 2,
        meaning="Each symmetry is a change of the parameters that leaves what the model computes as it is, as to "
        "exchange two hidden units. Broken fraction: 1 = all units of the group differ; 0 = all are equal or dead, and "
        "the model is smaller than it looks.",
    )


def _indicator(name: str, value: float) -> str:
    return (count if name in ("numerical_rank", "srank") else number)(value)


def _effective(values: Mapping[str, float]) -> str:
    """How many units are effective, in the words of the kind."""
    return next((f"{count(values[each])} {word}" for each, word in _COUNTS.items() if each in values), "")


def _units(group: SymmetryGroup) -> str:
    return shape((*(length for _, length in group.rows), group.size))


def _verdict(group: SymmetryGroup) -> str:
    loss, small = ["loss only"] * (group.preserves == "loss"), ["at eps = 0"] * (not group.exact)
    return ", ".join(["yes" if group.verified else "not tried", *loss, *small])


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _limited(rows: Sequence[Row], limit: int) -> Sequence[Row]:
    return rows[:limit] if limit else rows


def _left_out(count: int, limit: int) -> list[str]:
    return [f"and {count - limit} more: --limit 0 shows all"] if 0 < limit < count else []


def _named(what: str, names: Sequence[str], at_most: int = 5) -> list[str]:
    """A note that names the first of some names."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return [f"{what}: {', '.join(names[:at_most])}{more}"] if names else []


def _notes(scan: Scan) -> list[str]:
    """What a scan tells besides its layers."""
    plain = len(scan.unmeasured.get("vectors and scalars", ()))
    counted = [f"{plain} {'vector or scalar' if plain == 1 else 'vectors and scalars'}"] if plain else []
    named = [
        f"{len(names)} of {why} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for why, names in scan.unmeasured.items()
        if why != "vectors and scalars"
    ]
    tied = [f"{name} (is {other})" for name, other in scan.tied.items()]
    return [
        *_named("NOT FINITE", scan.nonfinite),
        *_named("tied, measured once", tied),
        *([f"without a spectrum: {', '.join([*counted, *named])}"] if scan.unmeasured else []),
    ]
