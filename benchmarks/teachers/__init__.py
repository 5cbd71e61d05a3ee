"""Speed of training and prediction of members, and the gain of choosing among them: ``python -m benchmarks
teachers``."""
