"""Rules for what has weights, multiplies matrices or takes statistics: where channels begin and end.

A norm whose statistics are those of one channel, or of groups that are kept as a whole, computes the same in the slim
network. Over all channels of a narrowed tensor (layer norm, RMS norm, response normalisation) the slim network takes
them over the fit channels, the only ones it has: such places are recorded, because there the dense network with its
reset hypothesis at zero still counts the channels that the slim one lacks.
"""

from __future__ import annotations

from torch import Tensor

from ke_metric.split.call import Call, along_channels, meet, mix
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
