"""The point of least norm on a model's orbit, and what of a step goes along the orbit."""
