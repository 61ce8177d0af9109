"""Every public function and metric says what it is: formula, shapes, range, what it raises, its source, an example."""

import inspect
import re

import pytest

import lightning_symmetry
from lightning_symmetry import functional, metrics

SOURCE = re.compile(r"arXiv:|doi:|EUSIPCO|ICML|NeurIPS|edition")
RANGE = re.compile(r"\b[Ii]n [\[(]|[Aa]t least|[Aa]t most|above 1|infinite|truth values|0 where")
TOOLS = {"Inner", "Product", "Units", "feature_indicators", "moments", "permutation_indicators", "perplexity"}
TOOLS |= {"product_core", "singular_values", "spectral_indicators"}
"""What hands tensors on, and is no indicator by itself."""


EXTREMES = {
    "AlphaReQ": ("0", None),
    "CanonicalAlignment": ("0", "1"),
    "CovarianceParticipationRatio": ("1", "num_features"),
    "CovarianceStableRank": ("1", "num_features"),
    "DormantFraction": ("0", "1"),
    "EffectiveRank": ("1", "num_features"),
    "Isotropy": ("0", "1"),
    "LinearCKA": ("0", "1"),
    "NC1": ("0", None),
    "NC2Equiangularity": ("0", None),
    "NC2Equinorm": ("0", None),
    "NC3": ("0", "4"),
    "NC4": ("0", "1"),
    "NESum": ("1", "num_features"),
    "NoiseImbalance": ("0", "1"),
    "TokenRankResidual": ("0", "1"),
}
"""The ends of the range of each metric, of which its docstring says when they are reached; None for none."""

ROOT = set(lightning_symmetry.__all__) - {"functional"}
HANDED = {"Symmetries", "SymmetryGroup", "Transition"}
"""What a user is handed and reads, but does not build."""


def own_parameters(kind):
    return set(inspect.signature(kind).parameters) - {"self"}


def described(kind):
    return " ".join(inspect.getdoc(kind).replace("0-d", "a number").split())


def meaning_of(end, text):
    """Whether it is said what an end of the range, 0 or 1, means: the number outside of an interval."""
    return re.search(rf"\b{end}\b(?!\.\d)", re.sub(r"[\[(]-?[\d.]+, [^\])]*[\])]", "", text))


@pytest.mark.parametrize("name", sorted(set(functional.__all__) - TOOLS))
def test_a_function_says_what_it_is(name):
    function = getattr(functional, name)
    text = described(function)
    for part in ("Args:", "Returns:", "Raises:", "Example: >>>"):
        assert part in text, part
    arguments = text.partition("Args:")[2].partition("Returns:")[0]
    assert all(f"{parameter}:" in arguments for parameter in inspect.signature(function).parameters)
    assert "``(" in text, "shapes"
    assert RANGE.search(text.partition("Returns:")[2].partition("Raises:")[0]), "range"
    returned = text.partition("Returns:")[2].partition("Raises:")[0]
    if re.search(r"[\[(]0, |at least 0", returned):
        summed = returned.replace("at least 0", "")
        assert meaning_of(0, text.partition("Args:")[0] + summed), "what 0 means"
    if re.search(r"[\[(]0, 1[\])]", returned):
        assert meaning_of(1, text.partition("Args:")[0] + returned), "what 1 means"
    assert SOURCE.search(text), "source"


@pytest.mark.parametrize("name", sorted(TOOLS))
def test_a_tool_says_what_it_takes(name):
    text = described(getattr(functional, name))
    assert "Args:" in text
    assert inspect.isclass(getattr(functional, name)) or ("Returns:" in text and "Example: >>>" in text)


@pytest.mark.parametrize("name", metrics.__all__)
def test_a_metric_says_what_it_is(name):
    kind = getattr(metrics, name)
    text = described(kind)
    for part in ("Args:", "Example: >>>", "twin", "`lightning_symmetry.functional."):
        assert part in text, part
    assert all(f"{parameter}:" in text for parameter in own_parameters(kind) - {"kwargs"})
    assert ("Raises:" in text) == bool(own_parameters(kind) - {"kwargs"}), "what it is built from may be refused"
    assert "Raises:" in described(kind.update), "what it is updated with may be refused"
    meaning = text.partition("Args:")[0]
    lowest, highest = EXTREMES[name]
    assert RANGE.search(meaning), "range"
    for extreme in (lowest, highest):
        assert extreme is None or re.search(rf"\b{re.escape(extreme)} (if|where|at)\b", meaning), extreme
    assert SOURCE.search(text), "source"


def test_every_metric_has_its_extremes():
    assert set(EXTREMES) == set(metrics.__all__)


@pytest.mark.parametrize("name", sorted(ROOT - HANDED))
def test_a_name_at_the_root_says_what_it_is(name):
    kind = getattr(lightning_symmetry, name)
    text = described(kind)
    for part in ("Args:", "Raises:", "Example: >>>"):
        assert part in text, part
    arguments = text.partition("Args:")[2]
    assert all(f"{parameter}:" in arguments for parameter in own_parameters(kind))
    assert inspect.isclass(kind) or "Returns:" in text


@pytest.mark.parametrize("name", sorted(HANDED))
def test_what_one_is_handed_says_what_it_holds(name):
    kind = getattr(lightning_symmetry, name)
    attributes = described(kind).partition("Attributes:")[2]
    assert all(f"{parameter}:" in attributes for parameter in own_parameters(kind))
