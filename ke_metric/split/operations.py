"""What each family of aten operations does to the labels of its operands.

Layers give out new labels; batch norms, spatial operations, reductions, rearrangements, concatenations and
elementwise operations pass labels on. Everything else demands that all channels of its operands are kept, which is so
where nothing is dropped, and a clear error where something is. No family guesses: where labels cannot be passed on
exactly, it demands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ke_metric.split.call import Call
from ke_metric.split.graph import Layer
from ke_metric.split.labels import (
    ALWAYS,
    align,
    always,
    broadcast,
    collapse,
    collapsed_always,
    same_channels_in_order,
    varying,
)

Rule = Callable[[Call], list[Tensor]]


def follow(call: Call) -> list[Tensor]:
    """Return collapsed labels for every output of an operation, and record what it ties together or demands."""
    labels = _rule(call)(call)
    assert [each.ndim for each in labels] == [output.ndim for output in call.outputs]
    return labels


def _rule(call: Call) -> Rule:
    kind, function = call.kind, call.function
    if torch.Tag.pointwise in function.tags or kind in ELEMENTWISE:
        rule: Rule = elementwise
    elif kind in RULES:
        rule = RULES[kind]
    elif SPATIAL.fullmatch(kind):
        rule = spatial
    elif function.is_view or kind in REARRANGEMENTS:
        rule = rearrange
    else:
        rule = mix
    return rule if len(call.labelled) == 1 or rule in (elementwise, concatenate, stack) else mix


def mix(call: Call) -> list[Tensor]:
    """Every other operation: each element of the result may depend on all channels."""
    for _, labels in call.labelled:
        call.demand(labels, "mixes channels, or moves them in a way that is not followed")
    [(tensor, labels), *others] = call.labelled
    # Labels that must be kept anyway are passed on all the same: the last layer's reach the network's output through
    # a softmax or a layer norm, and that is how the last layer is known to be one.
    return [
        labels
        if not others and output is not tensor and output.shape == tensor.shape
        else collapsed_always(output.ndim)
        for output in call.outputs
    ]


def _vector(call: Call, tensor: Tensor, dim: int) -> Tensor:
    """Return the labels along one dimension, [tensor.shape[dim]]; they may vary along no other."""
    labels = call.labels[tensor]
    if not set(varying(labels)) <= {dim}:
        call.demand(labels, f"needs the same channels at every position outside of dimension {dim}")
        return always(tensor.size(dim))
    return labels.flatten().expand(tensor.size(dim))


def _along(labels: Tensor, dim: int, dimensions: int) -> Tensor:
    """Return collapsed labels that vary along one dimension, from the labels [n] along it."""
    return collapse(labels.view([-1 if each == dim else 1 for each in range(dimensions)]))


# --- layers -------------------------------------------------------------------------------------------------------


def convolution(call: Call) -> list[Tensor]:
    """Convolution: new channels. In a grouped one, the outputs of a group are kept with the inputs of that group."""
    image, weight, bias = call.args[:3]
    name = call.name_of(weight)
    if name is None or image not in call.labels or call.argument("transposed"):
        return mix(call)
    inputs, groups = _vector(call, image, 1), call.argument("groups")
    if groups == 1:
        return _layer(call, name, weight, bias, inputs)
    inputs = inputs.view(groups, -1)
    if inputs.size(1) > 1:
        reason = f"{call.place} has {groups} groups of {inputs.size(1)} channels, of which one is cut in two"
        call.graph.demand(inputs, reason, droppable=True)
    outputs = inputs[:, 0].repeat_interleave(weight.size(0) // groups)
    return _record(call, name, bias, Layer(tuple(weight.shape), outputs, always(weight.size(1))))


def linear(call: Call) -> list[Tensor]:
    """Matrix product [N, C_in] x [C_in, C_out] with the transposed weight of a linear layer: new channels."""
    *bias, features, matrix = call.args
    weight = matrix._base
    name = call.name_of(weight)
    if name is None or features not in call.labels or not _is_transposed(weight, matrix):
        return mix(call)
    return _layer(call, name, weight, bias[0] if bias else None, _vector(call, features, 1))


def _is_transposed(weight: Tensor, matrix: Tensor) -> bool:
    return weight.ndim == 2 and (matrix.shape, matrix.stride()) == (weight.t().shape, weight.t().stride())


def _layer(call: Call, name: str, weight: Tensor, bias: Tensor | None, inputs: Tensor) -> list[Tensor]:
    known = call.graph.layers.get(name)
    outputs = call.graph.new_outputs(name, weight.size(0)) if known is None else known.outputs
    return _record(call, name, bias, Layer(tuple(weight.shape), outputs, inputs))


def _record(call: Call, name: str, bias: Tensor | None, layer: Layer) -> list[Tensor]:
    call.add_layer(name, layer)
    if bias is not None:
        call.follow(bias, layer.outputs)
    return [_along(layer.outputs, 1, call.outputs[0].ndim)]


# --- what leaves channels as they are -----------------------------------------------------------------------------


def batch_norm(call: Call) -> list[Tensor]:
    """Batch norm: scale, shift and running statistics follow the channels of the input."""
    image, *vectors = call.args[:5]
    if image not in call.labels:
        return mix(call)
    channels = _vector(call, image, 1)
    for vector in vectors:
        if vector is not None:
            call.follow(vector, channels)
    normalized, *statistics = call.outputs
    return [_along(channels, 1, normalized.ndim), *(collapsed_always(each.ndim) for each in statistics)]


def spatial(call: Call) -> list[Tensor]:
    """Pooling, resizing, reflecting: acts on the last dimensions, on each channel by itself."""
    [(_, labels)] = call.labelled
    found = SPATIAL.fullmatch(call.kind)
    assert found is not None
    if any(dim >= labels.ndim - int(found[1]) for dim in varying(labels)):
        return mix(call)
    return [labels for _ in call.outputs]


def reduce(call: Call) -> list[Tensor]:
    """Mean, sum, norm, ... over dimensions that hold no channels."""
    [(tensor, labels)] = call.labelled
    dims = call.argument("dim")
    dims = [dims] if isinstance(dims, int) else dims or range(tensor.ndim)
    reduced = {dim % tensor.ndim for dim in dims}
    if reduced & set(varying(labels)):
        return mix(call)
    if not call.argument("keepdim"):
        labels = labels.reshape([size for dim, size in enumerate(labels.shape) if dim not in reduced])
    return [labels for _ in call.outputs]


# --- what moves elements ------------------------------------------------------------------------------------------


def rearrange(call: Call) -> list[Tensor]:
    """Views, shapes, slices: labels move as the elements do."""
    [(tensor, labels)] = call.labelled
    full = labels.expand(tensor.shape).contiguous()

    def on_labels(argument: Any) -> Any:
        if argument is tensor:
            return full
        return argument.cpu() if isinstance(argument, Tensor) else argument

    moved = tree_leaves(call.function(*tree_map(on_labels, call.args), **call.kwargs))
    results = [collapse(each) for each in moved]
    return results if all(same_channels_in_order(labels, each) for each in results) else mix(call)


def pad(call: Call) -> list[Tensor]:
    """Padding with a constant: new positions take the label of their channel, new channels are always there."""
    [(tensor, labels)] = call.labelled
    amounts = list(call.args[1])
    for dim in range(tensor.ndim - len(amounts) // 2, tensor.ndim):
        if labels.size(dim) == 1:
            start = 2 * (tensor.ndim - 1 - dim)
            amounts[start : start + 2] = [0, 0]
    if min(amounts) < 0:
        return mix(call)
    return [torch.nn.functional.pad(labels, amounts, value=ALWAYS)]


def concatenate(call: Call) -> list[Tensor]:
    """Concatenation: along the channels, one after another; along anything else, channel by channel."""
    dimensions = call.outputs[0].ndim
    dim = call.argument("dim", 0) % dimensions
    across = {each for _, labels in call.labelled for each in varying(labels)}
    if across and dim not in across:
        return elementwise(call)
    if not across <= {dim}:
        return mix(call)
    parts = []
    for tensor in call.args[0]:
        sizes = [tensor.size(dim) if each == dim else 1 for each in range(dimensions)]
        parts.append(call.labels.get(tensor, collapsed_always(dimensions)).expand(sizes))
    return [collapse(torch.cat(parts, dim))]


def stack(call: Call) -> list[Tensor]:
    """Stacking: channel by channel."""
    if len(call.labelled) < len(call.tensors):
        return mix(call)
    partners = [labels for _, labels in call.labelled]
    return [_tie(call, partners).unsqueeze(call.argument("dim", 0))]


# --- elementwise --------------------------------------------------------------------------------------------------


def elementwise(call: Call) -> list[Tensor]:
    """Sums, products, activations, ...: channels that meet are kept or dropped together."""
    output = call.outputs[0]
    operands = [(tensor, align(labels, output.ndim)) for tensor, labels in call.labelled]
    across = varying(broadcast(*(labels for _, labels in operands))[0])
    partners = []
    for tensor, labels in operands:
        if len(_axes(tensor, across, output)) < len(across):
            call.demand(labels, "spreads one channel over many")
        else:
            partners.append(labels)
    merged = _tie(call, partners) if partners else collapsed_always(output.ndim)
    for tensor in call.tensors:
        axes = _axes(tensor, across, output)
        if axes and tensor not in call.labels:
            _follow_constant(call, tensor, axes, merged)
    return [merged for _ in call.outputs]


def _axes(tensor: Tensor, across: Sequence[int], output: Tensor) -> list[int]:
    """Return the tensor's own dimensions that lie along the channels of the output and are not broadcast there."""
    axes = [dim - output.ndim + tensor.ndim for dim in across]
    return [axis for axis in axes if axis >= 0 and tensor.size(axis) > 1 and tensor.stride(axis) > 0]


def _tie(call: Call, partners: Sequence[Tensor]) -> Tensor:
    for other in partners[1:]:
        call.graph.tie(partners[0], other)
    return broadcast(*partners)[0]


def _follow_constant(call: Call, tensor: Tensor, axes: Sequence[int], labels: Tensor) -> None:
    """Let a parameter that has a value for every channel follow the channels it meets."""
    if len(varying(labels)) == 1:
        call.follow(tensor, labels.flatten(), axes[0])
    else:
        call.demand(labels, "meets a constant that has a value for every channel")


RULES: dict[str, Rule] = {
    "cat": concatenate,
    "stack": stack,
    "convolution": convolution,
    "addmm": linear,
    "mm": linear,
    "constant_pad_nd": pad,
    **dict.fromkeys(("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"), batch_norm),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min"), reduce),
    **dict.fromkeys(("linalg_vector_norm", "var", "std", "var_mean", "std_mean"), reduce),
}

SPATIAL = re.compile(r"_?(?:\w+_pool|upsample_[a-z_]+|reflection_pad|replication_pad)(\d)d\w*")

REARRANGEMENTS = {"_unsafe_view", "index", "index_select", "flip", "repeat", "roll"}

ELEMENTWISE = {"hardswish", "_to_copy", "copy", "fill", "zeros_like", "ones_like", "full_like", "empty_like"}
"""Elementwise operations that torch does not tag as pointwise."""
