"""What a run's history looks like: Plotly figures, and HTML files that hold them all: of one run, and of several."""

from __future__ import annotations

from lightning_symmetry.report.comparison import render_comparison
from lightning_symmetry.report.html import render_report

__all__ = ["render_comparison", "render_report"]
