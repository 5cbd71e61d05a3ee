"""How fast the loss is on the machine at hand, beside everything else that computes it: ``ensdistill bench``.

    cases ──► contenders ──► race (check, then time) ──► result ──► table, picture, README

A package of its own, so that an installed user measures with the same code as a checkout's ``python -m
benchmarks``.
"""
