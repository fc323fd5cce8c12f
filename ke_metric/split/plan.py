"""The split plan: which part of every weight of a network is the fit hypothesis, and how it is stored.

A mask says of every entry of a weight whether it is fit (True) or reset (False); a plan holds masks in a compact
form, whole channels as ranges (KELS) and single weights as bits (WELS).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import prod
from typing import Any, Self

import torch
from torch import Tensor, nn

from ke_metric.arrays import tensors_of
from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.split.admission import KINDS, refusal, unwrapped

FORMAT = 1
# This is why a module or weight is kept whole that `keep_whole` names.
ASKED_FOR = "keep_whole names it"
_PLACES = torch.arange(8, dtype=torch.uint8, device="cpu")


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
        """Return the mask as JSON values."""
        entry = {"shape": self.shape, "outputs": self.outputs.ranges, "inputs": self.inputs.ranges}
        return entry | {"transposed": True} if self.transposed else entry

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Self:
        """Return the mask that `to_json` wrote."""
        shape, transposed = tuple(entry["shape"]), bool(entry.get("transposed", False))
        inputs, outputs = shape[:2] if transposed else (shape[1], shape[0])
        kept_outputs = ChannelSet.of_ranges(outputs, entry["outputs"])
        return cls(shape, kept_outputs, ChannelSet.of_ranges(inputs, entry["inputs"]), transposed)


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
        """Return the narrowing as JSON values."""
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


@dataclass(frozen=True)
class SplitPlan:
    """Which part of every weight is fit; a parameter that no entry names is fit as a whole.

    Attributes:
        kind: `kels` (whole channels) or `wels` (single weights).
        rate: Split rate in (0, 1].
        weights: Weight name -> its mask in compact form, in parameter order.
        narrowings: Name of a bias, norm parameter, norm statistic, embedding, ... -> its kept channels; wels: none.
        norms: Module -> the channels of its input that it takes a statistic over: there the slim network, which has
            no others, differs from the dense one with its reset hypothesis at zero.
        settings: Module -> attribute -> value: numbers of heads, split sizes and other widths that a module of the
            slim network holds beside its tensors.
        kept_whole: Module or weight -> why it is kept whole: `keep_whole` names it, or no narrower width can serve
            what the module does with its channels.
        channel_multiple: Numbers of kept channels were rounded up to a multiple of this.
        frozen: Weights with a reset part that did not require gradients when the plan was made: `redraw_reset` leaves
            a weight as it is for as long as it does not.
    """

    kind: str
    rate: float
    weights: Mapping[str, ChannelMask | WeightMask]
    narrowings: Mapping[str, Narrowing] = field(default_factory=dict)
    norms: Mapping[str, Narrowing] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, int | list[int]]] = field(default_factory=dict)
    kept_whole: Mapping[str, str] = field(default_factory=dict)
    channel_multiple: int = 1
    frozen: tuple[str, ...] = ()

    @property
    def masks(self) -> dict[str, Tensor]:
        """Weight name -> bool tensor of the weight's shape, True = fit; computed anew on every access."""
        return {name: mask.expand() for name, mask in self.weights.items()}

    @property
    def fit_count(self) -> int:
        """Number of fit entries in the weights of the plan; biases and norms, which are never reset, not counted."""
        return sum(mask.fit_count for mask in self.weights.values())

    @property
    def reset_count(self) -> int:
        """Number of reset entries in the weights of the plan."""
        return sum(prod(mask.shape) for mask in self.weights.values()) - self.fit_count

    def check(self, network: nn.Module) -> None:
        """Make sure that this plan belongs to a network of this architecture.

        Raises:
            KeMetricError: A parameter or buffer of the plan is missing or has another shape.
        """
        tensors = tensors_of(unwrapped(network))
        start = f"the split plan belongs to another network than this {type(unwrapped(network)).__name__}"
        for name, entry in {**self.weights, **self.narrowings}.items():
            if name not in tensors:
                raise refusal(f"{start}: there is no {name!r} in it{closest(name, tensors)}")
            shape = tuple(tensors[name].shape)
            if shape != entry.shape:
                raise refusal(f"{start}: {name} is {shape}, in the plan {entry.shape}")

    def to_json(self) -> str:
        """Return the plan as JSON; the bits of wels are left to `to_tensors`."""
        document = {"format": FORMAT} | {each.name: getattr(self, each.name) for each in fields(self)}
        return json.dumps(document, default=lambda entry: entry.to_json())

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the bits of a wels plan, weight name -> uint8 [ceil(entries / 8)]; nothing for kels."""
        return {name: mask.to_tensor() for name, mask in self.weights.items() if isinstance(mask, WeightMask)}

    @classmethod
    def from_json(cls, text: str, tensors: Mapping[str, Tensor] | None = None) -> Self:
        """Return the plan that `to_json` wrote, and `to_tensors` for a wels plan.

        Raises:
            KeMetricError: The text is no split plan, or one of another format, or tensors are missing.
        """
        try:
            return cls._read(json.loads(text), tensors or {})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise KeMetricError(
                f"no split plan of format {FORMAT}: {error!r} while reading {text[:80]!r}", ExitCode.LINEAGE
            ) from error

    @classmethod
    def _read(cls, document: dict[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        if document["format"] != FORMAT or document["kind"] not in KINDS:
            raise ValueError(f"format {document['format']}, kind {document['kind']}")
        weights: dict[str, ChannelMask | WeightMask] = {
            name: WeightMask.from_json(entry, tensors[name])
            if document["kind"] == "wels"
            else ChannelMask.from_json(entry)
            for name, entry in document["weights"].items()
        }
        # Plans of before these fields were there have none of what they hold.
        narrowings, norms = (
            {name: Narrowing.from_json(entry) for name, entry in document.get(key, {}).items()}
            for key in ("narrowings", "norms")
        )
        return cls(
            document["kind"],
            document["rate"],
            weights,
            narrowings,
            norms,
            _settings(document.get("settings", {})),
            {str(name): str(reason) for name, reason in document.get("kept_whole", {}).items()},
            int(document.get("channel_multiple", 1)),
            tuple(str(name) for name in document.get("frozen", ())),
        )

    def __str__(self) -> str:
        return f"{self.kind} at split rate {self.rate}\n" + "\n".join([*_table(self), *_notes(self)])


def _settings(document: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int | list[int]]]:
    """Return settings as JSON holds them, once they are seen to hold nothing but widths."""
    for name, attributes in document.items():
        for attribute, value in attributes.items():
            values = value if isinstance(value, list) else [value]
            is_public = attribute.isidentifier() and not attribute.startswith("_")
            if not is_public or any(type(each) is not int for each in values):
                raise ValueError(f"settings of {name}: {attribute} = {value!r} is no width")
    return {name: dict(attributes) for name, attributes in document.items()}


def _table(plan: SplitPlan) -> list[str]:
    """Return one line for every weight: kept / all outputs, kept / all inputs (kels only), share that is fit."""
    rows = [("weight", "outputs", "inputs", "fit")]
    for name, mask in plan.weights.items():
        if isinstance(mask, WeightMask):
            channels = [str(size) for size in mask.shape[:2]]
        else:
            channels = [f"{each.count} / {each.size}" for each in (mask.outputs, mask.inputs)]
        rows.append((name, channels[0], channels[1], _share(mask.fit_count, prod(mask.shape))))
    rows.append(("all", "", "", _share(plan.fit_count, plan.fit_count + plan.reset_count)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _notes(plan: SplitPlan) -> list[str]:
    """Return what is kept whole and why, what is frozen, and which norms see the fit channels only."""
    reasons = {name: reason for name, reason in plan.kept_whole.items() if reason != ASKED_FOR}
    notes = [f"{module} keeps all of its channels: {reason}" for module, reason in reasons.items()]
    lists = {
        "kept whole by request": [name for name in plan.kept_whole if name not in reasons],
        "frozen (requires_grad=False), and so never redrawn": plan.frozen,
        "statistics over the fit channels only": list(plan.norms),
    }
    return notes + [f"{what}: {', '.join(names)}" for what, names in lists.items() if names]
