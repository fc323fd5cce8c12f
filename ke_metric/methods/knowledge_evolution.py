"""Knowledge Evolution: the child inherits its parent's fit hypothesis and draws a new reset hypothesis.

Taha, Shrivastava, Davis: Knowledge Evolution in Neural Networks, CVPR 2021 (arXiv 2103.05152). For every layer,
W <- M * W + (1 - M) * R with the split mask M and R drawn anew in each generation; norm layers (affine and running
statistics) and biases are inherited whole.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import Weights, as_state_dict
from ke_metric.split.plan import SplitPlan
from ke_metric.split.reset import redraw_reset


def inherit(child: nn.Module, parent: Weights, plan: SplitPlan, *, reset: str, generator: torch.Generator) -> None:
    """Make a newly built network the child of a parent, in place.

    Args:
        child: A newly built network of the parent's architecture; its weights are what `same_as_init` redraws from.
        parent: State dict of the parent after its last epoch.
        plan: Which entries are the fit hypothesis.
        reset: `official`, `same_as_init`, `orthogonal` or `zero`, see `split.reset.redraw_reset`.
        generator: Draws the new reset hypothesis; a stream of its own in every generation.

    Raises:
        KeMetricError: A tensor is missing, left over or of another shape.
    """
    fresh = copy.deepcopy(child) if reset == "same_as_init" else None
    load_whole(child, parent, "the parent's weights")
    redraw_reset(child, plan, generator=generator, init=reset, fresh=fresh)


def load_whole(network: nn.Module, weights: Weights, what: str) -> None:
    """Load a state dict, every tensor of it and nothing else.

    Raises:
        KeMetricError: A tensor is missing, left over or of another shape.
    """
    try:
        network.load_state_dict(as_state_dict(weights, network), strict=True)
    except RuntimeError as error:
        raise KeMetricError(f"{what} do not fit the recipe's network: {error}", ExitCode.LINEAGE) from error
