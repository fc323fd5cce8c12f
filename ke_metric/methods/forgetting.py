"""Methods that redraw other weights than the reset hypothesis: the later layers, or the least salient weights.

Both inherit norm layers and biases, draw new values in every generation by the rules of `redraw_reset`, and train all
layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.methods.method import Inheritance, LineageMethod
from ke_metric.recipe.schema import Method
from ke_metric.split.hypotheses import redraw_reset
from ke_metric.split.plan import SplitPlan, WeightMask
from ke_metric.split.wels import multiplicative_weights

# Share of the weights that Dynamic Neural Regeneration redraws when the recipe names none.
SHARE = 0.2


class LaterLayerForgetting(LineageMethod):
    """Inherits everything but the weights of `method.layers` and of all layers after it, in parameter order.

    Zhou, Vani, Larochelle, Courville: Fortuitous Forgetting in Connectionist Networks, ICLR 2022 (LLF): the mask is 1
    for layers below L and 0 from L on, the classifier included; their paper finds fixed new values much worse. Their
    published L: `layer3` or `layer4` of ResNet18, `layer3` of ResNet50, layers 40 or 68 of DenseNet169. Their N_k
    counts generations on top of the first one: N_10 is our generation 11.
    """

    def check(self, network: nn.Module, recipe: Method) -> None:
        """Refuse a layer that the network does not have."""
        later_weights(network, recipe)

    def inherit(self, child: nn.Module, inheritance: Inheritance) -> None:
        """Load the parent and redraw the later layers."""
        inheritance.load_parent(child)
        redraw_for(inheritance, child, all_of(later_weights(child, inheritance.method)))


class NeuralRegeneration(LineageMethod):
    """Inherits the salient weights and redraws the others by `method.reset`.

    Ramakrishnan and others: Dynamic Neural Regeneration, NeurIPS 2024 (DNR). After each generation every weight gets
    the saliency |w * g|, g its gradient accumulated in absolute value over mini-batches, the network in eval mode
    (SNIP: Lee et al., ICLR 2019); the `share` of all weights that is least salient, 20 % as in the paper, over all
    layers together, is redrawn, the others are inherited.

    Their released code cannot run this method (names it uses are defined nowhere), so this follows the paper. Their
    threshold also counts norm parameters, which are never redrawn; ours counts the weights that can be redrawn, so
    that the share is exact. Shortcut convolutions, which their code skips by name, count as any other.
    """

    needs_gradients = True

    def check(self, network: nn.Module, recipe: Method) -> None:
        """Refuse a network with a weight that no rule covers."""
        multiplicative_weights(network)

    def inherit(self, child: nn.Module, inheritance: Inheritance) -> None:
        """Load the parent and redraw what matters least to its loss."""
        inheritance.load_parent(child)
        assert inheritance.gradients is not None, "the gradients were not computed"
        saliency = {
            name: weight.detach().abs() * inheritance.gradients[name]
            for name, weight in multiplicative_weights(child).items()
        }
        redraw_for(inheritance, child, least_salient(saliency, share_of(inheritance)))


def redraw_for(inheritance: Inheritance, child: nn.Module, redrawn: Mapping[str, Tensor]) -> None:
    """Redraw entries of a child's weights by `method.reset`, new ones in every generation."""
    redraw_where(
        child,
        redrawn,
        rule=inheritance.reset,
        generator=inheritance.generator("reset"),
        fresh=inheritance.fresh(),
    )


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
        rule: The `init` of `redraw_reset`.
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


def later_weights(network: nn.Module, recipe: Method) -> dict[str, nn.Parameter]:
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


def share_of(inheritance: Inheritance) -> float:
    """Return the share of weights that a generation redraws; with `final_share` it changes in equal steps."""
    method = inheritance.method
    first = SHARE if method.share is None else method.share
    if method.final_share is None:
        return first
    progress = (inheritance.number - 2) / (inheritance.generations - 2)
    return first + (method.final_share - first) * progress


def least_salient(saliency: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return which entries are the least salient ones: exactly round(share x entries) of all together.

    Args:
        saliency: Weight name -> saliency of its entries.
        share: Share of all entries.

    Returns:
        Weight name -> bool tensor of its shape; of equals the earlier ones in the order of names and entries.
    """
    flat = torch.cat([values.flatten() for values in saliency.values()])
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[torch.argsort(flat, stable=True)[: round(share * len(flat))]] = True
    parts = torch.split(chosen, [values.numel() for values in saliency.values()])
    return {name: part.view(saliency[name].shape) for name, part in zip(saliency, parts, strict=True)}
