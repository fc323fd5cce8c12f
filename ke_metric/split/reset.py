"""Redraw the reset hypothesis of a network, in place; the fit hypothesis stays bit-identical."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn

from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.split.plan import SplitPlan

INITS = ("official", "same_as_init", "zero")


def redraw_reset(
    network: nn.Module,
    plan: SplitPlan,
    *,
    generator: torch.Generator | None = None,
    init: str = "official",
    fresh: nn.Module | None = None,
) -> None:
    """Give the reset hypothesis new values; the fit hypothesis, biases, norms and buffers stay bit-identical.

    `official` draws from U(-b, b) with b = 1 / sqrt(fan_in) and the dense layer's fan_in, as the code of Taha et al.
    does (kaiming_uniform_ with a = sqrt(5)) whatever the network was initialised with. `same_as_init` takes the
    values of a newly built network. `zero` sets them to 0.

    Args:
        network: The network; changed in place, its parameters keep their storage.
        plan: A plan of this network.
        generator: CPU generator that official draws from, weight after weight, so that the values are the same on
            every device.
        init: `official`, `same_as_init` or `zero`.
        fresh: A newly built network of the same architecture, for same_as_init.

    Raises:
        KeMetricError: The plan is of another network, or what `init` needs is missing.
    """
    plan.check(network)
    values = _values(network, plan, generator, init, fresh)
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, mask in plan.weights.items():
            old = parameters[name]
            new = values(name, old).to(device=old.device, dtype=old.dtype)
            old.copy_(torch.where(mask.expand().to(old.device), old, new))


def zero_reset(network: nn.Module, plan: SplitPlan) -> None:
    """Set the reset hypothesis to 0, in place: in eval mode the network then computes what its slim network does."""
    redraw_reset(network, plan, init="zero")


def _values(
    network: nn.Module, plan: SplitPlan, generator: torch.Generator | None, init: str, fresh: nn.Module | None
) -> Callable[[str, Tensor], Tensor]:
    """Return the function that yields new values for a whole weight, from its name and present values."""
    if init == "zero":
        return lambda _, old: torch.zeros_like(old)
    if init == "official":
        if generator is None:
            raise KeMetricError("init='official' draws random values and needs generator=", ExitCode.RECIPE)
        return lambda _, old: _uniform(old.shape, generator)
    if init == "same_as_init":
        if fresh is None or fresh is network:
            raise KeMetricError(
                "init='same_as_init' takes its values from fresh=, a newly built network of the same architecture",
                ExitCode.RECIPE,
            )
        plan.check(fresh)
        parameters = dict(fresh.named_parameters())
        return lambda name, _: parameters[name].detach()
    raise KeMetricError(f"reset {init!r} is none of {', '.join(INITS)}{closest(init, INITS)}", ExitCode.RECIPE)


def _uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    bound = prod(shape[1:]) ** -0.5
    return torch.empty(shape, dtype=torch.float32, device="cpu").uniform_(-bound, bound, generator=generator)
