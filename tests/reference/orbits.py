"""The share of a step along the orbits, from the matrix of all tangents and a least-squares solution."""

import torch

from tests.reference.completeness import tangents


def orbit_fraction(groups, model, step):
    """The step projected on the columns that random tangents of the groups span, for a model in float64."""
    flat = torch.cat([step[name].flatten() for name, parameter in model.named_parameters() if parameter.requires_grad])
    columns = tangents(groups, model)
    columns = columns / columns.norm(dim=0).clamp(min=1e-300)
    projected = columns @ torch.linalg.lstsq(columns, flat[:, None], driver="gelsd").solution
    return float(projected.square().sum() / flat.square().sum())
