"""Training: one generation, from starting weights to its last epoch; knows nothing of parents, splits or files."""
