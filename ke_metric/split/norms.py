"""Rules for norms and statistics.

A norm whose statistics are those of one channel, or of groups that are kept as a whole, computes the same in the slim
network. Over all channels of a narrowed tensor (layer norm, RMS norm, response normalisation) the slim network takes
them over the fit channels, the only ones it has: such places are recorded, because there the dense network with its
reset hypothesis at zero still counts the channels that the slim one lacks.
"""

from __future__ import annotations

from torch import Tensor

from ke_metric.split.call import Call
from ke_metric.split.labels import collapsed_always, varying
from ke_metric.split.rules import along_channels, mix

STATISTICS = {"mean", "var", "std", "var_mean", "std_mean", "linalg_vector_norm"}


def batch_norm(call: Call) -> list[Tensor]:
    """Batch norm: scale, shift and running statistics follow the channels of the input."""
    image, *vectors = call.args[:5]
    if image not in call.labels:
        return mix(call)
    channels = call.vector(image, 1)
    for vector in vectors:
        if vector is not None:
            call.follow(vector, channels)
    normalized, *statistics = call.outputs
    return [along_channels(channels, normalized.ndim), *(collapsed_always(each.ndim) for each in statistics)]


def layer_norm(call: Call) -> list[Tensor]:
    """Layer and RMS norm over the last dimensions."""
    tensor, shape, *vectors = call.args[:4]
    vectors = [vector for vector in vectors if isinstance(vector, Tensor)]
    if tensor not in call.labels:
        return mix(call)
    dims = range(tensor.ndim - len(shape), tensor.ndim)
    labels = call.along(tensor, dims)
    if labels is None:
        labels = call.labels[tensor]
        if varying(labels) != [tensor.ndim - 1] or len(shape) > 1 or not call.place.is_leaf:
            return mix(call)
        call.add_norm(tensor, tensor.ndim - 1)
        for vector in vectors:
            call.follow(vector, labels.flatten())
    _normalized, *statistics = call.outputs
    return [labels, *(collapsed_always(each.ndim) for each in statistics)]


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
        if vector is not None:
            call.follow(vector, channels)
    normalized, *statistics = call.outputs
    return [along_channels(channels, normalized.ndim), *(collapsed_always(each.ndim) for each in statistics)]


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
