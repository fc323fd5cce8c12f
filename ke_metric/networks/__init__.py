"""Networks: a backbone of torchvision or timm up to the feature, the head from there, and how both are stored.

Ordinary modules, built from the section `network` of a recipe; only `recipe_networks.py` knows how they are split.
"""
