"""Spectra of the products that rotations leave unchanged, against the products themselves."""

import functools
import math

import numpy as np
import pytest
import torch

from lightning_symmetry import find_symmetries
from lightning_symmetry.measurement.indicators import SharedGauge
from lightning_symmetry.measurement.products import is_query_key, product_pieces
from lightning_symmetry.measurement.snapshot import snapshot
from tests.minis import MINIS


@functools.cache
def case(name):
    """A mini, its symmetries, and its tensors at generic parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MINIS[name].make().double()
        symmetries = find_symmetries(model, MINIS[name].batch())
        tensors = dict(snapshot(model))
        for parameter, _ in model.named_parameters():
            tensors[parameter] = tensors[parameter] + 0.3 * torch.randn_like(tensors[parameter])
    return symmetries, tensors


def measured(symmetries, tensors):
    values = {}
    for piece in product_pieces(symmetries, SharedGauge(symmetries)):
        values |= dict(zip(piece.keys, map(float, piece.measure(tensors)), strict=True))
    return values


def effective_rank(product):
    s = np.linalg.svd(product, compute_uv=False)
    p = s[s > 1e-12 * s[0]] / s.sum()
    return math.exp(-np.sum(p * np.log(p)))


def test_an_adapter_has_the_effective_rank_of_its_product():
    symmetries, tensors = case("lora")
    product = (tensors["B.weight"] @ tensors["A.weight"]).numpy()
    values = measured(symmetries, tensors)
    assert values == {"symmetry/product_effective_rank/A_rotation": pytest.approx(effective_rank(product))}


def test_heads_have_the_effective_rank_and_the_logits_of_queries_and_keys_as_the_norm_before_gives_them_inputs():
    """With the gain and the bias of that norm taken into the maps; keys have no bias, which softmax does not see."""
    symmetries, tensors = case("gpt2")
    block = {name.removeprefix("transformer.h.0."): t.numpy() for name, t in tensors.items()}
    gain, shift = block["ln_1.weight"], block["ln_1.bias"]
    weight, bias = block["attn.c_attn.weight"].T, block["attn.c_attn.bias"]  # Conv1D holds in x out
    centred = weight * gain - (weight * gain).mean(1, keepdims=True)
    whole = np.concatenate([centred, (bias + weight @ shift)[:, None]], axis=1)
    query, key = whole[:8].reshape(2, 4, 9), whole[8:16].reshape(2, 4, 9)[..., :8]
    products = [q.T @ k for q, k in zip(query, key, strict=True)]
    values = measured(symmetries, tensors)
    name = "transformer_h_0_attn_c_attn_qk_head_dims_rotation"
    expected = np.mean([effective_rank(product) for product in products])
    assert values[f"symmetry/product_effective_rank/{name}"] == pytest.approx(expected, rel=1e-6)
    bound = max(np.linalg.norm(product, 2) for product in products) / math.sqrt(4)
    assert values[f"symmetry/attention_logit_bound/{name}"] == pytest.approx(bound, rel=1e-6)


def turned(angles):
    """The rotation of each plane (i, i + d / 2) by an angle."""
    cosines, sines = np.diag(np.cos(angles)), np.diag(np.sin(angles))
    return np.block([[cosines, -sines], [sines, cosines]])


def test_heads_that_positions_turn_have_the_product_of_one_position_and_a_bound_at_all_distances():
    """Two heads of queries for each of keys; the bound is near the largest logit of all distances, and not below."""
    symmetries, tensors = case("llama")
    block = {name.removeprefix("model.layers.0."): t.numpy() for name, t in tensors.items()}
    gain = block["input_layernorm.weight"]
    queries = (block["self_attn.q_proj.weight"] * gain).reshape(4, 4, 8)
    keys = (block["self_attn.k_proj.weight"] * gain).reshape(2, 4, 8).repeat(2, axis=0)
    heads = list(zip(queries, keys, strict=True))
    values = measured(symmetries, tensors)
    name = "model_layers_0_self_attn_q_proj_plane_rotation"
    expected = np.mean([effective_rank(query.T @ key) for query, key in heads])
    assert values[f"symmetry/product_effective_rank/{name}"] == pytest.approx(expected, rel=1e-6)
    rotations = [turned(distance * np.array([1.0, 0.01])) for distance in range(400)]
    largest = max(np.linalg.norm(query.T @ turn @ key, 2) for query, key in heads for turn in rotations) / math.sqrt(4)
    assert largest <= values[f"symmetry/attention_logit_bound/{name}"] <= 1.1 * largest


@pytest.mark.parametrize(
    ("name", "attending"),
    [
        ("gpt2", ["transformer.h.0.attn.c_attn.qk.head_dims.rotation"]),
        ("encoder pre-norm", ["block.self_attn.in_proj.qk.head_dims.rotation"]),
        ("bert", ["bert.encoder.layer.0.attention.self.query.head_dims.rotation"]),
        ("lora", []),
        ("mlp identity", []),
    ],
)
def test_only_queries_and_keys_have_logits(name, attending):
    symmetries, tensors = case(name)
    groups = [group for group in symmetries if group.kind == "rotation" and not group.form]
    assert [group.name for group in groups if is_query_key(group)] == attending
    values = measured(symmetries, tensors)
    assert sum("attention_logit_bound" in key for key in values) == len(attending)
    assert sum("product_effective_rank" in key for key in values) == len(groups)


def test_a_nan_in_one_map_makes_its_values_nan():
    symmetries, tensors = case("lora")
    spoiled = {**tensors, "A.weight": tensors["A.weight"] * math.nan}
    assert all(math.isnan(value) for value in measured(symmetries, spoiled).values())
