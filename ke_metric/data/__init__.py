"""Data: from files on disk (or from nothing) to batches of images.

A benchmark is a data set with its split and task: train, query and gallery, in a fixed order, with verified
counts. Images are decoded by content to RGB. Imports layer 0 only.
"""
