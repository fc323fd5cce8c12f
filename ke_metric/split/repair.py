"""Repairs of a slim network after it is cut out, by pictures alone: no label and no gradient is needed.

A slim network has the norm statistics of the whole one, whose channels summed over more inputs, and a last layer that
counted on more features. Both can be computed anew from a forward pass of training pictures.

Shapes: N pictures, F features, D numbers of an embedding, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ke_metric.arrays import DoubleArray, FloatArray, Weights

WHITENING_DAMPING = 0.1
"""Share of the mean variance that is added to every variance before it is divided by: undamped whitening makes noise
as large as the embedding."""
RIDGE = 0.1
"""Share of the mean variance of the features that the ridge regression of a classifier's last layer adds."""


def norm_statistics(network: nn.Module) -> Weights:
    """Return the running means and variances of a network's batch-norm layers, by name; empty where it has none."""
    return {
        f"{name}.{statistic}" if name else statistic: value
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm)
        for statistic in ("running_mean", "running_var")
        if (value := getattr(module, statistic)) is not None
    }


@torch.no_grad()
def estimate_norm_statistics(
    network: nn.Module, batches: Tensor | Iterable[Tensor], *, norms: Iterable[nn.Module] | None = None
) -> Weights:
    """Measure the batch-norm statistics of a network anew, in place: exact means and variances over given inputs.

    All inputs go through the network together, and every layer normalises by the statistics just measured of it: a
    second call with the same inputs changes nothing but rounding, and in eval mode the network computes for them what
    was computed here. Dropout is off. A layer without running statistics, or another kind of norm, has nothing to
    measure. A layer that is called more than once keeps what its last call sees.

    Args:
        network: The network; its mode is left as it was.
        batches: Its input [N, ...], or parts of it to be joined; 256 pictures of a training set are enough in most
            cases, and memory for their activations (of one layer at a time) is needed.
        norms: Layers whose statistics are measured; all when left out.

    Returns:
        What `norm_statistics` returns afterwards.
    """
    inputs = batches if isinstance(batches, Tensor) else torch.cat(list(batches))
    measured = [
        norm
        for norm in (network.modules() if norms is None else norms)
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None
    ]
    modes = [(module, module.training) for module in network.modules()]
    handles = [norm.register_forward_pre_hook(_measure) for norm in measured]
    try:
        network.eval()
        network(inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, was_training in modes:
            module.training = was_training
    return norm_statistics(network)


def _measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Set a norm layer's statistics to those of what it is about to normalise, [N, C, ...] by channel."""
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    values = inputs[0].double()
    axes = [axis for axis in range(values.ndim) if axis != 1]
    variance, mean = torch.var_mean(values, dim=axes, correction=0)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def whitened_layer(weight: FloatArray, bias: FloatArray, features: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return weight [D, F] and bias [D] of a last layer whose outputs vary alike in all of their dimensions.

    With mean m and covariance V diag(w) V' of the outputs e = W f + b of some features, e becomes
    diag(w + d)^-1/2 V' (e - m) with d = `WHITENING_DAMPING` mean(w). That is a linear layer again. Directions come
    in the order of how much outputs vary along them, so that the first numbers are those that tell most.

    Args:
        weight: W [D, F].
        bias: b [D].
        features: f [N, F], of training pictures.
    """
    outputs = features.astype(np.float64) @ weight.T.astype(np.float64) + bias
    mean = outputs.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(outputs.T, bias=True))
    scale = 1 / np.sqrt(np.maximum(variances, 0) + WHITENING_DAMPING * variances.mean())
    turned = (scale[:, None] * directions.T)[::-1]
    return _single(turned @ weight), _single(turned @ (bias - mean))


def refitted_layer(features: FloatArray, targets: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return weight [C, F] and bias [C] that give the targets best, by ridge regression.

    Args:
        features: [N, F], of training pictures.
        targets: [N, C], the whole network's logits of the same pictures.
    """
    inputs, wanted = features.astype(np.float64), targets.astype(np.float64)
    mean, target_mean = inputs.mean(axis=0), wanted.mean(axis=0)
    centred = inputs - mean
    covariance = centred.T @ centred / len(inputs)
    ridge = RIDGE * np.trace(covariance) / len(covariance)
    weight = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), centred.T @ (wanted - target_mean)).T
    weight /= len(inputs)
    return _single(weight), _single(target_mean - weight @ mean)


def _single(values: DoubleArray) -> FloatArray:
    return np.ascontiguousarray(values, np.float32)
