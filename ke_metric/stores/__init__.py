"""Stores: where the vectors of a gallery lie, and how they are searched."""
