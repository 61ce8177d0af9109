"""What is measured, and when: pure indicators of a model's tensors, shared among ranks, on a budget of time."""
