"""What following a network yields: its layers by the labels of their channels, and what ties labels together.

Nothing here depends on the split rate. `kels.py` decides, from this record, which labels are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ke_metric.split.labels import ALWAYS, always, broadcast


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer.

    Attributes:
        shape: Shape of the weight, [C_out, C_in / groups, ...].
        outputs: Labels of the output channels, [C_out].
        inputs: Labels of the weight's second axis, [C_in / groups]; all `ALWAYS` in a grouped convolution, whose
            groups are kept or dropped as a whole.
    """

    shape: tuple[int, ...]
    outputs: Tensor
    inputs: Tensor


@dataclass(frozen=True)
class Follower:
    """A bias, norm parameter or norm statistic: narrowed with the channels it acts on, never reset.

    Attributes:
        shape: Shape of the parameter or buffer.
        axis: Its axis that holds the channels.
        labels: Labels along that axis, [shape[axis]].
    """

    shape: tuple[int, ...]
    axis: int
    labels: Tensor


@dataclass(frozen=True)
class Demand:
    """Labels that an operation can only serve together.

    Attributes:
        labels: [sets, channels]. Each row must be kept as a whole; it may be dropped as a whole if `droppable`.
        reason: Where and why, for the error message.
        droppable: Whether a whole row may be dropped.
    """

    labels: Tensor
    reason: str
    droppable: bool = False


@dataclass
class ChannelGraph:
    """All channels of a network.

    Attributes:
        layers: Weight name -> layer, in the order of first use.
        followers: Parameter or buffer name -> follower.
        origins: First label of the channels a layer made -> (weight name, number of channels).
        labels: How many labels were given out, `ALWAYS` included.
        ties: Pairs of labels, each [2, n]: both are kept or both are dropped.
        demands: What operations need of the labels.
        fixed: Name of a parameter or buffer that is used at its full size -> the place where it is.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    followers: dict[str, Follower] = field(default_factory=dict)
    origins: dict[int, tuple[str, int]] = field(default_factory=dict)
    labels: int = 1
    ties: list[Tensor] = field(default_factory=list)
    demands: list[Demand] = field(default_factory=list)
    fixed: dict[str, str] = field(default_factory=dict)

    def tie(self, first: Tensor, second: Tensor) -> None:
        """Keep or drop the channels of two broadcastable label tensors together, element by element."""
        if first is second:
            return
        pairs = torch.stack([labels.flatten() for labels in broadcast(first, second)])
        pairs = pairs[:, pairs[0] != pairs[1]]
        if pairs.numel():
            self.ties.append(pairs)

    def keep_whole(self, labels: Tensor) -> None:
        """Never drop any of the labels [...]."""
        self.tie(labels, always())

    def demand(self, labels: Tensor, reason: str, *, droppable: bool = False) -> None:
        """Note that each row of the labels [sets, channels] can only be kept as a whole."""
        if bool((labels != ALWAYS).any()):
            self.demands.append(Demand(labels, reason, droppable))

    def all_demands(self) -> list[Demand]:
        """Return the demands of operations, and that what is used at its full size is kept whole."""
        return self.demands + [
            Demand(labels.reshape(1, -1), f"{place} uses {name} at its full size")
            for name, place in self.fixed.items()
            for labels in self._labels_of(name)
        ]

    def _labels_of(self, name: str) -> list[Tensor]:
        layer, follower = self.layers.get(name), self.followers.get(name)
        return [*([layer.outputs, layer.inputs] if layer else []), *([follower.labels] if follower else [])]

    def new_outputs(self, weight: str, channels: int) -> Tensor:
        """Give every output channel of a layer a label of its own; return them as [channels]."""
        first = self.labels
        self.origins[first] = (weight, channels)
        self.labels += channels
        return torch.arange(first, self.labels, device="cpu")

    def add_layer(self, weight: str, layer: Layer) -> None:
        """Record a layer; one that is called again ties the channels of its calls together."""
        known = self.layers.setdefault(weight, layer)
        self.tie(known.outputs, layer.outputs)
        self.tie(known.inputs, layer.inputs)

    def add_follower(self, name: str, follower: Follower) -> None:
        """Record a bias or norm tensor; one that is used again ties the channels of its uses together."""
        self.tie(self.followers.setdefault(name, follower).labels, follower.labels)
