"""Watch parameter symmetries break in any PyTorch Lightning training run."""

from lightning_symmetry import functional
from lightning_symmetry.callbacks.representation_monitor import RepresentationMonitor
from lightning_symmetry.callbacks.spectrum_monitor import SpectrumMonitor
from lightning_symmetry.callbacks.symmetry_monitor import SymmetryMonitor
from lightning_symmetry.history import History, read_history
from lightning_symmetry.measurement.transitions import Transition
from lightning_symmetry.symmetry.find import find_symmetries
from lightning_symmetry.symmetry.groups import Symmetries, SymmetryGroup
from lightning_symmetry.symmetry.orbits import orbit_fraction

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
