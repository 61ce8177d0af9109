"""Every public function and metric says what it is: formula, shapes, range, what it raises, its source, an example."""

import inspect
import re

import pytest

from lightning_symmetry import functional, metrics

SOURCE = re.compile(r"arXiv:|doi:|EUSIPCO|ICML|NeurIPS|edition")
RANGE = re.compile(r"\b[Ii]n [\[(]|[Aa]t least|[Aa]t most|above 1|infinite|truth values|0 where")
TOOLS = {"Inner", "Product", "Units", "feature_indicators", "moments", "permutation_indicators", "perplexity"}
TOOLS |= {"product_core", "singular_values", "spectral_indicators"}
"""What hands tensors on, and is no indicator by itself."""


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
    text = described(getattr(metrics, name))
    for part in ("Args:", "Example: >>>", "twin", "`lightning_symmetry.functional."):
        assert part in text, part
    assert RANGE.search(text), "range"
    assert SOURCE.search(text), "source"
