"""One step of an unmodified model: run beside its training, and written down operation by operation."""
