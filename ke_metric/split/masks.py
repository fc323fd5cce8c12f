"""Masks: compact records of which entries of a parameter are fit. True = fit, False = reset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class ChannelSet:
    """Which of a number of channels are kept.

    Attributes:
        size: Number of channels.
        ranges: Kept channels as half-open ranges, ascending and apart; a prefix is one range.
    """

    size: int
    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, kept: Tensor) -> Self:
        """Return the set of the channels that are True in a bool tensor [size]."""
        edges = torch.diff(torch.nn.functional.pad(kept.to(torch.int8), (1, 1)))
        starts, ends = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
        return cls(len(kept), tuple(zip(starts, ends, strict=True)))

    @classmethod
    def of_ranges(cls, size: int, ranges: Sequence[Sequence[int]]) -> Self:
        """Return the set with the given half-open ranges, as JSON holds them."""
        return cls(size, tuple((start, end) for start, end in ranges))

    @property
    def count(self) -> int:
        """Number of kept channels."""
        return sum(end - start for start, end in self.ranges)

    @property
    def index(self) -> Tensor:
        """Kept channels, ascending, int64 [count]."""
        return self.flags.nonzero().flatten()

    @property
    def flags(self) -> Tensor:
        """For every channel whether it is kept, bool [size]."""
        flags = torch.zeros(self.size, dtype=torch.bool, device="cpu")
        for start, end in self.ranges:
            flags[start:end] = True
        return flags


@dataclass(frozen=True)
class ChannelMask:
    """Fit part of a weight by whole channels (KELS): kept rows x kept columns, whole kernels.

    Attributes:
        shape: Shape of the weight, [C_out, C_in / groups, ...]; [C_in, C_out / groups, ...] if transposed.
        outputs: Kept output channels.
        inputs: Kept input channels.
        transposed: Whether the input channels come first, as in a transposed convolution.
    """

    shape: tuple[int, ...]
    outputs: ChannelSet
    inputs: ChannelSet
    transposed: bool = False

    @property
    def axes(self) -> tuple[ChannelSet, ChannelSet]:
        """What is kept along the first and along the second axis of the weight."""
        return (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)

    @property
    def fit_count(self) -> int:
        """Number of fit entries."""
        return self.outputs.count * self.inputs.count * prod(self.shape[2:])

    def expand(self) -> Tensor:
        """Return the mask as a bool tensor of the weight's shape, a view that is stored once per kernel."""
        first, second = self.axes
        plane = first.flags[:, None] & second.flags
        return plane.view(*plane.shape, *(1,) * (len(self.shape) - 2)).expand(self.shape)

    def to_json(self) -> dict[str, Any]:
        """Return the mask as JSON values; `from_json` reads them."""
        entry = {"shape": self.shape, "outputs": self.outputs.ranges, "inputs": self.inputs.ranges}
        return entry | {"transposed": True} if self.transposed else entry

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Self:
        """Return the mask that `to_json` wrote."""
        shape, transposed = tuple(entry["shape"]), bool(entry.get("transposed", False))
        inputs, outputs = shape[:2] if transposed else (shape[1], shape[0])
        return cls(
            shape,
            ChannelSet.of_ranges(outputs, entry["outputs"]),
            ChannelSet.of_ranges(inputs, entry["inputs"]),
            transposed,
        )


@dataclass(frozen=True)
class Narrowing:
    """A bias, norm parameter or norm statistic: never reset, but narrowed in the slim network.

    Attributes:
        shape: Shape of the parameter or buffer.
        axis: Its axis that holds channels.
        channels: Kept channels along that axis.
    """

    shape: tuple[int, ...]
    axis: int
    channels: ChannelSet

    def to_json(self) -> dict[str, Any]:
        """Return the narrowing as JSON values; `from_json` reads them."""
        return {"shape": self.shape, "axis": self.axis, "channels": self.channels.ranges}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Self:
        """Return the narrowing that `to_json` wrote."""
        shape, axis = tuple(entry["shape"]), entry["axis"]
        return cls(shape, axis, ChannelSet.of_ranges(shape[axis], entry["channels"]))


@dataclass(frozen=True)
class WeightMask:
    """Fit part of a weight by single entries (WELS), eight to a byte.

    Attributes:
        shape: Shape of the weight.
        bits: ceil(entries / 8) bytes; entry i of the flattened weight is bit i % 8 of byte i // 8.
    """

    shape: tuple[int, ...]
    bits: bytes

    @classmethod
    def draw(cls, shape: Sequence[int], rate: float, generator: torch.Generator) -> Self:
        """Draw a subset of exactly round(rate x entries) entries, every such subset equally likely."""
        entries = prod(shape)
        flags = torch.zeros(entries, dtype=torch.bool, device="cpu")
        flags[torch.randperm(entries, generator=generator, device="cpu")[: round(rate * entries)]] = True
        return cls.of(flags.view(tuple(shape)))

    @classmethod
    def of(cls, fit: Tensor) -> Self:
        """Return the mask of the entries that are True in a bool tensor of the weight's shape."""
        flags = fit.flatten().to(torch.uint8)
        bits = torch.nn.functional.pad(flags, (0, -len(flags) % 8)).view(-1, 8) << _PLACES
        return cls(tuple(fit.shape), bits.sum(dim=1, dtype=torch.uint8).numpy().tobytes())

    @property
    def fit_count(self) -> int:
        """Number of fit entries."""
        return int.from_bytes(self.bits, "little").bit_count()

    def expand(self) -> Tensor:
        """Return the mask as a bool tensor of the weight's shape."""
        flags = (self.to_tensor()[:, None] >> _PLACES) & 1
        return flags.bool().flatten()[: prod(self.shape)].view(self.shape)

    def to_tensor(self) -> Tensor:
        """Return the bits as a uint8 tensor [ceil(entries / 8)]."""
        return torch.frombuffer(bytearray(self.bits), dtype=torch.uint8)

    def to_json(self) -> dict[str, Any]:
        """Return what JSON holds of the mask: all but the bits, which go into a tensor file."""
        return {"shape": self.shape}

    @classmethod
    def from_json(cls, entry: dict[str, Any], bits: Tensor) -> Self:
        """Return the mask that `to_json` and `to_tensor` wrote."""
        shape = tuple(entry["shape"])
        if bits.dtype != torch.uint8 or bits.shape != (-(-prod(shape) // 8),):
            raise ValueError(f"{bits.dtype} {list(bits.shape)} are not the bits of a weight {list(shape)}")
        return cls(shape, bits.cpu().numpy().tobytes())


_PLACES = torch.arange(8, dtype=torch.uint8, device="cpu")
