"""Training: one generation from its starting weights to its last epoch, on whatever devices there are.

The engine (device, precision, processes), the optimizer and its learning rate, the loop over epochs. Knows nothing
of parents, splits or files. Imports layer 0 only.
"""
