"""The split plan: which part of every weight of a network is the fit hypothesis."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Self

from torch import Tensor, nn

from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.split.masks import ChannelMask, Narrowing, WeightMask
from ke_metric.split.table import split_table
from ke_metric.split.wrappers import unwrapped

FORMAT = 1
KINDS = ("kels", "wels")


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
        network = unwrapped(network)
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        start = f"the split plan belongs to another network than this {type(network).__name__}"
        for name, entry in {**self.weights, **self.narrowings}.items():
            if name not in tensors:
                raise KeMetricError(f"{start}: there is no {name!r} in it{closest(name, tensors)}", ExitCode.RECIPE)
            shape = tuple(tensors[name].shape)
            if shape != entry.shape:
                raise KeMetricError(f"{start}: {name} is {shape}, in the plan {entry.shape}", ExitCode.RECIPE)

    def to_json(self) -> str:
        """Return the plan as JSON; channels are stored as ranges, and the bits of wels are left to `to_tensors`."""
        document = {
            "format": FORMAT,
            "kind": self.kind,
            "rate": self.rate,
            "weights": {name: mask.to_json() for name, mask in self.weights.items()},
            "narrowings": {name: narrowing.to_json() for name, narrowing in self.narrowings.items()},
            "norms": {name: narrowing.to_json() for name, narrowing in self.norms.items()},
            "settings": self.settings,
            "kept_whole": self.kept_whole,
            "channel_multiple": self.channel_multiple,
            "frozen": self.frozen,
        }
        return json.dumps(document)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the bits of a wels plan, weight name -> uint8 [ceil(entries / 8)]; nothing for kels."""
        return {name: mask.to_tensor() for name, mask in self.weights.items() if isinstance(mask, WeightMask)}

    @classmethod
    def from_json(cls, text: str, tensors: Mapping[str, Tensor] | None = None) -> Self:
        """Return the plan that `to_json` wrote.

        Args:
            text: What `to_json` returned.
            tensors: What `to_tensors` returned, for a wels plan.

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
        return split_table(self)


def _settings(document: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int | list[int]]]:
    """Return settings as JSON holds them, once they are seen to hold nothing but widths."""
    for name, attributes in document.items():
        for attribute, value in attributes.items():
            values = value if isinstance(value, list) else [value]
            if (
                not attribute.isidentifier()
                or attribute.startswith("_")
                or not all(type(each) is int for each in values)
            ):
                raise ValueError(f"settings of {name}: {attribute} = {value!r} is no width")
    return {name: dict(attributes) for name, attributes in document.items()}
