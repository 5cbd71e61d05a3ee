"""Which synthetic rows serve a student best, where there is no pool of unlabelled samples."""
