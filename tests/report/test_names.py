from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_symmetry.report.names import short_names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model_fc1", "model_fc2"], ["fc1", "fc2"]),
        (["model_fc1"], ["model_fc1"]),
        (["net_blocks_0_fc", "net_blocks_1_fc"], ["blocks_0_fc", "blocks_1_fc"]),
        (["net", "net_fc"], ["net", "net_fc"]),
        (["same", "same"], ["same", "same"]),
        (["blocks_0_attention_q_proj", "head"], ["blocks_0_…_q_proj", "head"]),
        ([], []),
    ],
)
def test_short_names(names: list[str], expected: list[str]) -> None:
    assert short_names(names) == expected


@given(st.lists(st.text("ab_1", min_size=1, max_size=60), max_size=5))
def test_short_names_fit(names: list[str]) -> None:
    assert all(len(name) <= 24 for name in short_names(names))
