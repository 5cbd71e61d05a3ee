"""``python -m benchmarks data``: samples from arrays, Parquet, Arrow and PNG files through the cache and a
student, against a plain ``DataLoader``.

``sources.py`` makes the same numbers in every container, ``contenders.py`` has ensdistill's way and the plain
one, ``measure.py`` runs each in a process of its own and watches its memory, ``command.py`` runs all of it and
writes the result.
"""
