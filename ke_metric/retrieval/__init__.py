"""Retrieval: from a trained generation to a searched gallery.

Pictures become embeddings (`embedder`), embeddings and their items lie in a store (`vector_store` and its kinds), an
index is a store together with the network that made its vectors (`index`). Imports lineage, networks, data,
networks, split and evaluation; never training.
"""
