"""How alike two representations are, whatever the rotation of either.

**Linear CKA.** For features X (N x d) and Y (N x d') of the same N samples, of two layers or two models, let K and L be
X X^T and Y Y^T. The unbiased estimate of the Hilbert-Schmidt independence criterion is

    HSIC(K, L) = sum_{i != j} U_ij V_ij / (N (N - 3)),

U and V being K and L less what a shift of the samples could add: off the diagonal U_ij = K_ij - r_i / (N - 2) -
r_j / (N - 2) + sum r / ((N - 1) (N - 2)), r_i = sum_{j != i} K_ij,
and CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)). Over mini-batches each of the three is a mean over batches: being
unbiased they tend to the values of all samples at once, so the size of the batches does not matter; fewer than four
samples tell nothing, and count as nothing.

**Canonical alignment.** In the canonical representation hypothesis the second moment of the activations h of a layer,
that of the gradients g of the loss for h, and W W^T of the weights that write h (W^T W of those that read it) become
proportional to one another. For two such matrices the alignment is their cosine <A, B>_F / (|A|_F |B|_F).

All results are detached 0-d float64 tensors, finite for finite features. A NaN or an infinity makes every result NaN.

Sources: Kornblith, Norouzi, Lee, Hinton, "Similarity of Neural Network Representations Revisited" (arXiv:1905.00414);
Song et al., "Feature Selection via Dependence Maximization" (JMLR 2012), for the unbiased estimate; Nguyen, Raghu,
Kornblith, "Do Wide and Deep Networks Learn the Same Things?" (arXiv:2010.15327), for mini-batches; Ziyin et al.,
"Formation of Representations in Neural Networks" (arXiv:2410.03006).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_symmetry.functional.feature_spectrum import as_samples, moments
from lightning_symmetry.functional.precision import for_measuring, in_own_units

LEAST_SAMPLES = 4
"""The least number of samples in a batch that tells of similarity."""


def hsic(features: Sequence[Tensor]) -> Tensor:
    """Unbiased HSIC of every two of several features of one batch: add them up over batches for `linear_cka_of`.

    Args:
        features: ``n`` tensors ``(n_samples, dim)``, each with a dim of its own.

    Returns:
        ``(n, n)`` in float64, symmetric; zeros for fewer than four samples.

    Raises:
        ValueError: If a tensor has not two dimensions, or they have not the same number of samples.

    Example:
        >>> hsic([torch.eye(4), torch.eye(4)]).shape
        torch.Size([2, 2])
    """
    rows = [as_samples(one) for one in features]
    if len({len(one) for one in rows}) > 1:
        raise ValueError(
            f"features must be of the same samples, in the same order; got {', '.join(str(len(one)) for one in rows)} "
            "samples."
        )
    if len(rows[0]) < LEAST_SAMPLES:
        return rows[0].new_zeros(len(rows), len(rows))
    return hsic_of_grams(torch.stack([centred_gram(one) for one in rows]))


def centred_gram(features: Tensor) -> Tensor:
    """Gram matrix of features less their mean, which changes no HSIC and keeps its digits.

    Args:
        features: ``(n_samples, dim)``.

    Returns:
        ``(n_samples, n_samples)`` in float64.

    Raises:
        ValueError: If ``features`` has not two dimensions.

    Example:
        >>> centred_gram(torch.tensor([[1.0], [3.0]]))
        tensor([[ 1., -1.],
                [-1.,  1.]], dtype=torch.float64)
    """
    rows = as_samples(features)
    rows = rows - rows.mean(0)
    return rows @ rows.T


def hsic_of_grams(grams: Tensor) -> Tensor:
    """`hsic` from Gram matrices.

    Args:
        grams: ``(n, n_samples, n_samples)``, at least four samples.

    Returns:
        ``(n, n)``.

    Example:
        >>> hsic_of_grams(torch.eye(4)[None]).item()
        0.0
    """
    n = grams.shape[-1]
    grams = grams - torch.diag_embed(grams.diagonal(dim1=1, dim2=2))
    sums = grams.sum(2) / (n - 2)
    total = sums.sum(1) / (n - 1)
    centred = grams - sums[:, :, None] - sums[:, None, :] + total[:, None, None]
    flat = (centred - torch.diag_embed(centred.diagonal(dim1=1, dim2=2))).flatten(1)
    return flat @ flat.T / (n * (n - 3))


def linear_cka_of(hsics: Tensor) -> Tensor:
    """Linear CKA of every two of several features, from their HSICs, summed over batches.

    Args:
        hsics: ``(n, n)``, as from `hsic`.

    Returns:
        ``(n, n)``, 1 on the diagonal, but 0 where an HSIC with itself is not above 0.

    Example:
        >>> linear_cka_of(torch.tensor([[4.0, 2.0], [2.0, 1.0]]))
        tensor([[1., 1.],
                [1., 1.]])
    """
    own = hsics.diagonal()
    some = own > 0
    norms = torch.where(some | own.isnan(), own, 1.0).sqrt()
    nothing = ~(some[:, None] & some) & ~hsics.isnan()
    return torch.where(nothing, 0.0, hsics / norms[:, None] / norms)


def linear_cka(first: Tensor, second: Tensor) -> Tensor:
    """Linear centred kernel alignment of two representations of the same samples, unbiased.

    HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), K and L the Gram matrices of the samples, HSIC the unbiased estimate: no
    rotation, shift or common factor of either representation changes it. Nguyen, Raghu, Kornblith, "Do Wide and Deep
    Networks Learn the Same Things?" (arXiv:2010.15327).

    Args:
        first: ``(n_samples, dim)``.
        second: ``(n_samples, other_dim)``, of the same samples in the same order.

    Returns:
        0-d, at most 1 but for noise: 1 if one is a rotation of the other times a factor; about 0, and as likely below
        as above, if they are independent. 0 for fewer than four samples, and where one does not vary.

    Raises:
        ValueError: If a tensor has not two dimensions, or they have not the same number of samples.

    Example:
        >>> features = torch.arange(12.0).reshape(6, 2) ** 2
        >>> round(linear_cka(features, 3 * features.flip(1) + 1).item(), 6)
        1.0
    """
    return linear_cka_of(hsic([in_own_units(as_samples(first)), in_own_units(as_samples(second))]))[0, 1]


def moment_alignment(first: Tensor, second: Tensor) -> Tensor:
    """Cosine between two second moments: <A, B>_F / (|A|_F |B|_F).

    Args:
        first: ``(dim, dim)``, positive semidefinite.
        second: ``(dim, dim)``, positive semidefinite.

    Returns:
        0-d, in [0, 1]: 1 if they are proportional, 0 if no direction is in both, and where one is zero.

    Example:
        >>> moment_alignment(torch.diag(torch.tensor([1.0, 0.0])), torch.eye(2)).item()  # 1 / sqrt(2)
        0.7071067811865475
    """
    a, b = (in_own_units(for_measuring(one, torch.float64)) for one in (first, second))
    norms = torch.linalg.matrix_norm(a) * torch.linalg.matrix_norm(b)
    return (a * b).sum() / torch.where(norms == 0, 1.0, norms)


def canonical_alignment(activations: Tensor, gradients: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
    """Cosines between the second moments of a layer's activations, of their gradients, and W W^T.

    Ziyin et al., "Formation of Representations in Neural Networks" (arXiv:2410.03006).

    Args:
        activations: ``(n_samples, dim)``, h.
        gradients: ``(n_samples, dim)``, g, of the loss for the activations.
        weight: ``(dim, other_dim)``, W: the weights that write the activations, or the transpose of those that read
            them; None leaves out what needs it.

    Returns:
        ``"activation_gradient"``, and with a weight ``"activation_weight"`` and ``"gradient_weight"``: each 0-d, in
        [0, 1]: 1 if the two are proportional (the canonical representation hypothesis), about |M|_* / (sqrt(dim) |M|_F)
        if the other is isotropic, 0 if no direction is in both, and where one is zero.

    Raises:
        ValueError: If a tensor has not two dimensions, or they have not the same ``dim``.

    Example:
        >>> h = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
        >>> {name: value.item() for name, value in canonical_alignment(h, -h, torch.eye(2)[:, :1]).items()}
        {'activation_gradient': 1.0, 'activation_weight': 1.0, 'gradient_weight': 1.0}
    """
    named = {"activation": activations, "gradient": gradients, **({} if weight is None else {"weight": weight})}
    rows = {
        name: in_own_units(as_samples(tensor.T if name == "weight" else tensor, name)) for name, tensor in named.items()
    }
    if len({one.shape[1] for one in rows.values()}) > 1:
        raise ValueError(
            "activations, gradients and weight.T must have one dim; got "
            f"{', '.join(f'{name} {one.shape[1]}' for name, one in rows.items())}. Give weights that read the "
            "activations as weight.T."
        )
    return alignments_of({name: moments(one).outer for name, one in rows.items()})


def alignments_of(outers: dict[str, Tensor]) -> dict[str, Tensor]:
    """`canonical_alignment` from second moments, or sums of which these are the means.

    Args:
        outers: ``(dim, dim)`` of ``"activation"``, ``"gradient"`` and, if there is one, ``"weight"``.

    Returns:
        As for `canonical_alignment`.

    Example:
        >>> values = alignments_of({"activation": torch.eye(2), "gradient": torch.eye(2)})
        >>> round(values["activation_gradient"].item(), 6)
        1.0
    """
    names = list(outers)
    return {
        f"{one}_{other}": moment_alignment(outers[one], outers[other])
        for number, one in enumerate(names)
        for other in names[number + 1 :]
    }
