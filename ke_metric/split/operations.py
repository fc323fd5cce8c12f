"""What each family of aten operations does to the labels of its operands.

Layers, matrix products and statistics come first: there channels begin and end. Spatial operations, rearrangements,
concatenations and elementwise operations pass labels on. Everything else demands that all of the channels of its
operands are kept, which is so where nothing is dropped, and a clear error where something is. No family guesses:
where labels cannot be passed on exactly, it demands. Whether a narrow network moves its channels as the wide one
does is not decided here: `rehearsal.py` runs it and compares.

A norm whose statistics are those of one channel, or of groups that are kept as a whole, computes the same in the
slim network. Over all channels of a narrowed tensor (layer norm, RMS norm, response normalisation) the slim network
takes them over the fit channels, the only ones it has: such places are recorded, because there the dense network
with its reset hypothesis at zero still counts the channels that the slim one lacks.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ke_metric.split.call import Call, Rule, along_channels, is_wide, meet, mix
from ke_metric.split.graph import ALWAYS, Layer, align, always, collapse, collapsed_always, varying

STATISTICS = {"mean", "var", "std", "var_mean", "std_mean", "linalg_vector_norm"}


def convolution(call: Call) -> list[Tensor]:
    """Convolution: new channels. In a grouped one, the outputs of a group are kept with the inputs of that group."""
    image, weight, bias = call.args[:3]
    groups = call.argument("groups")
    name = _weight_name(call, weight)
    if name is None:
        return _filter(call) if groups == image.size(1) == weight.size(0) else mix(call)
    inputs, transposed = call.vector(image, 1), call.argument("transposed")
    if groups > 1 or name in call.graph.grouped:
        call.graph.grouped.add(name)
        return _grouped(call, name, inputs.view(groups, -1))
    if weight in call.standardised and bool((inputs != ALWAYS).any()):
        call.add_norm(image, 1)
    outputs = call.graph.new_outputs(name, weight.size(1 if transposed else 0))
    return _record(call, name, bias, Layer(tuple(weight.shape), outputs, inputs, transposed))


def _weight_name(call: Call, weight: Tensor) -> str | None:
    """Return the name of the parameter that is a weight, or that a weight is the standardised version of."""
    known = call.owned.get(id(weight))
    if known is not None and known.is_parameter:
        return known.name
    owned = call.standardised.get(weight)
    if owned is None or weight.shape != owned.module.get_parameter("weight").shape:
        return None
    call.recorded.add(owned.name)
    return owned.name


def _grouped(call: Call, name: str, groups: Tensor) -> list[Tensor]:
    """Whole groups, from the labels [groups, C_in / groups] of the inputs; none of them is cut."""
    _, weight, bias = call.args[:3]
    call.graph.tie(groups, groups[:, :1])
    shape, within, first = tuple(weight.shape), always(weight.size(1)), groups[:, 0]
    if call.argument("transposed"):
        outputs = first.repeat_interleave(weight.size(1))
        layer = Layer(shape, within, groups.flatten(), transposed=True)
    else:
        outputs = first.repeat_interleave(weight.size(0) // len(groups))
        if weight in call.labels:
            call.graph.tie(call.labels[weight].flatten(), outputs)
        layer = Layer(shape, outputs, within)
    return _record(call, name, bias, layer, outputs)


def _filter(call: Call) -> list[Tensor]:
    """Depthwise convolution with a constant, such as blurring: each channel by itself."""
    image, weight, bias = call.args[:3]
    channels = call.vector(image, 1)
    for constant in (weight, bias):
        if constant is None or constant not in call.labels:
            call.follow(constant, channels)
            continue
        rows = call.along(constant, range(1, constant.ndim))
        if rows is None:
            call.demand(call.labels[constant], "filters with it")
        elif varying(rows):
            call.graph.tie(rows.flatten(), channels)
    return [along_channels(channels, call.outputs[0].ndim)]


def linear(call: Call) -> list[Tensor]:
    """Matrix product [N, C_in] x [C_in, C_out] with the transposed weight of a linear layer: new channels."""
    *bias, features, matrix = call.args
    weight = matrix._base
    name = call.name_of(weight)
    transposed = (matrix.T.shape, matrix.T.stride())
    if name is None or transposed != (weight.shape, weight.stride()):
        return mix(call) if bias or not call.labelled else matrix_product(call)
    inputs = call.vector(features, 1)
    outputs = call.graph.new_outputs(name, weight.size(0))
    return _record(call, name, bias[0] if bias else None, Layer(tuple(weight.shape), outputs, inputs))


def _record(call: Call, name: str, bias: Tensor | None, layer: Layer, outputs: Tensor | None = None) -> list[Tensor]:
    call.graph.add_layer(name, layer)
    call.recorded.add(name)
    outputs = layer.outputs if outputs is None else outputs
    call.follow(bias, outputs)
    return [along_channels(outputs, call.outputs[0].ndim)]


def matrix_product(call: Call) -> list[Tensor]:
    """Product of activations [..., n, k] x [..., k, m]: what is summed over is kept as a whole.

    The queries of a head meet its keys, and its attention its values: heads are kept or dropped as a whole.
    """
    *added, first, second = call.args
    if first.ndim != second.ndim or not call.labelled:
        return mix(call)
    left = call.along(first, [first.ndim - 1], alone=True)
    right = call.along(second, [second.ndim - 2], alone=True)
    if left is None or right is None or (left.size(-2) > 1 and right.size(-1) > 1):
        return mix(call)
    output = call.outputs[0]
    # As tensors, rows [..., n, 1] and columns [..., 1, m] stand for what they contribute to the product.
    operands = [(first[..., :1], left), (second[..., :1, :], right)]
    operands += [(tensor, align(call.labels[tensor], output.ndim)) for tensor in added if tensor in call.labels]
    return [collapse(meet(call, operands, output))]


def pixel_shuffle(call: Call) -> list[Tensor]:
    """Depth to space: the r x r channels that become one are kept or dropped together."""
    [(tensor, _)] = call.labelled
    groups = call.vector(tensor, tensor.ndim - 3).view(-1, call.argument("upscale_factor") ** 2)
    call.graph.tie(groups, groups[:, :1])
    return [along_channels(groups[:, 0], tensor.ndim, tensor.ndim - 3)]


def pixel_unshuffle(call: Call) -> list[Tensor]:
    """Space to depth: every channel becomes r x r."""
    [(tensor, _)] = call.labelled
    channels = call.vector(tensor, tensor.ndim - 3).repeat_interleave(call.argument("downscale_factor") ** 2)
    return [along_channels(channels, tensor.ndim, tensor.ndim - 3)]


def batch_norm(call: Call) -> list[Tensor]:
    """Batch norm: scale, shift and running statistics follow the channels of the input."""
    image, *vectors = call.args[:5]
    if image not in call.labels:
        return mix(call)
    channels = call.vector(image, 1)
    for vector in vectors:
        call.follow(vector, channels)
    return _with_statistics(call, along_channels(channels, image.ndim))


def layer_norm(call: Call) -> list[Tensor]:
    """Layer and RMS norm over the last dimensions."""
    tensor, shape, *vectors = call.args[:4]
    if tensor not in call.labels:
        return mix(call)
    labels = call.along(tensor, range(tensor.ndim - len(shape), tensor.ndim))
    if labels is None:
        labels = call.labels[tensor]
        if varying(labels) != [tensor.ndim - 1] or len(shape) > 1 or not call.place.is_leaf:
            return mix(call)
        call.add_norm(tensor, tensor.ndim - 1)
        for vector in vectors:
            if isinstance(vector, Tensor):
                call.follow(vector, labels.flatten())
    return _with_statistics(call, labels)


def group_norm(call: Call) -> list[Tensor]:
    """Group norm: whole groups; one group of all channels is a layer norm."""
    image, *vectors = call.args[:3]
    if image not in call.labels:
        return mix(call)
    channels = call.vector(image, 1)
    groups = channels.view(call.argument("group"), -1)
    if len(groups) == 1 and not call.are_one(groups, groups[:, :1]) and bool((channels != channels[0]).any()):
        if not call.place.is_leaf:
            return mix(call)
        call.add_norm(image, 1)
    else:
        call.graph.tie(groups, groups[:, :1])
    for vector in vectors:
        call.follow(vector, channels)
    return _with_statistics(call, along_channels(channels, image.ndim))


def _with_statistics(call: Call, labels: Tensor) -> list[Tensor]:
    """Return the labels of a normalised tensor, and those of the statistics that torch returns beside it."""
    return [labels, *(collapsed_always(each.ndim) for each in call.outputs[1:])]


def reduce(call: Call) -> list[Tensor]:
    """Mean, sum, norm, ... over positions, over whole groups of channels, or, in a norm, over all fit channels."""
    [(tensor, _)] = call.labelled
    dims = call.argument("dim")
    dims = [dims] if isinstance(dims, int) else dims or range(tensor.ndim)
    reduced = {dim % tensor.ndim for dim in dims} if tensor.ndim else set()
    labels = call.along(tensor, sorted(reduced))
    if labels is None:
        across = varying(call.labels[tensor])
        if call.kind not in STATISTICS or not call.place.is_leaf or len(across) > 1 or tensor in call.standardised:
            return mix(call)
        call.add_norm(tensor, across[0])
        labels = collapsed_always(tensor.ndim)
    if not call.argument("keepdim"):
        labels = labels.reshape([size for dim, size in enumerate(labels.shape) if dim not in reduced])
    return [labels for _ in call.outputs]


def softmax(call: Call) -> list[Tensor]:
    """Softmax over positions or over whole groups of channels."""
    [(tensor, _)] = call.labelled
    labels = call.along(tensor, [call.argument("dim") % tensor.ndim]) if tensor.ndim else None
    return mix(call) if labels is None else [labels]


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
