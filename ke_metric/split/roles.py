"""What the parameters of known layers are: multiplicative weights, embedding tables, or whole.

Which is which is read from the kind of the layer, never from the name of a parameter alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from ke_metric.split.wrappers import class_names


class Role(Enum):
    """What a parameter is for."""

    WEIGHT = "multiplies activations"
    TABLE = "embedding table, a weight on request only"
    WHOLE = "bias, norm, scale, token or position table"
    UNKNOWN = "two or more dimensions, and no rule covers it"


@dataclass(frozen=True)
class Kind:
    """What the parameters of one kind of layer are, as name patterns separated by spaces."""

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


_NORM = Kind(whole="weight bias")
_RECURRENT = Kind("weight_*", whole="bias_*")
_ATTENTION = Kind("att att_src att_dst att_edge")
_POSITIONS = Kind(whole="relative_position_bias_table rel_pos_? pos_embedding spatial_pos temporal_pos")

# (top-level package, class) -> its parameters. A class is also what it inherits from; "*" is any class of a package.
# Layers that own no parameter of two or more dimensions themselves (GCNConv, SAGEConv, ...) need no entry: their
# weights are those of the linear layers in them.
KINDS = {
    ("torch", "Linear"): Kind("weight"),
    ("torch", "Bilinear"): Kind("weight"),
    ("torch", "_ConvNd"): Kind("weight"),
    ("torch", "RNNBase"): _RECURRENT,
    ("torch", "RNNCellBase"): _RECURRENT,
    ("torch", "MultiheadAttention"): Kind("in_proj_weight ?_proj_weight", whole="in_proj_bias bias_k bias_v"),
    ("torch", "Embedding"): Kind(tables="weight"),
    ("torch", "EmbeddingBag"): Kind(tables="weight"),
    ("torch", "_NormBase"): _NORM,
    ("torch", "GroupNorm"): _NORM,
    ("torch", "LayerNorm"): _NORM,
    ("torch", "RMSNorm"): _NORM,
    ("torch", "PReLU"): Kind(whole="weight"),
    ("torchvision", "Encoder"): _POSITIONS,
    ("torchvision", "ShiftedWindowAttention"): _POSITIONS,
    ("torchvision", "ShiftedWindowAttention3d"): _POSITIONS,
    ("torchvision", "RelativePositionalMultiHeadAttention"): _POSITIONS,
    ("torchvision", "MultiscaleAttention"): _POSITIONS,
    ("torchvision", "PositionalEncoding"): _POSITIONS,
    ("timm", "CondConv2d"): Kind("weight"),
    ("timm", "EfficientAdditiveAttention"): Kind("w_g"),
    ("timm", "MultiQueryAttentionV2"): Kind("query_proj key_proj value_proj out_proj"),
    ("timm", "EfficientViMBlock"): Kind(whole="alpha"),
    ("timm", "*"): Kind(
        whole="pos_embed* pos_emb patch_pos pixel_pos position_embedding_table relative_position_bias_table "
        "attention_biases rel_pos_? height_rel width_rel freqs cls_token* reg_token dist_token latent"
    ),
    ("torch_geometric", "Linear"): Kind("weight"),
    ("torch_geometric", "HeteroLinear"): Kind("weight"),
    ("torch_geometric", "GATConv"): _ATTENTION,
    ("torch_geometric", "GATv2Conv"): _ATTENTION,
    ("torch_geometric", "RGCNConv"): Kind("weight comp root"),
    ("torch_geometric", "ARMAConv"): Kind("weight init_weight root_weight"),
    ("torch_geometric", "GatedGraphConv"): Kind("weight"),
    ("torch_geometric", "HeteroBatchNorm"): _NORM,
    ("torch_geometric", "HeteroLayerNorm"): _NORM,
}

# Hook of torch.nn.utils that computes a weight from other parameters -> what makes it an ordinary weight again.
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
            if key in KINDS and (role := KINDS[key].role(name)):
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
