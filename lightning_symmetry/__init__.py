"""Watch parameter symmetries break in any PyTorch Lightning training run."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_symmetry import functional
    from lightning_symmetry.callbacks.representation_monitor import RepresentationMonitor
    from lightning_symmetry.callbacks.spectrum_monitor import SpectrumMonitor
    from lightning_symmetry.callbacks.symmetry_monitor import SymmetryMonitor
    from lightning_symmetry.gauge.orbits import orbit_fraction
    from lightning_symmetry.history import History, read_history
    from lightning_symmetry.measurement.transitions import Transition
    from lightning_symmetry.symmetry.find import find_symmetries
    from lightning_symmetry.symmetry.groups import Symmetries, SymmetryGroup

__all__ = [
    "History",
    "RepresentationMonitor",
    "SpectrumMonitor",
    "Symmetries",
    "SymmetryGroup",
    "SymmetryMonitor",
    "Transition",
    "find_symmetries",
    "functional",
    "orbit_fraction",
    "read_history",
]

_HOMES = {
    "History": "history",
    "RepresentationMonitor": "callbacks.representation_monitor",
    "SpectrumMonitor": "callbacks.spectrum_monitor",
    "Symmetries": "symmetry.groups",
    "SymmetryGroup": "symmetry.groups",
    "SymmetryMonitor": "callbacks.symmetry_monitor",
    "Transition": "measurement.transitions",
    "find_symmetries": "symmetry.find",
    "orbit_fraction": "gauge.orbits",
    "read_history": "history",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: the command line answers `--help` without torch."""
    if name == "functional":
        return import_module("lightning_symmetry.functional")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"lightning_symmetry.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
