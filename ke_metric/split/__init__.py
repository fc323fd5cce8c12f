"""Split: which part of a network is the fit hypothesis, and what is done with the two parts.

Follows kept channels through an ordinary network, holds the result as a plan, redraws the reset hypothesis and cuts
the fit hypothesis out as a slim network. Needs torch, and nothing of ours but what every room may use.
"""
