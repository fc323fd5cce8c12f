"""The arrays and tensors that the package passes around.

Kinds of NumPy array are named by what their numbers are; many rows are cut into blocks. The tensors of a network go
by name: which there are, how they lie in memory, their digest, how they are loaded.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ke_metric.errors import ExitCode, KeMetricError, some_of

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
PixelArray = npt.NDArray[np.uint8]
ItemIds = tuple[str, ...] | tuple[int, ...]


Weights = Mapping[str, Tensor]
"""A state dict on the CPU: name to tensor."""
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def row_chunks(count: int, rows: int) -> Iterator[slice]:
    """Cut `count` rows into slices of at most `rows` rows."""
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer, also those that no state dict holds; a tied one under its first name."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """Return the memory format that the strides of a tensor spell out, contiguous where they spell out both or none.

    By its sizes a 1x1 convolution is contiguous in both; torch goes by the strides.
    """
    channels_last = CHANNELS_LAST.get(tensor.ndim, torch.contiguous_format)
    strides, contiguous = (
        torch.empty(tensor.shape, device="meta", memory_format=each).stride()
        for each in (channels_last, torch.contiguous_format)
    )
    return channels_last if tensor.stride() == strides != contiguous else torch.contiguous_format


def weights_digest(weights: Weights) -> str:
    """Return the SHA-256 of a state dict: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def weights_of(module: nn.Module) -> Weights:
    """Return a copy of a module's state dict on the CPU, contiguous."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in module.state_dict().items()
    }


def as_state_dict(weights: Weights, module: nn.Module) -> Weights:
    """Return weights as `module.load_state_dict` takes them: with the version numbers of its layers.

    Files hold tensors alone, and a few networks (MNASNet) refuse a state dict without the versions torch gives it.
    """
    versioned = OrderedDict(weights)
    versioned._metadata = getattr(module.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
    return versioned


def load_whole(module: nn.Module, weights: Weights, what: str) -> None:
    """Load a state dict into a network or a loss, every tensor of it and nothing else.

    Raises:
        KeMetricError: A tensor is missing, left over or of another shape; `what` says whose weights they are. The
            module is as it was.
    """
    expected = {name: list(value.shape) for name, value in module.state_dict().items()}
    given = {name: list(value.shape) for name, value in weights.items()}
    misfits = [f"{name} is missing" for name in expected if name not in given]
    misfits += [f"{name} is left over" for name in given if name not in expected]
    misfits += [
        f"{name} has shape {given[name]}, not {shape}"
        for name, shape in expected.items()
        if given.get(name, shape) != shape
    ]
    if misfits:
        raise KeMetricError(
            f"{what} do not fit the recipe's network or loss: {some_of(misfits, separator='; ')}. What has a "
            "row for every class needs the classes that it was trained on",
            ExitCode.LINEAGE,
        )
    module.load_state_dict(as_state_dict(weights, module), strict=True)
