"""How many continuous symmetries a model has, counted without knowing any: the nullity of a Jacobian.

At generic parameters a direction in which no output changes, for any input, is a direction of a symmetry. So the rows
of the Jacobian, over as many inputs as it takes, span all directions that matter, and what is orthogonal to them is the
tangent space of the symmetries. The tangents of the groups found must lie in it, and span it.
"""

import torch


def generic(model, seed=0):
    """The model in float64 at parameters perturbed by noise."""
    model = model.double()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None  # its row would get no gradient, though it does change the outputs
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def jacobian(model, batches, outputs_of):
    """How every output of every batch changes with every parameter: ``(n_outputs, n_parameters)``."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = []
    for batch in batches:
        for output in outputs_of(model(*batch)).flatten():
            gradients = torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
            parts = [
                torch.zeros_like(parameter) if gradient is None else gradient
                for parameter, gradient in zip(parameters, gradients, strict=True)
            ]
            rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


def tangents(groups, model, seed=0):
    """Random tangents of all groups, enough to span each one's Lie algebra: ``(n_parameters, n)``."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    tensors = {**parameters, **frozen, **dict(model.named_buffers())}
    generator = torch.Generator().manual_seed(seed)
    columns = []
    for group in groups:
        if not frozen.keys().isdisjoint(group.parameters):
            continue  # no direction in which a training could move
        for _ in range(group.dimension):
            tangent = group.tangent(tensors, generator)
            zero = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
            full = {**zero, **{name: value for name, value in tangent.items() if name in parameters}}
            columns.append(torch.cat([full[name].flatten() for name in parameters]))
    return torch.stack(columns, dim=1) if columns else torch.zeros(sum(map(torch.Tensor.numel, parameters.values())), 0)


def unaccounted(groups, model, batches, outputs_of, tolerance=1e-9):
    """The nullity, how many directions of it no tangent spans, and by how much a tangent changes an output.

    A singular value counts as zero below the tolerance, relative to the largest; the change is relative to the norms of
    the Jacobian and the tangent.
    """
    changes = jacobian(model, batches, outputs_of)
    _, values, directions = torch.linalg.svd(changes, full_matrices=True)
    null = directions[int((values > tolerance * values[0]).sum()) :].T
    spanned = tangents(groups, model).double()
    spanned = spanned / spanned.norm(dim=0).clamp(min=1e-300)
    outside = float((changes @ spanned).norm(dim=0).max() / values[0]) if spanned.shape[1] else 0.0
    rank = int(torch.linalg.matrix_rank(null.T @ spanned, rtol=1e-9)) if spanned.shape[1] else 0
    return {"nullity": null.shape[1], "unaccounted": null.shape[1] - rank, "outside": outside}
