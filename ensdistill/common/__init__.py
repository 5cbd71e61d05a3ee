"""The foundation of all other folders: files, fingerprints, seeds, errors, processes, the display."""
