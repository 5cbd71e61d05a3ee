"""Language models: caching their targets, what a codec loses, and a student's step against online teachers."""
