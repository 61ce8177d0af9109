"""Labelling the dimensions of all tensors of a step: which are one axis, and what may be done along each."""
