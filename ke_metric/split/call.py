"""One aten operation of a followed run, as the rules in `operations.py` see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from ke_metric.split.graph import ChannelGraph, Follower, Layer


@dataclass(frozen=True)
class Call:
    """One operation as it was run.

    Attributes:
        function: The aten operation.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        outputs: The tensors it returned.
        labels: Tensor -> collapsed labels, for every tensor that depends on the network's input.
        names: id of a parameter or buffer of the network -> its name.
        graph: Where layers, followers, ties and demands are recorded.
        module: Name of the module that is running, for messages.
        recorded: Names of the parameters and buffers that a rule has recorded as layer or follower.
    """

    function: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]
    labels: Mapping[Tensor, Tensor]
    names: Mapping[int, str]
    graph: ChannelGraph
    module: str
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
    def labelled(self) -> list[tuple[Tensor, Tensor]]:
        """The arguments that depend on the network's input, with their collapsed labels."""
        return [(tensor, self.labels[tensor]) for tensor in self.tensors if tensor in self.labels]

    @property
    def used(self) -> set[str]:
        """Names of the parameters and buffers among the arguments, and of those whose views are."""
        tensors = (tensor if tensor._base is None else tensor._base for tensor in self.tensors)
        return {self.names[id(tensor)] for tensor in tensors if id(tensor) in self.names}

    @property
    def place(self) -> str:
        """Module, operation and shapes of its operands, for messages."""
        shapes = ", ".join(str(list(tensor.shape)) for tensor in self.tensors)
        return f"{self.module}: {self.function} of {shapes}"

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the operation's schema."""
        names = [argument.name for argument in self.function._schema.arguments]
        return (dict(zip(names, self.args, strict=False)) | self.kwargs).get(name, default)

    def name_of(self, tensor: Tensor | None) -> str | None:
        """Return the name of a parameter or buffer of the network, None for any other tensor."""
        return self.names.get(id(tensor))

    def demand(self, labels: Tensor, why: str) -> None:
        """Demand that all of the labels [...] are kept."""
        self.graph.demand(labels.reshape(1, -1), f"{self.place} {why}")

    def add_layer(self, name: str, layer: Layer) -> None:
        """Record a convolution or linear layer under the name of its weight."""
        self.graph.add_layer(name, layer)
        self.recorded.add(name)

    def follow(self, tensor: Tensor, labels: Tensor, axis: int = 0) -> None:
        """Let a parameter or buffer follow labels [tensor.shape[axis]]; another constant cannot be narrowed."""
        name = self.name_of(tensor)
        if name is None:
            self.demand(labels, "meets a constant that has a value for every channel")
        else:
            self.graph.add_follower(name, Follower(tuple(tensor.shape), axis, labels))
            self.recorded.add(name)
