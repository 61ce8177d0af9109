"""What is written down in place of an operation computes the same."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_symmetry.symmetry.find import find_symmetries
from lightning_symmetry.tracing.decompositions import DECOMPOSITIONS

aten = torch.ops.aten


@given(
    groups=st.integers(1, 2),
    space=st.lists(st.integers(5, 7), min_size=1, max_size=2),
    taps=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    transposed=st.booleans(),
)
def test_the_derivative_of_a_convolution_by_its_input(groups, space, taps, stride, padding, dilation, transposed):
    n_dims = len(space)
    n_in, n_out = 2 * groups, 3 * groups
    inputs = torch.randn(2, n_in, *space, dtype=torch.float64)
    shape = (n_in, n_out // groups) if transposed else (n_out, n_in // groups)
    weight = torch.randn(*shape, *[taps] * n_dims, dtype=torch.float64)
    settings = ([stride] * n_dims, [padding] * n_dims, [dilation] * n_dims, transposed, [0] * n_dims, groups)
    gradient = torch.randn_like(aten.convolution(inputs, weight, None, *settings))
    for_both = (gradient, inputs, weight, None, *settings, [True, False, False])
    ours, *_ = DECOMPOSITIONS[aten.convolution_backward.default](*for_both)
    theirs, *_ = aten.convolution_backward(*for_both)
    torch.testing.assert_close(ours, theirs)


def test_symmetries_pass_through_convolutions_that_are_differentiated():
    """As those of a critic with a gradient penalty: the same as without."""

    class Critic(nn.Module):
        def __init__(self, penalized):
            super().__init__()
            self.penalized = penalized
            self.net = nn.Sequential(
                nn.Conv2d(2, 5, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(5, 4, 3, stride=2),
                nn.InstanceNorm2d(4, affine=True),
                nn.LeakyReLU(0.2),
                nn.Flatten(),
                nn.Linear(16, 1),
            )

        def forward(self, images):
            with torch.enable_grad():
                scores = self.net(images.requires_grad_())
                if not self.penalized:
                    return scores
                (slopes,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
            return scores.mean() + (slopes.flatten(1).norm(dim=1) - 1).square().mean()

    plain, penalized = (find_symmetries(Critic(each), torch.randn(3, 2, 6, 6)) for each in (False, True))
    assert [group.name for group in penalized] == [group.name for group in plain]
    assert {"net.0.rescaling", "net.2.scale", "net.2.translation"} <= {group.name for group in penalized}
    assert not penalized.rejected
