"""How large the two hypotheses are: mean weight magnitudes, layer by layer."""

from __future__ import annotations

from torch import Tensor, nn

from ke_metric.split.plan import SplitPlan


def mean_magnitudes(network: nn.Module, plan: SplitPlan) -> dict[str, tuple[float | None, float | None]]:
    """Return weight name -> (mean |w| in the fit part, mean |w| in the reset part); None where a part is empty.

    Over the generations the reset part falls towards 0 beside the fit part, and the slim network closes in on the
    dense one (Taha et al., CVPR 2021, section 3.3).

    Raises:
        KeMetricError: The plan is of another network.
    """
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
