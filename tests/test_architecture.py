"""Imports point one way, and what is heavy or optional is imported when it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lightning_symmetry"
MODULES = sorted(path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py"))

# what each part may import of the others
ALLOWED = {
    "functional": set(),
    "metrics": {"functional"},
    "stacks": set(),
    "keys": set(),
    "tracing": set(),
    "labelling": {"stacks", "tracing"},
    "symmetry": {"stacks", "tracing", "labelling"},
    "gauge": {"functional", "stacks", "symmetry"},
    "measurement": {"functional", "stacks", "keys", "tracing", "symmetry", "gauge"},
    "decimation": set(),
    "history": {"decimation"},
    "report": {"keys", "decimation", "history"},
    "sinks": {"history", "report"},
    "callbacks": {"functional", "tracing", "symmetry", "gauge", "measurement", "history", "report", "sinks"},
    "cli": {"functional", "keys", "metrics", "symmetry", "measurement", "history", "report", "sinks", "callbacks"},
}


def imported(path):
    """The modules that a file imports, at any depth within it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(module):
    """The part of the package that a module belongs to; None outside the package, and for its root."""
    words = module.removesuffix(".py").replace("/", ".").split(".")
    return words[1] if words[0] == "lightning_symmetry" and len(words) > 1 and words[1] != "__init__" else None


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_one_way(path):
    own = part(str(path))
    if own is None:
        return
    others = {part(module) for module in imported(PACKAGE.parent / path)} - {None, own}
    assert others <= ALLOWED[own]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_wandb_is_imported_only_in_sinks(path):
    if "wandb" in {module.partition(".")[0] for module in imported(PACKAGE.parent / path)}:
        assert part(str(path)) == "sinks"


def test_the_mathematics_knows_no_trainer():
    for path in MODULES:
        if part(str(path)) in ("functional", "measurement"):
            assert "lightning" not in {module.partition(".")[0] for module in imported(PACKAGE.parent / path)}, path


def test_importing_the_package_imports_no_wandb():
    code = "import sys, lightning_symmetry; sys.exit('wandb.sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_file_has_two_ideas():
    for path in MODULES:
        assert len((PACKAGE.parent / path).read_text().splitlines()) <= 400, path
