"""One aten operation of a followed run, as the rules see it, and what they share: how labels of operands meet.

`mix` is the last resort: where labels cannot be passed on exactly, all of them are demanded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from ke_metric.split.graph import (
    ALWAYS,
    ChannelGraph,
    Labelled,
    always,
    broadcast,
    collapse,
    collapsed_always,
    varying,
)

# A table of positions has a label for every entry; what has more entries than this is a weight.
LARGEST_LABELLED = 1 << 21


class Owned(NamedTuple):
    """A parameter or buffer of the followed network, with its name and the module that it belongs to."""

    name: str
    module: nn.Module
    is_parameter: bool


class Place(NamedTuple):
    """The innermost module that is running, and the first tensor it was given.

    The network itself, the `root`, goes by the name of its class.
    """

    name: str
    module: nn.Module
    root: bool
    given: Tensor | None

    @property
    def is_leaf(self) -> bool:
        """Whether the module holds no other modules with parameters: a norm, say, rather than a block of layers."""
        inside = (parameter for child in self.module.children() for parameter in child.parameters())
        return not self.root and next(inside, None) is None


@dataclass(frozen=True)
class Call:
    """One operation as it was run.

    Attributes:
        function: The aten operation.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        outputs: The tensors it returned.
        labels: Tensor -> collapsed labels, for every tensor that depends on the network's input or on a parameter
            that is not a layer's weight.
        owned: id of a parameter or buffer of the network -> what it is.
        graph: Where layers, followers, ties and demands are recorded.
        place: The module that is running.
        standardised: Tensor computed from a weight alone, row by row -> the weight it comes from.
        from_input: Tensors that depend on the network's input.
        recorded: Names of the parameters and buffers that a rule has recorded as layer or follower.
    """

    function: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]
    labels: MutableMapping[Tensor, Tensor]
    owned: Mapping[int, Owned]
    graph: ChannelGraph
    place: Place
    standardised: MutableMapping[Tensor, Owned]
    from_input: Mapping[Tensor, bool]
    recorded: set[str] = field(default_factory=set)

    @property
    def kind(self) -> str:
        """Name of the operation, the same in and out of place: `add` for `aten.add_.Tensor`."""
        name: str = self.function._schema.name
        return name.removeprefix("aten::").removesuffix("_")

    @cached_property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    @cached_property
    def depends_on_input(self) -> bool:
        """Whether an argument depends on the network's input, before the operation changes it."""
        return any(tensor in self.from_input for tensor in self.tensors)

    @property
    def labelled(self) -> list[tuple[Tensor, Tensor]]:
        """The arguments that have labels, with their collapsed labels."""
        return [(tensor, self.labels[tensor]) for tensor in self.tensors if tensor in self.labels]

    @property
    def used(self) -> set[str]:
        """Names of the parameters and buffers among the arguments, and of those whose views are."""
        return self._names_of(self.tensors)

    @property
    def used_at_full_size(self) -> set[str]:
        """Those of the names in `used` whose tensors have no labels."""
        return self._names_of(tensor for tensor in self.tensors if tensor not in self.labels)

    def _names_of(self, tensors: Iterable[Tensor]) -> set[str]:
        bases = (tensor if tensor._base is None else tensor._base for tensor in tensors)
        return {self.owned[id(base)].name for base in bases if id(base) in self.owned}

    @property
    def where(self) -> str:
        """Module, operation and shapes of its operands, for messages."""
        shapes = ", ".join(str(list(tensor.shape)) for tensor in self.tensors)
        return f"{self.place.name}: {self.function} of {shapes}"

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the operation's schema."""
        names = [argument.name for argument in self.function._schema.arguments]
        return (dict(zip(names, self.args, strict=False)) | self.kwargs).get(name, default)

    def name_of(self, tensor: Tensor | None) -> str | None:
        """Return the name of a parameter or buffer of the network, None for any other tensor."""
        owned = self.owned.get(id(tensor))
        return owned.name if owned else None

    def demand(self, labels: Tensor, why: str) -> None:
        """Demand that all of the labels [...] are kept."""
        self.graph.demand(labels, f"{self.where} {why}")

    def label_parameters(self) -> None:
        """Give labels to the parameters and buffers among the arguments that have none and may follow channels."""
        for tensor in self.tensors:
            owned = self.owned.get(id(tensor))
            if owned is None or tensor in self.labels or not tensor.is_floating_point():
                continue
            sizes = [size for size in tensor.shape if size > 1]
            is_matrix = isinstance(owned.module, nn.Linear) and len(sizes) > 1
            if isinstance(owned.module, _ConvNd) and owned.name.endswith("weight") and len(sizes) > 1:
                # This weight is computed with before it is used as one: its rows are the output channels.
                rows = self.graph.new_outputs(owned.name, tensor.size(0))
                self.labels[tensor] = rows.view(-1, *(1,) * (tensor.ndim - 1))
                self.standardised[tensor] = owned
            elif sizes and tensor.numel() <= LARGEST_LABELLED and not is_matrix:
                self.labels[tensor] = self.graph.new_follower(owned.name, tensor.shape)
                self.recorded.add(owned.name)

    def along(self, tensor: Tensor, dims: Sequence[int], *, alone: bool = False) -> Tensor | None:
        """Return the labels of a tensor without the dimensions `dims`, which become size 1.

        Labels that vary there as well as elsewhere, such as the channels of every head, are tied along `dims`: all or
        none of them are kept. Where the labels vary along these dimensions only, that is so if they may be `alone`,
        such as the channels of a single head; otherwise None is returned.
        """
        labels = self.labels.get(tensor)
        if labels is None:
            return collapsed_always(tensor.ndim)
        inside = [dim for dim in dims if labels.size(dim) > 1]
        first = labels
        for dim in inside:
            first = first.narrow(dim, 0, 1)
        is_alone = bool(inside) and len(inside) == len(varying(labels))
        if is_alone and not alone and not self.are_one(labels, first):
            return None
        self.graph.tie(labels, first)
        return first

    def are_one(self, labels: Tensor, first: Tensor) -> bool:
        """Tell whether labels are known to be one group or head where they are taken together."""
        return not self.graph.is_norm(self.place.name) and self.graph.are_one(labels, first)

    def vector(self, tensor: Tensor, dim: int) -> Tensor:
        """Return the labels along one dimension, [tensor.shape[dim]]; those at other positions are tied to them."""
        labels = self.labels.get(tensor, collapsed_always(tensor.ndim))
        first = labels
        for other in range(labels.ndim):
            if other != dim:
                first = first.narrow(other, 0, 1)
        if labels.size(dim) == 1 and labels.numel() > 1:
            self.demand(labels, f"needs the same channels at every position outside of dimension {dim}")
            return always(tensor.size(dim))
        self.graph.tie(labels, first)
        return first.flatten().expand(tensor.size(dim))

    def follow(self, tensor: Tensor | None, labels: Tensor) -> None:
        """Let a bias, scale, ... follow labels [channels] by its first axis; another constant cannot be narrowed."""
        if tensor is None:
            return
        along = along_channels(labels, tensor.ndim, 0)
        name = self.name_of(tensor)
        if tensor in self.labels:
            self.graph.tie(self.labels[tensor], along)
        elif name is not None:
            self.graph.add_follower(name, Labelled(tuple(tensor.shape), along))
            self.recorded.add(name)
        elif tensor.size(0) > 1 and tensor.stride(0) > 0:
            self.demand(labels, "meets a constant that has a value for every channel")

    def add_norm(self, tensor: Tensor, dim: int) -> None:
        """Note that the module takes a statistic over the channels of a tensor, which are along a dimension.

        What is noted are the channels of the module's input, which it may have turned before.
        """
        given = self.place.given
        across = varying(self.labels[given]) if given is not None and given in self.labels else []
        if given is not None and len(across) == 1:
            tensor, dim = given, across[0]
        self.graph.add_norm(self.place.name, Labelled(tuple(tensor.shape), self.labels[tensor]), dim)


Rule = Callable[[Call], list[Tensor]]


def mix(call: Call) -> list[Tensor]:
    """Every other operation: each element of the result may depend on all channels."""
    if not call.labelled:
        # This is a product of parameters, whose channels are always there.
        return [collapsed_always(output.ndim) for output in call.outputs]
    for _, labels in call.labelled:
        call.demand(labels, "mixes channels, or moves them in a way that is not followed")
    [(tensor, labels), *others] = call.labelled
    # Labels that must be kept anyway are passed on all the same: the last layer's reach the network's output through
    # a softmax or a layer norm, and that is how the last layer is known to be one.
    return [
        labels
        if not others and output is not tensor and output.shape == tensor.shape
        else collapsed_always(output.ndim)
        for output in call.outputs
    ]


def along_channels(labels: Tensor, dimensions: int, dim: int = 1) -> Tensor:
    """Return collapsed labels that vary along one dimension, from the labels [n] along it."""
    return collapse(labels.view([-1 if each == dim else 1 for each in range(dimensions)]))


def is_wide(tensor: Tensor, across: Sequence[int], output: Tensor) -> bool:
    """Tell whether a tensor has several values along dimensions of the output that it is broadcast to."""
    axes = [dim - output.ndim + tensor.ndim for dim in across]
    return any(axis >= 0 and tensor.size(axis) > 1 and tensor.stride(axis) > 0 for axis in axes)


def meet(call: Call, operands: Sequence[tuple[Tensor, Tensor]], output: Tensor) -> Tensor:
    """Tie the channels of operands that meet element by element; return the labels of the result.

    The operands are tensors and their collapsed labels, aligned to the dimensions of the output.
    """
    if not operands:
        return collapsed_always(output.ndim)
    together = max((labels for _, labels in operands), key=Tensor.numel)
    across = varying(broadcast(*(labels for _, labels in operands))[0])
    partners = []
    for tensor, labels in operands:
        # A tensor that is broadcast over some of the channels' dimensions has one value for many of them; those that
        # share a value are kept or dropped together, unless it is the same for all: then it must be there.
        is_one = bool((labels != ALWAYS).all()) and call.graph.are_one(labels, together)
        if across and not is_wide(tensor, across, output) and not is_one:
            call.demand(labels, "spreads one channel over many")
        else:
            partners.append(labels)
    for other in partners[1:]:
        call.graph.tie(partners[0], other)
    # The labels that change along the fewest positions, and of those the smallest, stand for all that they are tied
    # to, whichever order the operands come in: a table of relative positions has those of the heads it is added to.
    fewest = min(labels.numel() for labels in partners)
    merged, *others = (labels for labels in partners if labels.numel() == fewest)
    for other in others:
        merged = torch.minimum(merged, other)
    return collapse(merged)
