"""How fast members are trained and asked, and what choosing among them is worth: ``python -m benchmarks teachers``."""
