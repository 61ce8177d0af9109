"""The names at the root: all there, each imported when it is asked for."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lightning_symmetry


@pytest.mark.parametrize("name", lightning_symmetry.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(lightning_symmetry, name)
    assert name in (getattr(value, "__name__", ""), value.__name__.rpartition(".")[2])
    assert name in dir(lightning_symmetry)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(lightning_symmetry.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    imports = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert sorted(imports) == lightning_symmetry.__all__
    for name, home in lightning_symmetry._HOMES.items():
        assert imports[name] == f"lightning_symmetry.{home}"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'SymmetryMonitr'"):
        _ = lightning_symmetry.SymmetryMonitr
