"""``python -m benchmarks methods``: the distillation methods against each other, one cache for each set."""
