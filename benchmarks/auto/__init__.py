"""The ensembles that a job trains by itself, on development splits of five tables: the default one, that of
``teachers: auto``, and each of their members."""
