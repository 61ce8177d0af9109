"""Norms of which more is read than what they give."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_symmetry.symmetry.find import find_symmetries
from lightning_symmetry.tracing.norms import WRITTEN_OUT

aten = torch.ops.aten


@given(
    groups=st.integers(1, 3),
    size=st.integers(1, 3),
    space=st.lists(st.integers(1, 3), max_size=2),
    gain=st.booleans(),
    shift=st.booleans(),
)
def test_what_is_written_out_is_the_norm(groups, size, space, gain, shift):
    channels = groups * size
    inputs = torch.randn(2, channels, *space, dtype=torch.float64)
    weight, bias = (torch.randn(channels, dtype=torch.float64) if each else None for each in (gain, shift))
    given_to_both = (inputs, weight, bias, 2, channels, inputs[0, 0].numel(), groups, 1e-5)
    written_out = WRITTEN_OUT[aten.native_group_norm.default](*given_to_both)
    for ours, theirs in zip(written_out, aten.native_group_norm(*given_to_both), strict=True):
        torch.testing.assert_close(ours, theirs)


class Penalized(nn.Module):
    """A critic whose slope is looked at, as with a gradient penalty."""

    def __init__(self, norm):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), norm, nn.ReLU(), nn.Linear(4, 1))

    def forward(self, inputs):
        with torch.enable_grad():
            scores = self.net(inputs.requires_grad_())
            (slopes,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
        return scores.mean() + (slopes.norm(dim=1) - 1).square().mean()


BY_CHANNEL = {"net.2", "net.2.scale", "net.2.sign", "net.2.translation"}
BY_GROUP = {"net.2.groups", "net.2.groups.scale", "net.2.groups.sign", "net.2.units"}
BY_ALL = {"net.2", "net.0.scale", "net.2.sign", "net.2.bias.translation"}


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        (nn.LayerNorm(4), BY_ALL),
        (nn.GroupNorm(2, 4), BY_GROUP),
        (nn.BatchNorm1d(4), BY_CHANNEL),
        (nn.BatchNorm1d(4, track_running_stats=False), BY_CHANNEL),
    ],
    ids=["layer", "group", "batch", "batch without running statistics"],
)
def test_symmetries_pass_through_a_norm_that_is_differentiated(norm, expected):
    groups = find_symmetries(Penalized(norm), torch.randn(9, 5))
    assert {group.name for group in groups} == {"net.0", "net.0.rescaling", "net.3.rescaling"} | expected
    assert not groups.rejected


@pytest.mark.parametrize("tracked", [False, True])
def test_a_batch_norm_may_run_twice(tracked):
    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            norm = nn.BatchNorm1d(7, track_running_stats=tracked)
            self.net = nn.Sequential(nn.Linear(5, 7), norm, nn.ReLU(), nn.Linear(7, 3))

        def forward(self, inputs):
            return torch.cosine_similarity(self.net(inputs), self.net(2 * inputs + 1))

    groups = find_symmetries(Twin(), torch.randn(9, 5))
    kinds = {group.kind: group for group in groups if group.axis in ("net.0", "net.1")}
    assert kinds.keys() == {"permutation", "scale", "sign", "translation", "rescaling"}
    assert not groups.rejected
    assert set(kinds["scale"].buffers) == ({"net.1.running_mean", "net.1.running_var"} if tracked else set())
