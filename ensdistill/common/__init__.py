"""What every other folder stands on: files, fingerprints, seeds, errors, processes, the display."""
