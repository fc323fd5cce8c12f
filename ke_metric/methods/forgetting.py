"""Redrawing any set of weights, by the rules that redraw a reset hypothesis.

Later-Layer Forgetting: every layer from a certain one on is redrawn, the classifier included.

Zhou, Vani, Larochelle, Courville: Fortuitous Forgetting in Connectionist Networks, ICLR 2022 (LLF). The mask is 1 for
layers below L and 0 from L on; norm layers and biases are inherited, new values are drawn in every generation (their
paper finds fixed ones much worse), and all layers train. Their published L: `layer3` or `layer4` of ResNet18,
`layer3` of ResNet50, layers 40 or 68 of DenseNet169. Their N_k counts generations on top of the first one: N_10 is
our generation 11.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.generation import load_whole
from ke_metric.methods.method import Birth, Method
from ke_metric.methods.teacher import guidance
from ke_metric.recipe.schema import Method as MethodRecipe
from ke_metric.split.plan import SplitPlan, WeightMask
from ke_metric.split.reset import redraw_reset
from ke_metric.split.wels import multiplicative_weights
from ke_metric.training.hooks import TrainingHooks


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


class LaterLayerForgetting(Method):
    """Inherits everything but the weights of `method.layers` and of all layers after it, in parameter order."""

    def check(self, network: nn.Module, recipe: MethodRecipe) -> None:
        """See `Method.check`."""
        later_weights(network, recipe)

    def inherit(self, child: nn.Module, birth: Birth) -> None:
        """See `Method.inherit`."""
        assert birth.parent is not None, "generation 1 has no parent"
        load_whole(child, birth.parent, "the parent's weights")
        redraw_where(
            child,
            all_of(later_weights(child, birth.recipe)),
            rule=birth.recipe.reset,
            generator=birth.generator("reset"),
            fresh=birth.fresh(),
        )

    def hooks(self, network: nn.Module, birth: Birth) -> TrainingHooks:
        """See `Method.hooks`; the parent teaches where the recipe asks for it."""
        return guidance(birth)


def later_weights(network: nn.Module, recipe: MethodRecipe) -> dict[str, nn.Parameter]:
    """Return the weights of `method.layers` and of every layer after it, name -> parameter.

    Raises:
        KeMetricError: The network has no such layer.
    """
    weights = multiplicative_weights(network)
    return dict(list(weights.items())[unit_starts(list(weights), recipe.layers)[0] :])


def unit_starts(weights: Sequence[str], layers: Sequence[str]) -> list[int]:
    """Return for every layer the number of the first weight that lies in it; ascending.

    Args:
        weights: Names of weights, or of all parameters, in parameter order.
        layers: Names of modules, written as they are named in the network or without what leads to them: `layer4` for
            `backbone.layer4`.

    Raises:
        KeMetricError: There is no such layer, or they are not in the network's order.
    """
    starts = []
    for layer in layers:
        found = [index for index, name in enumerate(weights) if f".{layer}." in f".{name.rpartition('.')[0]}."]
        if not found:
            modules = sorted({part for name in weights for part in _modules(name)})
            raise KeMetricError(
                f"method.layers: the network has no weights in a layer {layer!r}{closest(layer, modules)}",
                ExitCode.RECIPE,
            )
        starts.append(found[0])
    if starts != sorted(set(starts)):
        raise KeMetricError(
            f"method.layers = {list(layers)}: must be in the order of the network, each once", ExitCode.RECIPE
        )
    return starts


def _modules(weight: str) -> list[str]:
    """Return the names of all modules that a weight lies in, with and without what leads to them."""
    parts = weight.split(".")[:-1]
    return [".".join(parts[start:end]) for start in range(len(parts)) for end in range(start + 1, len(parts) + 1)]
