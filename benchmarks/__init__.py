"""How fast the pieces are, measured on the machine at hand: ``python -m benchmarks``."""
