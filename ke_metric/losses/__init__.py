"""Losses: embeddings or logits and labels in, one number out.

The losses and miners of pytorch-metric-learning by their class names, checked keyword by keyword, the ones it lacks,
and the losses of classifiers. A loss's own parameters (proxies) are the parameters of its module. Imports layer 0
only.
"""
