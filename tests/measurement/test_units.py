"""The units of a residual stream are all of a model: they are matched without a second one."""

import multiprocessing

import pytest
import torch

from lightning_symmetry.measurement.indicators import SharedGauge, symmetry_pieces
from tests.memory import STATUS, peak_beyond


def gpt2(layers, width, vocabulary):
    """The symmetries of a GPT-2 whose embeddings are tied, and the shapes of its parameters."""
    import transformers

    from lightning_symmetry import find_symmetries

    sizes = {"n_layer": layers, "n_embd": width, "n_head": 2, "vocab_size": vocabulary, "n_positions": 32}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, use_cache=False))
    symmetries = find_symmetries(model, {"input_ids": torch.randint(0, vocabulary, (1, 8))}, verify_up_to=0)
    return symmetries, {name: parameter.shape for name, parameter in model.named_parameters()}


def peak_of_matching(*models):
    """The memory that the matching of a stream takes beyond the last model, in sizes of it; NaN if it finds nothing."""
    for symmetries, shapes in models:  # the first brings in all libraries and their workspaces
        generator = torch.Generator().manual_seed(0)
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        gauge = SharedGauge(symmetries)
        gauge.at(tensors)
        (stream,) = (group for group in symmetries if group.kind == "permutation" and "wte" in group.parameters[0])
        (piece,) = symmetry_pieces(symmetries.select([stream]), 1e-2, gauge)
        values = []
        peak = peak_beyond(lambda piece=piece, tensors=tensors, into=values: into.extend(piece.measure(tensors)))
    held = sum(4 * tensor.numel() for tensor in tensors.values())
    return peak / held if all(map(torch.isfinite, values)) else float("nan")


@pytest.mark.skipif(not STATUS.exists(), reason="the memory is read from /proc")
def test_the_matching_of_a_stream_holds_no_second_model(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**16))  # what is let go is given back, and not used again
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(peak_of_matching, (gpt2(1, 12, 20), gpt2(4, 512, 2000))) < 0.5
