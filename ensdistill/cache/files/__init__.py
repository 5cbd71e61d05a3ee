"""Files of a cache, whatever they hold: checked reading and writing, locks, and transfer to and from URLs."""
