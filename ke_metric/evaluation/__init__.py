"""Evaluation: arrays in, numbers out.

Embeddings and labels become neighbour lists, clusters and, from those, scores. Nothing in here has ever seen a
network, a recipe or a logger. `backend` alone imports FAISS.
"""
