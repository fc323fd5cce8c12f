"""Redrawing any set of weights, by the rules that redraw a reset hypothesis."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ke_metric.split.masks import WeightMask
from ke_metric.split.plan import SplitPlan
from ke_metric.split.reset import redraw_reset


def redraw_where(
    network: nn.Module,
    redrawn: Mapping[str, Tensor],
    *,
    rule: str,
    generator: torch.Generator,
    fresh: nn.Module | None = None,
) -> None:
    """Give entries of some weights new values, in place; everything else stays bit-identical.

    Args:
        network: The network.
        redrawn: Weight name -> bool tensor of its shape on the CPU, True where it is redrawn.
        rule: `official`, `same_as_init`, `orthogonal` or `zero`, see `split.reset.redraw_reset`.
        generator: Gives the random numbers; another one whenever values are drawn.
        fresh: A newly built network, whose weights are the new values of `same_as_init`.
    """
    masks = {name: WeightMask.of(~flags) for name, flags in redrawn.items()}
    # A rate has no meaning here, and nothing reads it.
    plan = SplitPlan("wels", 1.0, masks)
    redraw_reset(network, plan, generator=generator, init=rule, fresh=fresh)


def all_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return for every weight that all of it is redrawn."""
    return {name: torch.ones(weight.shape, dtype=torch.bool, device="cpu") for name, weight in weights.items()}
