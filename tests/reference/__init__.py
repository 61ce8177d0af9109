"""Slow, obviously right versions of what the package computes: NumPy float64, straight from the definitions."""
