"""``python -m benchmarks``: results, peers and pages; ``ensdistill/bench`` measures, so that an installed
user can, too."""
