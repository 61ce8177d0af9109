"""What a scan found in plain types, for JSON, which knows neither NaN nor infinity: both are None."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_symmetry.cli.conditions import Finding
from lightning_symmetry.cli.order_parameters import OrderParameters
from lightning_symmetry.cli.spectra import Change, Layer, Scan
from lightning_symmetry.symmetry.groups import Symmetries


def plain(
    paths: Sequence[Path],
    scan: Scan,
    symmetries: Symmetries | None,
    points: Sequence[OrderParameters],
    findings: Sequence[Finding],
    limit: int,
) -> dict[str, Any]:
    """All that was found.

    Args:
        paths: The checkpoint, or the two.
        scan: The spectra of one, or the changes between two.
        symmetries: The symmetries of the model, if one was given.
        points: How far they are broken at each checkpoint.
        findings: What conditions were found to hold.
        limit: How many layers to tell of; 0 for all.
    """
    rows = [*map(_layer, scan.layers), *map(_change, scan.changes)]
    found: dict[str, Any] = {
        "checkpoints": list(map(str, paths)),
        "layers": rows[:limit] if limit else rows,
        "nonfinite": scan.nonfinite,
        "tied": scan.tied,
        "without_spectrum": scan.unmeasured,
    }
    if len(paths) > 1:
        found |= {"only_in_a": scan.only_in_first, "only_in_b": scan.only_in_second, "reshaped": scan.reshaped}
    if symmetries is not None:
        found["symmetries"] = {
            "groups": [
                {
                    "kind": group.kind,
                    "name": group.name,
                    "size": group.size,
                    "rows": group.n_rows,
                    "parameters": group.parameters,
                    "verified": group.verified,
                    "at": [_finite(point.groups.get(group.name, {})) for point in points],
                }
                for group in symmetries
            ],
            "at": [_finite(point.aggregates) for point in points],
        }
    return found | {"findings": [asdict(finding) for finding in findings]}


def _layer(layer: Layer) -> dict[str, Any]:
    return {"name": layer.name, "shape": layer.shape, **_finite(layer.values)}


def _change(change: Change) -> dict[str, Any]:
    indicators = {
        each: _finite({"a": change.before[each], "b": change.after[each], "change": change.change(each)})
        for each in change.before
    }
    return {
        "name": change.name,
        "shape": change.shape,
        **_finite({"relative_distance": change.distance}),
        **indicators,
    }


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
