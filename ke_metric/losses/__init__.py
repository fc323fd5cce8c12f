"""Losses: embeddings and labels in, one number out.

The losses and miners of pytorch-metric-learning by their class names, checked keyword by keyword, and the ones it
lacks. A loss's own parameters (proxies) are the parameters of its module. Imports layer 0 only.
"""
