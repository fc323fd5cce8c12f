"""How a network uses its parameters: what multiplies activations, and what stands beside them.

KELS knows a weight by the layer that computes with it. A weight that is computed from others (weight norm, pruning,
fake quantisation, low rank), or that is multiplied in another way than layers do, is in no layer, and must be told
from position tables, tokens and scales, which belong to the fit hypothesis as a whole. So it is noted, operation by
operation, from which parameters a tensor is computed alone, and how such a tensor meets what depends on the input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ke_metric.split.call import Call, Owned
from ke_metric.split.graph import ChannelGraph
from ke_metric.split.operations import CONSUMERS, LAYERS, elementwise, rule_of
from ke_metric.split.roles import is_vector

# What adds a tensor to activations, or puts it beside them.
_BESIDE = {
    "add", "sub", "rsub", "cat", "stack", "copy", "where", "masked_fill", "maximum", "minimum", "slice_scatter",
    "select_scatter",
}  # fmt: skip
# What takes rows of its first operand by their numbers.
_LOOKUPS = {"embedding", "_embedding_bag", "_embedding_bag_forward_only", "index", "index_select", "gather"}
# Matrix products whose first operand is added.
_ADDS_FIRST = {"addmm", "baddbmm", "addbmm", "addmv", "addr"}


class Uses:
    """Notes in a channel graph how parameters of two or more dimensions are used.

    Args:
        graph: Where it is noted.
        owned: id of a parameter or buffer of the network -> what it is.
    """

    def __init__(self, graph: ChannelGraph, owned: Mapping[int, Owned]) -> None:
        self._graph, self._owned = graph, owned
        self._made_of: MutableMapping[Tensor, frozenset[str]] = WeakTensorKeyDictionary()
        self._tables: set[str] = set()
        # By their shape, parameters that are biases, scales or tokens only.
        self._vectors: set[str] = set()

    def note(self, call: Call, depends_on_input: Callable[[Tensor], bool]) -> None:
        """Note what an operation does with parameters; its layers and followers are recorded already."""
        sources = {tensor: made for tensor in call.tensors if (made := self._sources(tensor))}
        for tensor in call.tensors:
            if tensor not in sources and self._is_stranger(tensor) and not depends_on_input(tensor):
                self._graph.strangers.append(call.where)
        if not sources:
            return
        is_lookup = call.kind in _LOOKUPS and call.tensors[0] in sources
        met = False
        for tensor, made in sources.items():
            others = (other for other in call.tensors if other is not tensor)
            if not is_lookup and any(depends_on_input(other) for other in others):
                self._meet(call, tensor, made)
                met = True
        made = frozenset() if met else self._passed_on(call, frozenset().union(*sources.values()), is_lookup)
        for output in call.outputs:
            self._made_of[output] = made

    def _passed_on(self, call: Call, made: frozenset[str], is_lookup: bool) -> frozenset[str]:
        """Return the parameters that what an operation makes of them still stands for."""
        if is_lookup:
            # The rows of an embedding table are activations; those of another parameter may be weights.
            self._graph.beside |= made
            return made - self._tables
        if _records_layer(call):
            # What a layer makes of a token is an activation, though it does not depend on the input.
            tokens = self._tables | self._vectors
            self._graph.beside |= made & tokens
            return frozenset() if call.depends_on_input else made - tokens - call.recorded
        if not call.function.is_view and not call.depends_on_input:
            self._graph.computed_with |= made
        return made

    def _sources(self, tensor: Tensor) -> frozenset[str]:
        """Return the names of the parameters that a tensor is, or is computed from alone."""
        made = self._made_of.get(tensor)
        if made is None and tensor._base is not None:
            made = self._made_of.get(tensor._base)
        if made is not None:
            return made
        for each in (tensor, tensor._base):
            owned = self._owned.get(id(each))
            if each is not None and owned is not None and owned.is_parameter and each.ndim >= 2:
                if isinstance(owned.module, nn.Embedding | nn.EmbeddingBag):
                    self._tables.add(owned.name)
                elif is_vector(each.shape):
                    self._vectors.add(owned.name)
                return frozenset([owned.name])
        return frozenset()

    def _is_stranger(self, tensor: Tensor) -> bool:
        """Tell whether something that could be trained belongs to no module; what is frozen is a constant there."""
        bases = [each for each in (tensor, tensor._base) if each is not None]
        is_owned = any(id(each) in self._owned for each in bases)
        return tensor.ndim >= 2 and not is_owned and any(each.requires_grad for each in bases)

    def _meet(self, call: Call, tensor: Tensor, made: frozenset[str]) -> None:
        kind, rule = call.kind, rule_of(call)
        is_norm = rule in CONSUMERS and rule not in LAYERS
        if kind in _BESIDE or is_norm or (kind in _ADDS_FIRST and tensor is call.args[0]):
            beside = made
        elif rule is elementwise or _records_layer(call):
            # A scale, and the gain of a standardised weight.
            beside = made & self._vectors
        else:
            beside = frozenset()
        self._graph.beside |= beside
        for name in made - beside:
            self._graph.multiplied.setdefault(name, call.where)


def _records_layer(call: Call) -> bool:
    return rule_of(call) in LAYERS and any(name in call.graph.layers for name in call.recorded)
