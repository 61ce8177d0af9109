"""What a proposed group is put to, and at which parameters."""

import torch
from torch import nn

from lightning_symmetry.symmetry.find import find_symmetries
from lightning_symmetry.symmetry.verification import _generic


class Complex(nn.Module):
    """A layer of complex weights, whose moduli a real layer reads."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Parameter(torch.randn(5, 7, dtype=torch.complex64))
        self.outer = nn.Linear(7, 3)

    def forward(self, inputs):
        return self.outer((inputs.to(torch.complex64) @ self.inner).abs())


def test_complex_parameters_are_perturbed_and_their_groups_verified_in_double_precision():
    torch.manual_seed(0)
    model = Complex()
    symmetries = find_symmetries(model, torch.randn(6, 5), kinds=["permutation"])
    assert [(group.name, group.size, group.verified) for group in symmetries] == [("inner", 7, True)]
    assert not symmetries.rejected
    generic = _generic({"inner": model.inner.detach()}, torch.Generator())["inner"]
    assert generic.dtype == torch.complex128
    assert (generic - model.inner).abs().min() > 0
