"""The tensors of a stored network: every parameter and buffer as safetensors, and how each one lies in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.networks.description import CONFIG, WEIGHTS, TensorFacts, WeightsFile

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
# A safetensors file begins with the length of its header, 8 bytes; its readers allow this much.
LARGEST_HEADER = 100_000_000


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer, also those that no state dict holds; a tied one under its first name."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def describe(tensor: Tensor) -> TensorFacts:
    """Return how a tensor lies in memory; a view with gaps, or in another order, counts as contiguous."""
    return TensorFacts(
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        channels_last=_is_channels_last(tensor),
        frozen=isinstance(tensor, nn.Parameter) and not tensor.requires_grad,
    )


def _is_channels_last(tensor: Tensor) -> bool:
    """Tell the memory format by the strides: a 1x1 convolution is contiguous in both, and torch goes by these."""
    memory_format = CHANNELS_LAST.get(tensor.ndim)
    if memory_format is None:
        return False
    strides = [
        torch.empty(tensor.shape, device="meta", memory_format=layout).stride()
        for layout in (memory_format, torch.contiguous_format)
    ]
    return tensor.stride() == strides[0] != strides[1]


def to_bytes(network: nn.Module) -> bytes:
    """Return the content of model.safetensors.

    Raises:
        ValueError: A tensor without values, of a special kind, or of a number type that safetensors does not have.
    """
    copies = {}
    for name, tensor in tensors_of(network).items():
        if tensor.is_meta or tensor.layout is not torch.strided or type(tensor) not in (Tensor, nn.Parameter):
            kind = f"{type(tensor).__name__}, {tensor.layout}, on {tensor.device}"
            raise ValueError(f"{name} is no ordinary tensor with values in memory ({kind})")
        # A copy: safetensors refuses tensors that share memory.
        copies[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    try:
        return safetensors.torch.save(copies, metadata={"format": "pt"})
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"safetensors: {type(error).__name__}: {error}") from error


def require_same_tensors(network: nn.Module, dense: nn.Module) -> None:
    """Check that the network has the tensors of its architecture, by name, and the same ones tied.

    Raises:
        ValueError: It has not.
    """
    ours, theirs = _first_names(network), _first_names(dense)
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"{name} is {_in_words(name, ours)} in the network, {_in_words(name, theirs)} in its architecture"
            )


def _first_names(network: nn.Module) -> dict[str, str]:
    """Return the first name of every parameter and buffer: its own, or that of the tensor it is tied to."""
    first = {id(tensor): name for name, tensor in tensors_of(network).items()}
    named = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    return {name: first[id(tensor)] for name, tensor in named}


def _in_words(name: str, first_names: Mapping[str, str]) -> str:
    if name not in first_names:
        return "absent"
    return "a tensor of its own" if first_names[name] == name else f"tied to {first_names[name]}"


def read_weights(path: Path, file: WeightsFile, stated: Mapping[str, TensorFacts]) -> dict[str, Tensor]:
    """Return the tensors of model.safetensors: those that config.json names, of the types and shapes it states."""
    content = _read_bytes(path, file)
    try:
        stored = safetensors.torch.load(content)
    except (SafetensorError, AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _refusal(path, content, f"no safetensors file ({type(error).__name__}: {error})") from error
    for name in {**stated, **stored}:
        if name not in stored or name not in stated:
            has, lacks = (WEIGHTS, CONFIG) if name in stored else (CONFIG, WEIGHTS)
            raise KeMetricError(f"{path}: {name!r} is in {has} but not in {lacks}", ExitCode.DATA)
        facts = describe(stored[name])
        if (facts.shape, facts.dtype) != (stated[name].shape, stated[name].dtype):
            raise KeMetricError(
                f"{path}: {name!r} is {facts.dtype} {list(facts.shape)}, by {CONFIG} {stated[name].dtype} "
                f"{list(stated[name].shape)}",
                ExitCode.DATA,
            )
    return stored


def _read_bytes(path: Path, stated: WeightsFile) -> bytes:
    """Return the content of a file that is exactly what config.json states; no more is ever read or allocated."""
    if not path.is_file():
        raise KeMetricError(f"{path}: no such file; {CONFIG} is there, its weights are not", ExitCode.DATA)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(stated.bytes if size == stated.bytes else 8)
    except OSError as error:
        raise KeMetricError(f"{path}: cannot be read: {error}", ExitCode.DATA) from error
    if size != stated.bytes:
        raise _refusal(path, content, f"has {size:,} bytes, by {CONFIG} {stated.bytes:,}: truncated, or another file")
    if hashlib.sha256(content).hexdigest() != stated.sha256:
        raise _refusal(
            path, content, f"was changed or damaged since it was written (its SHA-256 is not that of {CONFIG})"
        )
    return content


def _refusal(path: Path, content: bytes, reason: str) -> KeMetricError:
    """Return the error for a file that is not what it should be; a pickle is called one."""
    opcode_of_pickle = content[:1] == b"\x80" and int.from_bytes(content[:8], "little") > LARGEST_HEADER
    if opcode_of_pickle or content[:4] == b"PK\x03\x04":
        reason = "no safetensors file but a pickle (torch.save), which can run code when it is read; it was not"
    return KeMetricError(f"{path}: {reason}", ExitCode.DATA)


def replace_tensors(network: nn.Module, stored: Mapping[str, Tensor], stated: Mapping[str, TensorFacts]) -> None:
    """Put stored tensors into a network, in place of all of its own; what is tied stays tied.

    Raises:
        ValueError: The names are not the same, or a tensor cannot be laid out or trained as stated.
    """
    own = tensors_of(network)
    for name in stored:
        if name not in own:
            raise ValueError(f"there is no tensor {name!r} in it{closest(name, own)}")
    for name in own:
        if name not in stored:
            raise ValueError(f"no tensor is stored for {name!r}")
    places = {id(tensor): _place(stored[name], stated[name], tensor) for name, tensor in own.items()}
    for module in network.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                # By setattr: torch's recurrent layers keep a second list of their parameters.
                setattr(module, name, places[id(tensor)])


def _place(stored: Tensor, facts: TensorFacts, place: Tensor) -> Tensor:
    """Return a stored tensor as the parameter or buffer it is: in memory of its own, laid out as it was."""
    memory_format = torch.contiguous_format
    if facts.channels_last:
        if stored.ndim not in CHANNELS_LAST:
            raise ValueError(f"channels_last of a tensor with {stored.ndim} dimensions")
        memory_format = CHANNELS_LAST[stored.ndim]
    copy = torch.empty(stored.shape, dtype=stored.dtype, device="cpu", memory_format=memory_format).copy_(stored)
    if not isinstance(place, nn.Parameter):
        return copy
    if not facts.frozen and not (copy.is_floating_point() or copy.is_complex()):
        raise ValueError(f"a parameter of {facts.dtype} that is not frozen")
    return nn.Parameter(copy, requires_grad=not facts.frozen)
