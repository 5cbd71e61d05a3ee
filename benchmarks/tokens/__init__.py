"""The benchmark of language models: rates of caching, losses of codecs, and steps beside online teachers."""
