"""What a run's history looks like: Plotly figures, and one HTML file that holds them all."""

from __future__ import annotations

from lightning_symmetry.report.html import render_report

__all__ = ["render_report"]
