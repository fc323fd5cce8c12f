"""How large the two hypotheses are: mean weight magnitudes, layer by layer."""

from __future__ import annotations

from torch import Tensor, nn

from ke_metric.split.plan import SplitPlan
from ke_metric.split.wrappers import unwrapped


def mean_magnitudes(network: nn.Module, plan: SplitPlan) -> dict[str, tuple[float | None, float | None]]:
    """Return weight name -> (mean |w| in the fit part, mean |w| in the reset part); None where a part is empty.

    The slim network computes what the dense one does where the reset part is 0: how small it has become beside the
    fit part says how far the two networks are apart.

    Raises:
        KeMetricError: The plan is of another network.
    """
    network = unwrapped(network)
    plan.check(network)
    parameters = dict(network.named_parameters())
    means = {}
    for name, mask in plan.weights.items():
        magnitudes = parameters[name].detach().abs().double()
        fit = mask.expand().to(magnitudes.device)
        means[name] = (_mean(magnitudes[fit]), _mean(magnitudes[~fit]))
    return means


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if values.numel() else None
