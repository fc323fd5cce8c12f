"""Retrieval: from a trained generation to a searched gallery.

Pictures become embeddings (`embedder`, of a network that `network_choice` found in a lineage) or classes
(`predictor`). An index is a store of embeddings together with the network that made them (`index`), filled from
pictures (`picture_list`) or files (`embedding_files`), and searched with pictures (`query`, `ranking`, `montage`).
"""
