"""Networks: a backbone of torchvision or timm up to the feature, and the head from there.

Ordinary modules, built from the recipe's `network` section; nothing here knows about fit and reset hypotheses.
Imports layer 0 only.
"""
