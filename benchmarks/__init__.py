"""``python -m benchmarks``: results are kept here, what measures them is in ``ensdistill/bench``, where an installed user has it too."""
