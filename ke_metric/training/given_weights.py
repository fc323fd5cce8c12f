"""How weights that a network was given train: more slowly than a new head, or not at all, norms by what they know."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ke_metric.recipe.schema import Recipe


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a module that are not frozen."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def groups_by_rate(network: nn.Module, backbone_factor: float) -> Iterator[tuple[float, list[nn.Parameter]]]:
    """Yield a factor of the learning rate and the parameters of a network that have it, those of the head first.

    With a factor of 1 all are of the first group.
    """
    backbone = set() if backbone_factor == 1 else set(map(id, network.get_submodule("backbone").parameters()))
    parameters = trainable(network)
    yield 1.0, [parameter for parameter in parameters if id(parameter) not in backbone]
    yield backbone_factor, [parameter for parameter in parameters if id(parameter) in backbone]


def norms_at_rest(network: nn.Module, recipe: Recipe) -> list[nn.Module]:
    """Return the norm layers that go by their stored statistics, which stay as they are, while a network trains."""
    return [module for module, rests in _norms(network, recipe) if rests]


def moving_norms(network: nn.Module, recipe: Recipe) -> list[nn.Module]:
    """Return the norm layers whose stored statistics follow the batches while a network trains."""
    return [module for module, rests in _norms(network, recipe) if not rests]


def _norms(network: nn.Module, recipe: Recipe) -> Iterator[tuple[nn.Module, bool]]:
    """Yield every norm layer, and whether it goes by its stored statistics while the network trains."""
    for name, module in network.named_modules():
        if isinstance(module, _NormBase):
            yield module, recipe.training.norm_statistics == "stored" or recipe.network.is_frozen(name)
