"""Where measurements go: the run's history and report, and any Lightning logger."""
