"""Torch-Pruning asked for the same split of the same network, by its documented interface; see `ask`.

Torch-Pruning 1.6.1 (Fang et al.: DepGraph: Towards Any Structural Pruning, CVPR 2023) is needed by this
experiment only: `pip install -e '.[compare]'`.
"""

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torchvision.models import VisionTransformer

from eval.coverage.verdict import EXACT, EXACT_FP64, compare, run
from eval.shared.networks import measure_statistics
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.scoring import count_parameters
from ke_metric.split.plan import ChannelSet, Narrowing

SAME = "runs, equals the zeroed dense network"
OTHER = "runs, computes something else"
UNDECIDED = "runs, not compared"
SHAPE = "wrong output shape"
NOTHING = "removes nothing"
TRACING = "crashes while tracing"
PRUNING = "crashes while pruning"
FORWARD = "crashes when run"
TIMEOUT = "no answer"
VERDICTS = (SAME, OTHER, UNDECIDED, NOTHING, SHAPE, FORWARD, PRUNING, TRACING, TIMEOUT)
RUNS = (SAME, OTHER, UNDECIDED)


def require_torch_pruning() -> None:
    """Make sure that Torch-Pruning is installed.

    Raises:
        KeMetricError: It is not.
    """
    if find_spec("torch_pruning") is None:
        raise KeMetricError(
            "eval.coverage compares with Torch-Pruning, which is not installed: pip install -e '.[compare]'",
            ExitCode.ENVIRONMENT,
        )


def ask(network: nn.Module, images: Tensor, rate: float) -> dict[str, Any]:
    """Let Torch-Pruning cut a copy of a network to the same share of its channels; return what came of it.

    A `BasePruner` with pruning_ratio = 1 - rate keeps floor(rate x channels) of every group of layers, and the first
    ones: the importance of a channel falls with its index. As its README and its examples do, layers as wide as the
    output are ignored, `num_heads` names the attention layers, fused attention is off, and afterwards the numbers of
    heads, the widths of a head and of all heads, and torchvision's `hidden_dim` are set by hand. Everything else is
    left to the library.

    It succeeds if the pruned network runs, its outputs have the shape of the dense network's, and it has fewer
    parameters. It is exact if it computes what the dense network does in which all rows and columns that were removed
    are zero, and layer and group norms see the remaining channels only: the demand `coverage_verdict.py` makes of us.

    Args:
        network: The network, in eval mode; unchanged.
        images: Two or more images [B, 3, H, W].
        rate: Split rate.
    """
    expected = run(network, images[:2])
    pruned, removed = deepcopy(network), Removed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for verdict, step in _steps(pruned, images[:1], rate, removed, expected[0].size(-1)):
            try:
                step()
            except Exception as error:  # whatever a library raises is its answer
                return {"verdict": verdict, "reason": _first_line(error)}
    try:
        found = run(pruned, images[:2])
    except Exception as error:
        return {"verdict": FORWARD, "reason": _first_line(error)}
    if [each.shape for each in found] != [each.shape for each in expected]:
        shapes = [[list(each.shape) for each in outputs] for outputs in (expected, found)]
        return {"verdict": SHAPE, "reason": f"{shapes[1]} in place of {shapes[0]}"}
    ratio = float(f"{count_parameters(pruned) / count_parameters(network):.4g}")
    if ratio == 1:
        return {"verdict": NOTHING, "parameter_ratio": ratio}
    return {"parameter_ratio": ratio} | _compared(network, pruned, removed, images)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


# --- asking -------------------------------------------------------------------------------------------------------


@dataclass
class Removed:
    """What was removed of a network.

    Attributes:
        kept: Module or parameter, and side (`out`, `in` or a dimension) -> the channels that are left, of how many.
    """

    kept: dict[tuple[str, str], tuple[list[int], int]] = field(default_factory=dict)

    def remove(self, name: str, side: str, size: int, positions: list[int]) -> None:
        """Note that the channels at some positions, among those that are left, are removed."""
        left, original = self.kept.get((name, side), (list(range(size)), size))
        gone = set(positions)
        self.kept[name, side] = [each for at, each in enumerate(left) if at not in gone], original


def _steps(
    network: nn.Module, image: Tensor, rate: float, removed: Removed, width: int
) -> list[tuple[str, Callable[[], None]]]:
    """Return what is to be done one after another, each with the verdict if it raises."""
    pruner: list[Any] = []
    return [
        (TRACING, lambda: pruner.append(_pruner(network, image, rate, width))),
        (PRUNING, lambda: _prune(network, pruner[0], removed)),
    ]


def _pruner(network: nn.Module, image: Tensor, rate: float, width: int) -> Any:
    import torch_pruning

    class Prefix(torch_pruning.importance.Importance):
        """Ranks the channels of a group by their index, the first one highest."""

        def __call__(self, group: Any) -> Tensor:
            return -torch.arange(len(group[0].idxs), dtype=torch.float32)

    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    ignored = [module for module in network.modules() if _is_ignored(module, width)]
    round_to = network.encoder.layers[0].num_heads if isinstance(network, VisionTransformer) else None
    return torch_pruning.pruner.BasePruner(
        network,
        [image],
        importance=Prefix(),
        pruning_ratio=1 - rate,
        ignored_layers=ignored,
        num_heads={layer: module.num_heads for module, layer in _attentions(network)},
        round_to=round_to,
        # Its defaults are dictionaries that all pruners of a process share.
        in_channel_groups={},
        out_channel_groups={},
    )


def _is_ignored(module: nn.Module, width: int) -> bool:
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return True
    return getattr(module, "out_features", getattr(module, "out_channels", None)) == width


def _attentions(network: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Return the attention modules that name their heads as the examples expect, with their qkv layers."""
    return [
        (module, getattr(module, name))
        for module in network.modules()
        for name in ("qkv", "qkv_proj")
        if isinstance(getattr(module, "num_heads", None), int) and isinstance(getattr(module, name, None), nn.Module)
    ]


def _prune(network: nn.Module, pruner: Any, removed: Removed) -> None:
    names = {module: name for name, module in network.named_modules()}
    for group in pruner.step(interactive=True):
        for item in group.items:
            _note(pruner.DG, names, removed, item)
        group.prune()
    for module, layer in _attentions(network):
        module.num_heads = pruner.num_heads[layer]
        if isinstance(layer, nn.Linear):
            module.head_dim = layer.out_features // (3 * module.num_heads)
            if hasattr(module, "attn_dim"):
                module.attn_dim = module.head_dim * module.num_heads
    if isinstance(network, VisionTransformer):
        network.hidden_dim = network.conv_proj.out_channels


def _note(graph: Any, names: dict[nn.Module, str], removed: Removed, item: Any) -> None:
    """Note what one step of a group is about to remove."""
    target, handler = item.dep.target, item.dep.handler
    module = target.module
    if isinstance(module, nn.Parameter):
        dim = target.pruning_dim
        removed.remove(graph._param_to_name[module], str(dim), module.size(dim), item.idxs)
    elif module in names:
        layers = isinstance(module, nn.Linear) or (isinstance(module, _ConvNd) and not _is_depthwise(module))
        side = "in" if layers and not graph.is_out_channel_pruning_fn(handler) else "out"
        size = graph.get_in_channels(module) if side == "in" else graph.get_out_channels(module)
        if size is not None:
            removed.remove(names[module], side, size, item.idxs)


def _is_depthwise(module: _ConvNd) -> bool:
    return module.groups == module.out_channels > 1


# --- comparing ----------------------------------------------------------------------------------------------------


def _compared(network: nn.Module, pruned: nn.Module, removed: Removed, images: Tensor) -> dict[str, Any]:
    """Compare a pruned network with the dense one in which what was removed is zero."""
    zeroed = deepcopy(network)
    norms: dict[str, Narrowing] = {}
    modules, parameters = dict(zeroed.named_modules()), dict(zeroed.named_parameters())
    with torch.no_grad():
        for (name, side), (kept, size) in removed.kept.items():
            flags = torch.zeros(size, dtype=torch.bool)
            flags[kept] = True
            if name in parameters:
                parameters[name].movedim(int(side), 0)[~flags] = 0
            elif isinstance(modules[name], nn.LayerNorm | nn.GroupNorm):
                norms[name] = Narrowing((), 0, ChannelSet.of(flags))
            elif isinstance(modules[name], nn.MultiheadAttention):
                _zero_attention(modules[name], flags)
            elif not _zero(modules[name], side, flags):
                return {"verdict": UNDECIDED, "reason": f"{name} is a {type(modules[name]).__name__}"}
    try:
        measure_statistics(zeroed, images)
        _take_statistics(pruned, zeroed, removed)
        compared = compare(zeroed, pruned, images[:2], norms)
    except Exception as error:
        return {"verdict": UNDECIDED, "reason": _first_line(error)}
    same = compared.verdict in (EXACT, EXACT_FP64)
    return {"verdict": SAME if same else OTHER, "error": float(f"{compared.error:.4g}")}


def _zero(module: nn.Module, side: str, flags: Tensor) -> bool:
    """Zero what was removed of a layer; return whether it is a kind of layer that we know."""
    if isinstance(module, nn.Linear | _ConvNd):
        weight = module.weight.transpose(0, 1) if getattr(module, "transposed", False) else module.weight
        if side == "in":
            groups = getattr(module, "groups", 1)
            weight[:, ~flags[: len(flags) // groups]] = 0
            return True
    elif isinstance(module, _NormBase) and module.affine:
        weight = module.weight
    else:
        return isinstance(module, _NormBase | nn.PReLU)
    weight[~flags] = 0
    if module.bias is not None:
        module.bias[~flags] = 0
    return True


def _zero_attention(module: nn.MultiheadAttention, flags: Tensor) -> None:
    """Zero what was removed of queries, keys, values and outputs, and of what they are computed from."""
    module.in_proj_weight[~flags.repeat(3)] = 0
    module.in_proj_weight[:, ~flags] = 0
    module.in_proj_bias[~flags.repeat(3)] = 0
    _zero(module.out_proj, "out", flags)
    _zero(module.out_proj, "in", flags)


def _take_statistics(pruned: nn.Module, zeroed: nn.Module, removed: Removed) -> None:
    """Give a pruned network the norm statistics that were measured on the zeroed one."""
    statistics = {name: module for name, module in zeroed.named_modules() if hasattr(module, "running_var")}
    for name, module in pruned.named_modules():
        for statistic in ("running_mean", "running_var"):
            values = getattr(statistics.get(name), statistic, None)
            if values is not None:
                kept, _ = removed.kept.get((name, "out"), (list(range(len(values))), 0))
                setattr(module, statistic, values[kept].clone())
