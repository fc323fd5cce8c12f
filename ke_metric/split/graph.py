"""The channels of a network: labels, which say what channel every element of a tensor belongs to, and their ties.

While a network is followed, every tensor has a companion of integers, its labels. A label names one channel of the
layer that made it; `ALWAYS` is the label of what can never be dropped, such as the network's input. A companion has
as many dimensions as its tensor and is kept collapsed: a dimension along which it does not change has size 1, so
that the labels of a feature map [B, C, H, W] are stored as [1, C, 1, 1]. Labels live on the CPU, wherever the network
is, and do not depend on the split rate: `kels.py` decides afterwards which of them are kept.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import torch
from torch import Size, Tensor

ALWAYS = 0
# More pairs than this are worth sorting, to keep each only once.
MANY_PAIRS = 4096
# A tensor with more labels than any layer has channels is a large table.
LARGEST_SEEN = 1 << 16


def always(*sizes: int) -> Tensor:
    """Return labels [sizes] of what can never be dropped."""
    return torch.full(sizes, ALWAYS, device="cpu")


def collapsed_always(dimensions: int) -> Tensor:
    """Return the collapsed labels of a tensor with this many dimensions in which nothing can be dropped."""
    return always(*(1,) * dimensions)


def collapse(labels: Tensor) -> Tensor:
    """Narrow every dimension along which the labels [...] do not change to size 1."""
    for dim in range(labels.ndim):
        first = labels.narrow(dim, 0, min(1, labels.size(dim)))
        if labels.size(dim) > 1 and bool((labels == first).all()):
            labels = first
    return labels


def varying(labels: Tensor) -> list[int]:
    """Return the dimensions along which collapsed labels [...] change."""
    return [dim for dim in range(labels.ndim) if labels.size(dim) > 1]


def align(labels: Tensor, dimensions: int) -> Tensor:
    """Put dimensions of size 1 in front of labels [...], as broadcasting does."""
    return labels.reshape((1,) * (dimensions - labels.ndim) + labels.shape)


def broadcast(*labels: Tensor) -> list[Tensor]:
    """Expand labels [...] to the shape they have together."""
    return list(torch.broadcast_tensors(*labels))  # type: ignore[no-untyped-call]  # untyped in torch


def meetings(first: Tensor, second: Tensor, *, through_one: bool = False) -> Tensor:
    """Return the pairs of different labels that meet when two label tensors [...] are broadcast: [2, n].

    Where one of them does not change along a dimension, all labels of the other along it meet the same one, and so
    each other: they are paired with the first of them, which alone is paired with the other tensor's. That ties the
    same labels together with far fewer pairs. With `through_one` it is done so even if the other tensor has a single
    label, with which all are paired by default.
    """
    dimensions = max(first.ndim, second.ndim)
    both = [align(first, dimensions), align(second, dimensions)]
    pairs = []
    for dim in range(dimensions) if through_one or min(first.numel(), second.numel()) > 1 else ():
        for number, labels in enumerate(both):
            if labels.size(dim) > 1 and both[1 - number].size(dim) == 1:
                both[number] = labels.narrow(dim, 0, 1)
                pairs += [_flat(labels, both[number])]
    found = torch.cat([*pairs, _flat(*both)], dim=1)
    return found[:, found[0] != found[1]]


def _flat(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([labels.flatten() for labels in broadcast(first, second)])


def restrict(labels: Tensor, kept: Tensor) -> Tensor | None:
    """Return the collapsed labels that the narrow tensor has, in the order of the wide one.

    None if they make no tensor: that needs the same positions of a dimension to be kept all over the others. `kept`
    says of every label whether it is kept, bool [labels].
    """
    flags = kept[labels]
    if not bool(flags.any()):
        return None
    for dim in varying(labels):
        others = [each for each in range(flags.ndim) if each != dim]
        positions = (flags.any(dim=others) if others else flags).nonzero().flatten()
        flags, labels = flags.index_select(dim, positions), labels.index_select(dim, positions)
    return labels if bool(flags.all()) else None


def families(pairs: Tensor, labels: int) -> Tensor:
    """Return for every label the smallest that it is tied to, directly or over others: int64 [labels].

    Args:
        pairs: Labels that are tied, [2, n].
        labels: How many labels there are.
    """
    smallest = torch.arange(labels, device="cpu")
    pairs = torch.cat([pairs, pairs.flip(0)], dim=1)
    while True:
        spread = smallest.scatter_reduce(0, pairs[0], smallest[pairs[1]], "amin")
        # Following the pointers halves the length of chains that are tied one after another.
        spread = spread[spread]
        if torch.equal(spread, smallest):
            return smallest
        smallest = spread


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer.

    Attributes:
        shape: Shape of the weight, [C_out, C_in / groups, ...], or [C_in, C_out / groups, ...] if transposed.
        outputs: Labels along the weight's axis of output channels; all `ALWAYS` where that axis is within a group.
        inputs: Labels along its axis of input channels; likewise. Groups are kept or dropped as a whole.
        transposed: Whether this is a transposed convolution, whose first axis holds the input channels.
    """

    shape: tuple[int, ...]
    outputs: Tensor
    inputs: Tensor
    transposed: bool = False


class Labelled(NamedTuple):
    """Shape and collapsed labels of a tensor: an activation, or a parameter or buffer that follows channels."""

    shape: tuple[int, ...]
    labels: Tensor

    @property
    def key(self) -> tuple[object, ...]:
        """What two equal records have in common."""
        return self.shape, tuple(self.labels.shape), self.labels.numpy().tobytes()

    def narrowed(self, kept: Tensor) -> Self | None:
        """Return what is left of the tensor when the labels in `kept`, bool [labels], are; None if it is none."""
        narrow = restrict(self.labels, kept)
        if narrow is None:
            return None
        sizes = enumerate(self.shape)
        return type(self)(tuple(narrow.size(d) if self.labels.size(d) > 1 else size for d, size in sizes), narrow)


class Demand(NamedTuple):
    """Labels [channels] that an operation can only serve if all of them are kept; the reason is for the message."""

    labels: Tensor
    reason: str


class Step(NamedTuple):
    """One operation that computes something: the module, its name, and the labels of what it computes with.

    Without labels where it computes with several tensors that have some, or with none.
    """

    module: str
    kind: str
    labels: Tensor | None


@dataclass
class ChannelGraph:
    """All channels of a network, as following it records them; modules, weights and tensors go by their names.

    Attributes:
        root: What the network itself is called where a module's name is asked for: the name of its class. The slim
            network goes by it too, though a copy of a traced network is of another class.
        layers: Weight -> layer, in the order of first use.
        calls: Weight -> the layer as each of its calls saw it.
        followers: Parameter or buffer that is narrowed with the channels it meets, and never reset -> its labels.
        made: Weight -> the labels of its output channels, [channels], in the order in which they were given out.
        labels: How many labels were given out, `ALWAYS` included.
        ties: Pairs of labels, each [2, n]: both are kept or both are dropped.
        demands: What operations need of the labels.
        parts: Module -> channels that it splits: label tensors of the parts, of which each keeps a prefix of its own.
        boxes: Module -> collapsed labels that vary along more than one dimension, such as heads x channels of a head.
        norms: Module -> what it takes a statistic over that is along channels, and the dimension of the channels.
        grouped: Weights of grouped convolutions: a narrow one may have a single group left.
        fixed: Parameter or buffer that is used at its full size -> the place where it is.
        used: Parameters and buffers that the network computes with.
        multiplied: Parameter of two or more dimensions -> a place where activations meet it, or what is computed
            from it, in another way than one that leaves it beside them.
        beside: Those that activations meet as a table, token or scale.
        computed_with: Those from which something is computed alone, before activations meet it.
        strangers: Places that compute with a parameter that no module has registered.
        seen: Module -> tensors that can be narrowed and came by while it was the innermost one that ran.
        unseen: Modules in which more came by than is in `seen`.
        steps: Everything that was computed, in order.
        returned: Module -> what each of its calls returned.
    """

    root: str = ""
    layers: dict[str, Layer] = field(default_factory=dict)
    calls: dict[str, list[Layer]] = field(default_factory=lambda: defaultdict(list))
    followers: dict[str, Labelled] = field(default_factory=dict)
    made: dict[str, Tensor] = field(default_factory=dict)
    labels: int = 1
    ties: list[Tensor] = field(default_factory=list)
    demands: list[Demand] = field(default_factory=list)
    parts: dict[str, list[list[Tensor]]] = field(default_factory=lambda: defaultdict(list))
    boxes: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    norms: dict[str, tuple[Labelled, int]] = field(default_factory=dict)
    grouped: set[str] = field(default_factory=set)
    fixed: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    multiplied: dict[str, str] = field(default_factory=dict)
    beside: set[str] = field(default_factory=set)
    computed_with: set[str] = field(default_factory=set)
    strangers: list[str] = field(default_factory=list)
    seen: dict[str, dict[tuple[object, ...], Labelled]] = field(default_factory=lambda: defaultdict(dict))
    unseen: set[str] = field(default_factory=set)
    steps: list[Step] = field(default_factory=list)
    returned: dict[str, list[list[Labelled]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def tied_pairs(self) -> Tensor:
        """All ties as one tensor of pairs, [2, n]."""
        return torch.cat([*self.ties, torch.empty(2, 0, dtype=torch.int64, device="cpu")], dim=1)

    def tie(self, first: Tensor, second: Tensor) -> None:
        """Keep or drop the channels of two broadcastable label tensors together, element by element."""
        if first is second:
            return
        pairs = meetings(first, second)
        if pairs.size(1) > MANY_PAIRS:
            codes = torch.unique(pairs[0] * self.labels + pairs[1])
            pairs = torch.stack([codes // self.labels, codes % self.labels])
        if pairs.numel():
            self.ties.append(pairs)

    def are_one(self, _labels: Tensor, _first: Tensor) -> bool:
        """Tell whether labels are known to be one group or head; one that is left alone does not show it."""
        return False

    def is_norm(self, _module: str) -> bool:
        """Tell whether a module is known to take a statistic over channels, before it does."""
        return False

    def demand(self, labels: Tensor, reason: str) -> None:
        """Note that all of the labels [...] are needed."""
        if bool((labels != ALWAYS).any()):
            self.demands.append(Demand(labels.flatten(), reason))

    def all_demands(self) -> list[Demand]:
        """Return the demands of operations, and that what is used at its full size is kept whole."""
        return self.demands + [
            Demand(labels.flatten(), f"{place} uses {name} at its full size")
            for name, place in self.fixed.items()
            for labels in self._labels_of(name)
        ]

    def _labels_of(self, name: str) -> list[Tensor]:
        layer, follower = self.layers.get(name), self.followers.get(name)
        return [*([layer.outputs, layer.inputs] if layer else []), *([follower.labels] if follower else [])]

    def new_outputs(self, weight: str, channels: int) -> Tensor:
        """Give every output channel of a layer a label of its own; return them as [channels]."""
        if weight not in self.made:
            self.made[weight] = self._new_labels(channels)
        return self.made[weight]

    def new_follower(self, name: str, shape: Size) -> Tensor:
        """Give every entry of a parameter or buffer a label of its own; return them, [shape]."""
        labels = self._new_labels(shape.numel()).view(shape)
        self.add_follower(name, Labelled(tuple(shape), labels))
        return labels

    def _new_labels(self, count: int) -> Tensor:
        self.labels += count
        return torch.arange(self.labels - count, self.labels, device="cpu")

    def add_layer(self, weight: str, layer: Layer) -> None:
        """Record a layer; one that is called again ties the channels of its calls together."""
        known = self.layers.setdefault(weight, layer)
        self.tie(known.outputs, layer.outputs)
        self.tie(known.inputs, layer.inputs)
        self.calls[weight].append(layer)

    def add_follower(self, name: str, follower: Labelled) -> None:
        """Record a follower; one that is used again ties the channels of its uses together."""
        self.tie(self.followers.setdefault(name, follower).labels, follower.labels)

    def add_norm(self, module: str, tensor: Labelled, dim: int) -> None:
        """Record that a module takes a statistic over the channels of a tensor, along a dimension."""
        self.norms.setdefault(module, (tensor, dim))

    def see(self, module: str, tensor: Labelled, *, from_input: bool) -> None:
        """Record a tensor that came by in a module, unless it has a label for every position of a large table.

        What is computed from parameters alone is not `from_input`, the network's.
        """
        if tensor.labels.numel() > LARGEST_SEEN:
            self.unseen.add(module)
        elif tensor.key not in self.seen[module]:
            self.seen[module][tensor.key] = tensor
            if len(varying(tensor.labels)) > 1:
                self.boxes[module].append(tensor.labels)

    def leave(self, module: str, outputs: list[Labelled]) -> None:
        """Record what a call of a module returned."""
        self.returned[module].append(outputs)
