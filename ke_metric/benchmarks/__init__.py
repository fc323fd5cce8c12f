"""Benchmarks: which pictures there are, of which class, in which part."""
