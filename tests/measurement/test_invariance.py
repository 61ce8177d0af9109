"""Every order parameter is the same at all parameters that the symmetries of a model make equivalent."""

import pytest
import torch
import transformers
from torch import nn

from lightning_symmetry.functional.precision import for_measuring
from lightning_symmetry.gauge.gauge import Gauge
from lightning_symmetry.measurement import indicators
from lightning_symmetry.measurement.indicators import SharedGauge, symmetry_pieces
from lightning_symmetry.measurement.products import product_pieces
from lightning_symmetry.measurement.snapshot import snapshot
from lightning_symmetry.stacks import Stacked
from lightning_symmetry.symmetry.actions import along
from lightning_symmetry.symmetry.find import find_symmetries
from tests.module_lists import Experts, Heads, NormedExperts
from tests.small_models import PreNorm, TurnedAttention
from tests.zoo import ZOO, found

FEW = ("mlp tanh", "unet", "encoder post-norm", "llama", "lstm")
"""Models that between them have groups of all kinds and forms."""


def generic(model, dtype):
    """The model's tensors, every parameter a little off where it was made."""
    generator = torch.Generator().manual_seed(7)
    tensors = {
        name: for_measuring(tensor, dtype) if tensor.is_floating_point() or tensor.is_complex() else tensor
        for name, tensor in snapshot(model).items()
    }
    for name, _ in model.named_parameters():
        noise = torch.randn(tensors[name].shape, generator=generator, dtype=torch.float64)
        tensors[name] = tensors[name] + 0.1 * noise.to(dtype)
    return tensors


def moved(tensors, groups, seed=5):
    """The tensors that random elements of the groups leave, one after another."""
    generator = torch.Generator().manual_seed(seed)
    for group in groups:
        tensors = group.transform(tensors, generator)
    return tensors


def measured(symmetries, tensors):
    """All order parameters, from a gauge that is found anew."""
    values, gauge, tensors = {}, SharedGauge(symmetries), Stacked(tensors)
    for piece in [*symmetry_pieces(symmetries, 1e-2, gauge), *product_pieces(symmetries, gauge)]:
        values |= dict(zip(piece.keys, map(float, piece.measure(tensors)), strict=True))
    return values


def assert_same(after, before, abs=1e-9):
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert after[key] == pytest.approx(value, rel=1e-5, abs=abs), key


def two_equal(group, degree, units):
    if group.kind == "permutation":
        units[:, 1] = units[:, 0]


def nothing_comes_in(group, degree, units):
    if group.kind in ("rescaling", "sign") and degree > 0:
        units[:, 3] = 0


def nothing_goes_out(group, degree, units):
    if group.kind == "rescaling" and degree < 0:
        units[:, 2] = 0


def a_rank_lost(group, degree, units):
    if group.kind == "rotation" and not group.form and degree > 0:
        units[:, -1] = 0


STATES = {
    "two equal": (two_equal,),
    "nothing comes in": (nothing_comes_in,),
    "nothing goes out": (nothing_goes_out,),
    "a rank lost": (a_rank_lost,),
    "all at once": (two_equal, nothing_goes_out, a_rank_lost),
}
"""What is written into the units of every group that has at least five, ``(n_rows, n, rest)`` at a time."""


def symmetric(symmetries, tensors, state):
    """The tensors at a symmetric state of many groups, and whether there is any group that has such a state.

    A coordinate of a stream that may be rotated is dead in one basis alone: what reads it is left as it is.
    """
    tensors, written = {name: tensor.clone() for name, tensor in tensors.items()}, False
    rotated = {group.axis for group in symmetries if group.form}
    for group in symmetries:
        for action in group.actions:
            if group.size >= 5 and action.block.tensor in group.parameters and group.axis not in rotated:
                for part, degree in along(tensors[action.block.tensor], action, [row for row, _ in group.rows]):
                    units = part.contents.clone()
                    for write in STATES[state]:
                        write(group, degree, units)
                    written |= not torch.equal(units, part.contents)
                    part.write(units)
    return tensors, written


def that_act(symmetries, tensors):
    """The groups but those that go through a norm's gain of which an entry is zero, where they are not defined."""
    return [
        group
        for group in symmetries
        if all(fold.kind == "translation" or bool(fold.element(tensors).all()) for fold in group.folds)
    ]


@pytest.mark.parametrize("name", ZOO)
def test_all_groups_at_once_change_no_order_parameter(name):
    symmetries = found(name)
    tensors = generic(ZOO[name].build(), torch.float64)
    assert_same(measured(symmetries, moved(tensors, symmetries)), measured(symmetries, tensors))


@pytest.mark.parametrize(
    ("name", "state"),
    [(name, state) for name in ZOO for state in STATES if name in FEW or state in ("nothing comes in", "all at once")],
)
def test_nor_do_they_at_symmetric_states(name, state):
    symmetries = found(name)
    tensors, written = symmetric(symmetries, generic(ZOO[name].build(), torch.float64), state)
    before = measured(symmetries, tensors)
    if written and state != "nothing goes out":  # of a LayerNorm the mean of all is taken from what reads it
        assert min(value for key, value in before.items() if "broken_fraction" in key) < 1
    assert_same(measured(symmetries, moved(tensors, that_act(symmetries, tensors))), before)


@pytest.mark.parametrize("name", FEW)
def test_the_groups_of_each_kind_change_no_order_parameter(name):
    symmetries = found(name)
    tensors = generic(ZOO[name].build(), torch.float64)
    before = measured(symmetries, tensors)
    for kind in dict.fromkeys((group.kind, group.form) for group in symmetries):
        some = [group for group in symmetries if (group.kind, group.form) == kind]
        assert_same(measured(symmetries, moved(tensors, some)), before)


SLOW = (
    *("resnet basic", "resnet bottleneck", "mobilenet", "convnext", "unet", "gpt2", "bert", "vit", "encoder post-norm"),
    *("encoder pre-norm", "llama", "gemma", "mixtral eager", "mixtral batched", "t5", "mamba", "mlp-mixer"),
)
"""Models that have so many groups that to try each by itself takes minutes."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in ZOO])
def test_each_group_by_itself_changes_no_order_parameter(name):
    assert_each_changes_nothing(name, found(name))


@pytest.mark.parametrize("name", SLOW)
def test_one_group_of_each_kind_by_itself_changes_no_order_parameter(name):
    """Which one is another for each model."""
    of_kind = {}
    for group in found(name):
        of_kind.setdefault((group.kind, group.form), []).append(group)
    place = SLOW.index(name)
    assert_each_changes_nothing(name, [groups[place % len(groups)] for groups in of_kind.values()])


def assert_each_changes_nothing(name, groups):
    symmetries = found(name)
    tensors = generic(ZOO[name].build(), torch.float64)
    before = measured(symmetries, tensors)
    for group in groups:
        assert_same(measured(symmetries, moved(tensors, [group])), before)


@pytest.mark.parametrize("name", ZOO)
def test_in_single_precision_too(name):
    symmetries = found(name)
    tensors = generic(ZOO[name].build(), torch.float32)
    assert_same(measured(symmetries, moved(tensors, symmetries)), measured(symmetries, tensors))


@pytest.mark.parametrize("name", ZOO)
def test_in_single_precision_at_symmetric_states_but_for_its_rounding_of_what_is_equal(name):
    symmetries = found(name)
    tensors, _ = symmetric(symmetries, generic(ZOO[name].build(), torch.float32), "all at once")
    after = measured(symmetries, moved(tensors, that_act(symmetries, tensors)))
    assert_same(after, measured(symmetries, tensors), abs=1e-4)


@pytest.mark.parametrize("name", ["mlp relu", "conv stack", "gpt2"])
def test_in_the_raw_gauge_they_do_change(name, monkeypatch):
    """What the gauge is for: without it the same elements change what is measured of permutations."""
    symmetries = found(name)
    permutations = symmetries.select([group for group in symmetries if group.kind == "permutation"])
    tensors = generic(ZOO[name].build(), torch.float64)
    monkeypatch.setattr(indicators, "find_gauge", lambda *_: Gauge())
    before, after = (measured(permutations, each) for each in (tensors, moved(tensors, symmetries)))
    changes = [abs(after[key] - value) / value for key, value in before.items() if "relative_distance" in key]
    assert max(changes) > 1e-3


def dinov2():
    config = transformers.Dinov2Config(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=3, mlp_ratio=2, image_size=8, patch_size=4
    )
    batch = {"pixel_values": torch.randn(2, 3, 8, 8), "labels": torch.tensor([0, 1])}
    return transformers.Dinov2ForImageClassification(config), batch


def heads_without_biases():
    """Between norms that have biases, in a stream that may be rotated."""
    layer = PreNorm(12, 7)
    layer.layer = Heads(12, 3, 4)
    return nn.Sequential(nn.Linear(5, 12), layer, nn.LayerNorm(12, eps=0), nn.Linear(12, 13)), torch.randn(2, 6, 5)


def experts_behind_a_map():
    return nn.Sequential(nn.Linear(3, 4), Experts(4, 3, 5), nn.Linear(4, 2)), torch.randn(16, 3)


def experts_behind_norms():
    return nn.Sequential(nn.Linear(3, 4), NormedExperts(), nn.Linear(4, 2)), torch.randn(16, 3)


def experts_before_norms():
    return nn.Sequential(nn.Linear(3, 4), NormedExperts(first=False), nn.Linear(4, 2)), torch.randn(16, 3)


def turning(**how):
    return lambda: (TurnedAttention(**how), torch.randn(4, 6, 5))


class Spectral(nn.Module):
    """Complex maps between the frequencies of what goes in, as in a Fourier neural operator."""

    def __init__(self):
        super().__init__()
        self.read, self.last = nn.Linear(4, 5), nn.Linear(6, 2)
        self.maps = nn.Parameter(torch.randn(5, 6, 3, dtype=torch.complex64))

    def forward(self, inputs):
        spectrum = torch.fft.rfft(self.read(inputs).relu().mT)[..., :3]
        mapped = torch.einsum("bil,iol->bol", spectrum, self.maps)
        return self.last(torch.fft.irfft(mapped, n=inputs.shape[1]).mT.relu())


class ComplexMaps(nn.Module):
    """Complex linear maps in a row, before a norm of the length."""

    def __init__(self):
        super().__init__()
        shapes = ((4, 6), (6, 5), (5, 7))
        self.maps = nn.Sequential(*(nn.Linear(*shape, bias=False, dtype=torch.complex64) for shape in shapes))

    def forward(self, inputs):
        mapped = self.maps(inputs.to(torch.complex64))
        return (mapped / mapped.abs().square().mean(-1, keepdim=True).sqrt()).real


def phi():
    """Maps side by side, each with a bias, in a stream whose mean nothing sees: shifts that are sums of others."""
    config = transformers.PhiConfig(
        vocab_size=20, hidden_size=16, intermediate_size=14, num_hidden_layers=1, num_attention_heads=2
    )
    tokens = torch.randint(0, 20, (4, 6))
    return transformers.PhiForCausalLM(config), {"input_ids": tokens, "labels": tokens}


def olmo2():
    """Queries and keys each behind a norm over all heads, with a gain: coordinates that several signs flip."""
    sizes = {"hidden_size": 16, "intermediate_size": 14, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = torch.randint(0, 20, (4, 6))
    model = transformers.Olmo2ForCausalLM(transformers.Olmo2Config(vocab_size=20, eos_token_id=1, **sizes))
    return model, {"input_ids": tokens, "labels": tokens}


SMALL = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 14, "num_hidden_layers": 1}


def gemma2():
    """Gated layers between two norms, whose gains are kept as their difference from one: scales tied to others."""
    config = transformers.Gemma2Config(**SMALL, num_attention_heads=4, num_key_value_heads=2, head_dim=4)
    tokens = torch.randint(0, 20, (4, 6))
    return transformers.Gemma2ForCausalLM(config), {"input_ids": tokens, "labels": tokens}


def stablelm():
    """A norm for each head's queries and keys, and a stream whose scale acts on gains of norms, and on their biases."""
    config = transformers.StableLmConfig(
        **SMALL, num_attention_heads=2, num_key_value_heads=2, qk_layernorm=True, bos_token_id=0, eos_token_id=0
    )
    tokens = torch.randint(0, 20, (4, 6))
    return transformers.StableLmForCausalLM(config), {"input_ids": tokens, "labels": tokens}


def spectral():
    return Spectral(), torch.randn(3, 8, 4)


def complex_maps():
    return ComplexMaps(), torch.randn(30, 4)


BUILDS = {
    "dinov2": dinov2,
    "heads without biases": heads_without_biases,
    "experts behind a map": experts_behind_a_map,
    "experts behind norms": experts_behind_norms,
    "experts before norms": experts_before_norms,
    "attention by angle": turning(by_angle=True),
    "rotary": turning(turned=6),
    "rotary, side by side": turning(turned=6, side_by_side=True),
    "rotary in part": turning(turned=4),
    "rotary in part, side by side": turning(turned=4, side_by_side=True),
    "phi": phi,
    "olmo2": olmo2,
    "gemma2": gemma2,
    "stablelm": stablelm,
    "spectral": spectral,
    "complex maps": complex_maps,
}


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_nor_in_models_beside_the_zoo(build):
    torch.manual_seed(0)
    model, batch = build()
    symmetries = find_symmetries(model, batch)
    assert not symmetries.rejected
    tensors = generic(model, torch.float64)
    before = measured(symmetries, tensors)
    for group in symmetries:
        assert_same(measured(symmetries, moved(tensors, [group])), before)


def test_planes_are_measured_alike_wherever_their_coordinates_stand():
    """Side by side, or in two halves of a head."""
    values = []
    torch.manual_seed(0)
    halves, pairs = TurnedAttention(turned=6), TurnedAttention(turned=6, side_by_side=True)
    pairs.load_state_dict(halves.state_dict())
    for name in ("query", "key"):
        weight = getattr(halves, name).weight.detach().unflatten(0, (2, 2, 3))
        getattr(pairs, name).weight.data = weight.transpose(1, 2).flatten(0, 2).contiguous()
    batch = torch.randn(4, 6, 5)
    torch.testing.assert_close(halves(batch), pairs(batch))
    for model in (halves, pairs):
        found = measured(find_symmetries(model, batch), {name: each.double() for name, each in snapshot(model).items()})
        values.append({key.replace("query_units", "query"): value for key, value in found.items()})
    assert_same(*values)
