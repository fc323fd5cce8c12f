"""WELS, weight-level splitting: decides which parameters of a network are multiplicative weights, and masks those.

Taha, Shrivastava, Davis: Knowledge Evolution in Neural Networks, CVPR 2021. What multiplies activations is split;
biases, norms, scales and position tables belong to the fit hypothesis as a whole. Which is which is read from the
kind of the layer, never from the name of a parameter alone: a parameter that no rule covers is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from ke_metric.errors import KeMetricError
from ke_metric.randomness import torch_generator
from ke_metric.split.admission import and_more, check_network, class_names, refusal
from ke_metric.split.plan import WeightMask


class Role(Enum):
    """What a parameter is for."""

    WEIGHT = "multiplies activations"
    TABLE = "embedding table, a weight on request only"
    WHOLE = "bias, norm, scale, token or position table"
    UNKNOWN = "two or more dimensions, and no rule covers it"


@dataclass(frozen=True)
class Kind:
    """What the parameters of one kind of layer are, as patterns of their names separated by spaces."""

    weights: str = ""
    tables: str = ""
    whole: str = "bias"

    def role(self, name: str) -> Role | None:
        """Return the role of a parameter by its own name; None for a name that the kind does not have."""
        patterns = {Role.WEIGHT: self.weights, Role.TABLE: self.tables, Role.WHOLE: self.whole}
        for role, names in patterns.items():
            if any(fnmatchcase(name, pattern) for pattern in names.split()):
                return role
        return None


# Keys are (top-level package, class). A class is also what it inherits from; "*" is any class of a package.
# Layers that own no parameter of two or more dimensions themselves (GCNConv, SAGEConv, ...) need no entry: their
# weights are those of the linear layers in them.
LAYER_KINDS = {
    (package, name): kind
    for package, names, kind in (
        ("torch", "Linear Bilinear _ConvNd", Kind("weight")),
        ("torch", "RNNBase RNNCellBase", Kind("weight_*", whole="bias_*")),
        ("torch", "MultiheadAttention", Kind("in_proj_weight ?_proj_weight", whole="in_proj_bias bias_k bias_v")),
        ("torch", "Embedding EmbeddingBag", Kind(tables="weight")),
        ("torch", "_NormBase GroupNorm LayerNorm RMSNorm", Kind(whole="weight bias")),
        ("torch", "PReLU", Kind(whole="weight")),
        (
            "torchvision",
            "Encoder ShiftedWindowAttention ShiftedWindowAttention3d RelativePositionalMultiHeadAttention "
            "MultiscaleAttention PositionalEncoding",
            Kind(whole="relative_position_bias_table rel_pos_? pos_embedding spatial_pos temporal_pos"),
        ),
        ("timm", "CondConv2d", Kind("weight")),
        ("timm", "EfficientAdditiveAttention", Kind("w_g")),
        ("timm", "MultiQueryAttentionV2", Kind("query_proj key_proj value_proj out_proj")),
        ("timm", "EfficientViMBlock", Kind(whole="alpha")),
        (
            "timm",
            "*",
            Kind(
                whole="pos_embed* pos_emb patch_pos pixel_pos position_embedding_table relative_position_bias_table "
                "attention_biases rel_pos_? height_rel width_rel freqs cls_token* reg_token dist_token latent"
            ),
        ),
        ("torch_geometric", "Linear HeteroLinear GatedGraphConv", Kind("weight")),
        ("torch_geometric", "GATConv GATv2Conv", Kind("att att_src att_dst att_edge")),
        ("torch_geometric", "RGCNConv", Kind("weight comp root")),
        ("torch_geometric", "ARMAConv", Kind("weight init_weight root_weight")),
        ("torch_geometric", "HeteroBatchNorm HeteroLayerNorm", Kind(whole="weight bias")),
    )
    for name in names.split()
}

# A hook of torch.nn.utils computes a weight from other parameters; the function makes it an ordinary weight again.
REMOVERS = {
    ("torch", "WeightNorm"): "torch.nn.utils.remove_weight_norm",
    ("torch", "SpectralNorm"): "torch.nn.utils.remove_spectral_norm",
    ("torch", "BasePruningMethod"): "torch.nn.utils.prune.remove",
}


def owner_of(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that registers a parameter, and the parameter's name there."""
    path, _, own_name = name.rpartition(".")
    return network.get_submodule(path), own_name


def role_of(module: nn.Module, name: str, shape: torch.Size) -> Role:
    """Return the role of a parameter by its module's kind, or, where that says nothing, by its shape."""
    role = None if remover_of(module, name) else role_by_kind(module, name)
    if role is not None:
        return role
    return Role.WHOLE if is_vector(shape) else Role.UNKNOWN


def is_vector(shape: Sequence[int]) -> bool:
    """Tell whether a parameter can be a bias, scale or token only.

    It has no or one dimension, or three and more of which at most one is larger than 1, such as a class token
    [1, 1, C] or a layer scale [C, 1, 1].
    """
    return len(shape) < 2 or (len(shape) > 2 and sum(size > 1 for size in shape) < 2)


def role_by_kind(module: nn.Module, name: str) -> Role | None:
    """Return the role of a parameter by its module's kind; None where no kind covers it."""
    for package, class_name in class_names(module):
        for key in ((package, class_name), (package, "*")):
            if key in LAYER_KINDS and (role := LAYER_KINDS[key].role(name)):
                return role
    return None


def remover_of(module: nn.Module, name: str) -> str:
    """Return the function that turns the parameter back into an ordinary weight, "" if it is one."""
    if isinstance(module, ParametrizationList):
        return "torch.nn.utils.parametrize.remove_parametrizations"
    if name.endswith(("_g", "_v", "_orig")):
        for hook in module._forward_pre_hooks.values():
            for key in class_names(hook):
                if key in REMOVERS:
                    return REMOVERS[key]
    return ""


def plan_wels(
    network: nn.Module,
    *,
    rate: float,
    keep_whole: Collection[str],
    seed: int | None,
    embeddings: bool = False,
) -> dict[str, WeightMask]:
    """Draw for every one of the `multiplicative_weights` which round(rate x entries) of its entries are fit.

    Every mask has a stream of its own, derived from the seed and the weight's name.

    Raises:
        KeMetricError: No seed, or a parameter of which no rule says what it is.
    """
    if seed is None:
        raise refusal("kind='wels' draws its masks at random and needs seed=")
    weights = multiplicative_weights(network, embeddings=embeddings, keep_whole=keep_whole)
    return {
        name: WeightMask.draw(weight.shape, rate, torch_generator(seed, 0, f"wels mask of {name}"))
        for name, weight in weights.items()
    }


def multiplicative_weights(
    network: nn.Module, *, embeddings: bool = False, keep_whole: Collection[str] = ()
) -> dict[str, nn.Parameter]:
    """Return the parameters that multiply activations, name -> parameter in parameter order.

    By kind of layer, subclasses included: the weights of linear and bilinear layers, convolutions (transposed too),
    recurrent layers and cells, nn.MultiheadAttention, and torch_geometric's convolutions with their attention
    vectors. Left whole are biases, norms, PReLU, and the tokens, scales and position tables of torchvision and timm.
    A parameter that no kind covers is left whole where it can be a bias or scale only (`is_vector`). Any other is an
    error, never skipped in silence.

    A weight that several layers share appears once, under its first name, and is a weight if one of them makes it
    one; an embedding table is left alone unless asked for, even where a linear layer shares it.

    Args:
        network: The network; it is not run.
        embeddings: Whether embedding tables are among the weights.
        keep_whole: Names of parameters that are left out.

    Raises:
        KeMetricError: A parameter that no rule covers, that has no shape yet, that is computed from others
            (torch.nn.utils.parametrize, weight_norm, prune) or that holds no floating-point numbers.
    """
    check_network(network)
    weights, unknown = {}, {}
    for names in _names_of_parameters(network):
        parameter = network.get_parameter(names[0])
        if parameter.numel() == 0 or not set(names).isdisjoint(keep_whole):
            continue
        roles = {role_of(*owner_of(network, name), parameter.shape) for name in names}
        wanted = Role.TABLE in roles and embeddings
        if wanted or (Role.WEIGHT in roles and Role.TABLE not in roles):
            weights[names[0]] = parameter
        elif Role.UNKNOWN in roles and Role.TABLE not in roles:
            unknown[names[0]] = parameter
    if unknown:
        raise _refuse_unknown(network, unknown)
    wrong = [name for name, weight in weights.items() if not weight.is_floating_point()]
    if wrong:
        raise refusal(
            f"{wrong[0]} is {weights[wrong[0]].dtype}: only real floating-point weights can be redrawn; "
            f"keep_whole={wrong} leaves such weights as they are"
        )
    return weights


def _names_of_parameters(network: nn.Module) -> list[list[str]]:
    """Return the names of every parameter, in parameter order; several where modules share it or its memory."""
    names: dict[tuple[torch.device, int, int], list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        # Where memory is not allocated (no entries, device "meta") the address is 0 for all.
        pointer = parameter.data_ptr()
        names.setdefault((parameter.device, pointer, 0 if pointer else id(parameter)), []).append(name)
    return list(names.values())


def _refuse_unknown(network: nn.Module, unknown: dict[str, nn.Parameter]) -> KeMetricError:
    name, parameter = next(iter(unknown.items()))
    module, own_name = owner_of(network, name)
    path = name.rpartition(".")[0]
    where = f"module {path!r}" if path else "the network itself"
    remover = remover_of(module, own_name)
    advice = f"{remover} makes it an ordinary weight again; " if remover else ""
    return refusal(
        f"kind='wels' splits what multiplies activations, and no rule says whether {name} {list(parameter.shape)} of "
        f"{where}, a {type(module).__module__}.{type(module).__qualname__}, does{and_more(unknown, 'parameters')}. "
        f"{advice}keep_whole={list(unknown)} leaves what is unknown as it is"
    )
