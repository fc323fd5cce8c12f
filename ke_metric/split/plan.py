"""The split plan: which part of every weight of a network is the fit hypothesis."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Self

from torch import Tensor, nn

from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.randomness import torch_generator
from ke_metric.split.channels import follow_channels
from ke_metric.split.kels import fit_labels
from ke_metric.split.masks import ChannelMask, ChannelSet, Narrowing, WeightMask
from ke_metric.split.table import split_table

FORMAT = 1
KINDS = ("kels", "wels")


@dataclass(frozen=True)
class SplitPlan:
    """Which part of every weight is fit; a parameter that no entry names is fit as a whole.

    Attributes:
        kind: `kels` (whole channels) or `wels` (single weights).
        rate: Split rate in (0, 1].
        weights: Weight name -> its mask in compact form, in parameter order.
        narrowings: Name of a bias, norm parameter or norm statistic -> its kept channels; none for wels.
    """

    kind: str
    rate: float
    weights: Mapping[str, ChannelMask | WeightMask]
    narrowings: Mapping[str, Narrowing] = field(default_factory=dict)

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
        narrowings = {name: Narrowing.from_json(entry) for name, entry in document["narrowings"].items()}
        return cls(document["kind"], document["rate"], weights, narrowings)

    def __str__(self) -> str:
        return split_table(self)


def plan_split(
    network: nn.Module,
    example_input: Tensor,
    *,
    rate: float = 0.5,
    kind: str = "kels",
    keep_whole: Collection[str] = (),
    seed: int | None = None,
) -> SplitPlan:
    """Plan which part of every weight of a network is the fit hypothesis.

    `kels` keeps the first ceil(rate x channels) output channels of every convolution and linear layer, and the input
    channels that are kept where they come from; the network's input and output are never narrowed. `wels` keeps
    round(rate x entries) single entries of every parameter with two or more dimensions, drawn at random.
    (Taha, Shrivastava, Davis: Knowledge Evolution in Neural Networks, CVPR 2021.)

    Args:
        network: Any network; unchanged.
        example_input: What it takes, for example images [B, 3, H, W]; kels runs the network on it once.
        rate: Split rate in (0, 1]; 1 keeps everything.
        kind: `kels` or `wels`.
        keep_whole: Names of modules whose layers keep all of their outputs (kels) or weights (wels).
        seed: Seed of the wels masks; unused by kels, which draws nothing.

    Raises:
        KeMetricError: A bad argument, or a network that kels cannot follow.
    """
    if kind not in KINDS:
        raise KeMetricError(
            f"split kind {kind!r} is none of {', '.join(KINDS)}{closest(kind, KINDS)}", ExitCode.RECIPE
        )
    if not 0 < rate <= 1:
        raise KeMetricError(f"split rate = {rate}: must be greater than 0 and at most 1", ExitCode.RECIPE)
    whole = _weights_inside(network, keep_whole)
    if kind == "wels":
        return _plan_wels(network, rate, whole, seed)
    return _plan_kels(network, example_input, rate, whole)


def _plan_kels(network: nn.Module, example_input: Tensor, rate: float, keep_whole: set[str]) -> SplitPlan:
    graph = follow_channels(network, example_input)
    fit = fit_labels(graph, rate, keep_whole)
    weights: dict[str, ChannelMask | WeightMask] = {}
    for name, _ in network.named_parameters():
        if name in graph.layers:
            layer = graph.layers[name]
            weights[name] = ChannelMask(
                layer.shape, ChannelSet.of(fit[layer.outputs]), ChannelSet.of(fit[layer.inputs])
            )
    narrowings = {
        name: Narrowing(follower.shape, follower.axis, ChannelSet.of(fit[follower.labels]))
        for name, follower in graph.followers.items()
    }
    return SplitPlan("kels", rate, weights, narrowings)


def _plan_wels(network: nn.Module, rate: float, keep_whole: set[str], seed: int | None) -> SplitPlan:
    if seed is None:
        raise KeMetricError("kind='wels' draws its masks at random and needs seed=", ExitCode.RECIPE)
    weights: dict[str, ChannelMask | WeightMask] = {
        name: WeightMask.draw(parameter.shape, rate, torch_generator(seed, 0, f"wels mask of {name}"))
        for name, parameter in network.named_parameters()
        if parameter.ndim >= 2 and name not in keep_whole
    }
    return SplitPlan("wels", rate, weights)


def _weights_inside(network: nn.Module, modules: Collection[str]) -> set[str]:
    """Return the names of the weights (two or more dimensions) in the named modules."""
    known = dict(network.named_modules())
    names = {parameter: name for name, parameter in network.named_parameters()}
    inside: set[str] = set()
    for module in modules:
        if module not in known:
            raise KeMetricError(
                f"keep_whole names {module!r}; {type(network).__name__} has no such module{closest(module, known)}",
                ExitCode.RECIPE,
            )
        weights = {names[parameter] for parameter in known[module].parameters() if parameter.ndim >= 2}
        if not weights:
            raise KeMetricError(
                f"keep_whole names {module!r}, a {type(known[module]).__name__} without weights: there is nothing in "
                "it to split or keep; name the convolution or linear layer before it",
                ExitCode.RECIPE,
            )
        inside |= weights
    return inside
