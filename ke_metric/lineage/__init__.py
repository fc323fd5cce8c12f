"""Lineages: the ordered generations grown from one recipe and seed, on the disk and in tables."""
