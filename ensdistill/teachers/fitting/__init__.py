"""Numbers that are fitted to held-out predictions: temperatures, weights, selections, and uncertainty."""
