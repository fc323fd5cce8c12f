"""What each family of aten operations does to the labels of its operands.

Layers, norms and statistics are in `layers.py`; spatial operations, rearrangements, concatenations and elementwise
operations, which pass labels on, are here. Everything else demands that all of the channels of its operands are kept,
which is so where nothing is dropped, and a clear error where something is. No family guesses: where labels cannot be
passed on exactly, it demands. Whether a narrow network moves its channels as the wide one does is not decided here:
`rehearsal.py` runs it and compares.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ke_metric.split.call import Call, Rule, along_channels, is_wide, meet, mix
from ke_metric.split.graph import ALWAYS, align, collapse, collapsed_always, varying
from ke_metric.split.layers import (
    batch_norm,
    convolution,
    group_norm,
    layer_norm,
    linear,
    matrix_product,
    pixel_shuffle,
    pixel_unshuffle,
    reduce,
    softmax,
)

SPATIAL = re.compile(r"_?(?:\w+_pool|upsample_[a-z_]+|reflection_pad|replication_pad)(\d)d\w*")
REARRANGEMENTS = {"_unsafe_view", "index", "index_select", "flip", "repeat", "roll", "split_with_sizes_copy"}
# These rearrangements take channels apart.
PARTS = {"slice", "split", "split_with_sizes", "narrow", "chunk", "unsafe_chunk", "unsafe_split"}
COLUMNS_IN_PLACE = {"view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze", "alias", "detach"}
# These views say nothing about channels: they name strides, or pair elements.
BY_STRIDES = {"as_strided", "_reshape_alias", "view_as_real", "view_as_complex"}
# Torch does not tag these as pointwise: not at all, not in place, or not in its oldest version allowed.
ELEMENTWISE = {
    "hardswish", "_to_copy", "copy", "fill", "zeros_like", "ones_like", "full_like", "empty_like", "clone",
    "masked_fill", "_prelu_kernel", "lift_fresh", "zero",
    "celu", "elu", "gelu", "hardsigmoid", "hardtanh", "ldexp", "leaky_relu", "mish", "rrelu_with_noise", "selu",
    "threshold",
}  # fmt: skip
COPIES = {
    "clone", "_to_copy", "copy", "lift_fresh", "zeros_like", "ones_like", "full_like", "empty_like", "as_strided",
}  # fmt: skip


def follow(call: Call) -> list[Tensor | None]:
    """Return collapsed labels for every output of an operation, and record what it ties together or demands.

    None for outputs that depend on nothing that has labels.
    """
    rule = rule_of(call)
    if rule not in CONSUMERS and call.kind != "t":
        call.label_parameters()
    labelled = len(call.labelled)
    if not labelled and not (rule in LAYERS and call.used):
        return [None for _ in call.outputs]
    if labelled > 1 and rule not in SEVERAL:
        rule = mix
    labels = rule(call)
    # Nothing is in an empty tensor that could be dropped; what it is made of must not be asked for.
    pairs = zip(labels, call.outputs, strict=True)
    labels = [each if output.numel() else collapsed_always(output.ndim) for each, output in pairs]
    assert [each.ndim for each in labels] == [output.ndim for output in call.outputs]
    _keep_track_of_weights(call, rule)
    return list(labels)


def computes(call: Call) -> bool:
    """Tell whether an operation computes something, rather than moving or copying it."""
    return rule_of(call) not in (rearrange, blank, mix) and call.kind not in COPIES


def rule_of(call: Call) -> Rule:
    """Return the rule that an operation goes by."""
    kind, function = call.kind, call.function
    if torch.Tag.pointwise in function.tags or kind in ELEMENTWISE:
        return elementwise
    if kind in RULES:
        return RULES[kind]
    if SPATIAL.fullmatch(kind):
        return spatial
    if kind in BY_STRIDES or function._overloadname == "dtype":
        # Pooling to one position restores the memory format of its result in this way.
        same = [list(output.shape) for output in call.outputs] == [list(call.tensors[0].shape)]
        return elementwise if same and kind == "as_strided" else mix
    return rearrange if function.is_view or kind in REARRANGEMENTS else mix


def _keep_track_of_weights(call: Call, rule: Rule) -> None:
    """Know what is computed from a weight alone, row by row and with its columns in place: a weight as well."""
    sources = [call.standardised[tensor] for tensor in call.tensors if tensor in call.standardised]
    in_place = rule in (elementwise, batch_norm, reduce) or call.kind in COLUMNS_IN_PLACE
    if sources and in_place and not call.depends_on_input and all(source is sources[0] for source in sources):
        for output in call.outputs:
            call.standardised[output] = sources[0]


def spatial(call: Call) -> list[Tensor]:
    """Pooling, resizing, reflecting: acts on the last dimensions, on each channel by itself."""
    [(tensor, _)] = call.labelled
    found = SPATIAL.fullmatch(call.kind)
    assert found is not None
    labels = call.along(tensor, range(tensor.ndim - int(found[1]), tensor.ndim))
    return mix(call) if labels is None else [labels for _ in call.outputs]


def rearrange(call: Call) -> list[Tensor]:
    """Views, shapes, slices: labels move as the elements do."""
    [(tensor, labels)] = call.labelled
    if call.kind in ("index", "index_select") and id(tensor) in call.owned:
        # Positions are looked up in a table, and the channels (heads, say) are along the other dimension.
        looked_up = [dim for dim, index in enumerate(call.argument("indices", ())) if index is not None]
        if call.kind == "index_select":
            looked_up = [call.argument("dim")]
        by_position = call.along(tensor, looked_up)
        labels = labels if by_position is None else by_position
    if not varying(labels):
        return [labels.reshape((1,) * output.ndim) for output in call.outputs]
    full = labels.expand(tensor.shape).contiguous()

    def on_labels(argument: Any) -> Any:
        if argument is tensor:
            return full
        return argument.cpu() if isinstance(argument, Tensor) else argument

    moved = tree_leaves(call.function(*tree_map(on_labels, call.args), **call.kwargs))
    results = [collapse(each) for each in moved]
    if call.kind in PARTS:
        _note_parts(call, labels, results)
    return results


def _note_parts(call: Call, labels: Tensor, parts: list[Tensor]) -> None:
    """Let every part that channels are split into keep a prefix of its own."""
    present = torch.cat([part.flatten() for part in parts])
    rest = labels.flatten()[~torch.isin(labels.flatten(), present)]
    parts = [part.flatten() for part in parts] + ([rest] if rest.numel() else [])
    if any(not torch.equal(parts[0], part) for part in parts):
        call.graph.parts[call.place.name].append(parts)


def pad(call: Call) -> list[Tensor]:
    """Padding with a constant: new positions take the label of their channel, new channels are always there."""
    [(tensor, labels)] = call.labelled
    amounts = list(call.args[1])
    for dim in range(tensor.ndim - len(amounts) // 2, tensor.ndim):
        if labels.size(dim) == 1:
            start = 2 * (tensor.ndim - 1 - dim)
            amounts[start : start + 2] = [0, 0]
    return [torch.nn.functional.pad(labels, amounts, value=ALWAYS)]


def concatenate(call: Call) -> list[Tensor]:
    """Concatenation: along the channels, one after another; along anything else, channel by channel."""
    dimensions = call.outputs[0].ndim
    dim = call.argument("dim", 0) % dimensions
    across = {each for _, labels in call.labelled for each in varying(labels)}
    if across and dim not in across:
        return elementwise(call)
    parts = []
    for tensor in call.args[0]:
        sizes = [tensor.size(each) if each == dim or each in across else 1 for each in range(dimensions)]
        parts.append(call.labels.get(tensor, collapsed_always(dimensions)).expand(sizes))
    return [collapse(torch.cat(parts, dim))]


def stack(call: Call) -> list[Tensor]:
    """Stacking: channel by channel."""
    if len(call.labelled) < len(call.tensors):
        return mix(call)
    output = call.outputs[0].select(call.argument("dim", 0), 0)
    return [meet(call, call.labelled, output).unsqueeze(call.argument("dim", 0))]


def channel_shuffle(call: Call) -> list[Tensor]:
    """Channels of all groups in turn: the same of every group are kept."""
    [(tensor, _)] = call.labelled
    groups = call.vector(tensor, 1).view(call.argument("groups"), -1)
    call.graph.boxes[call.place.name].append(groups)
    return [along_channels(groups.t().flatten(), tensor.ndim)]


def gated_halves(call: Call) -> list[Tensor]:
    """Gated linear unit: the first half is kept where its gate, the second, is."""
    [(tensor, labels)] = call.labelled
    dim = call.argument("dim", -1) % tensor.ndim
    if labels.size(dim) == 1:
        return [labels]
    halves = labels.chunk(2, dim)
    call.graph.tie(*halves)
    call.graph.parts[call.place.name].append([half.flatten() for half in halves])
    return [halves[0]]


def blank(call: Call) -> list[Tensor]:
    """New tensors filled with one value: nothing of their operand is in them."""
    return [collapsed_always(output.ndim) for output in call.outputs]


def elementwise(call: Call) -> list[Tensor]:
    """Sums, products, activations, ...: channels that meet are kept or dropped together."""
    output = call.outputs[0]
    # An empty part of a concatenation meets nothing.
    operands = [(tensor, align(labels, output.ndim)) for tensor, labels in call.labelled if tensor.numel()]
    merged = meet(call, operands, output)
    across = varying(merged)
    for tensor in call.tensors:
        if tensor not in call.labels and tensor.numel() and is_wide(tensor, across, output):
            call.demand(merged, "meets a constant that has a value for every channel")
    return [merged for _ in call.outputs]


RULES: dict[str, Rule] = {
    "cat": concatenate,
    "stack": stack,
    "convolution": convolution,
    **dict.fromkeys(("addmm", "mm"), linear),
    **dict.fromkeys(("bmm", "baddbmm"), matrix_product),
    "constant_pad_nd": pad,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), channel_shuffle),
    "glu": gated_halves,
    **dict.fromkeys(("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"), batch_norm),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm"), layer_norm),
    "native_group_norm": group_norm,
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min"), reduce),
    **dict.fromkeys(("linalg_vector_norm", "var", "std", "var_mean", "std_mean"), reduce),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), softmax),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty"), blank),
}
# These rules look for weights among the parameters themselves.
LAYERS = (convolution, linear)
# These let parameters follow the channels they are given.
CONSUMERS = (*LAYERS, batch_norm, layer_norm, group_norm)
# These take several operands with labels.
SEVERAL = (*CONSUMERS, elementwise, concatenate, stack, matrix_product, mix)
