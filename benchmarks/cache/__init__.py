"""``python -m benchmarks cache``: the target cache against other stores, its codecs' costs, and a student fed
from it.

``stores.py`` has the contenders, ``gather.py`` times them, ``codecs.py`` looks at real teachers' logits,
``training.py`` at a student's step; ``command.py`` runs all of it and writes the result, ``picture.py`` draws
it.
"""
