"""Recipes: one file that describes one lineage completely, read, checked and frozen."""
