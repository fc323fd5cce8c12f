"""How a network uses its parameters: what multiplies activations, and what stands beside them.

KELS knows a weight by the layer that computes with it. A weight that is computed from others (weight norm, pruning,
fake quantisation, low rank), or that is multiplied in another way than layers do, is in no layer, and must be told
from position tables, tokens and scales, which belong to the fit hypothesis as a whole. So it is noted, operation by
operation, from which parameters a tensor is computed alone, and how such a tensor meets what depends on the input.

A parameter that something is added to, or that is chosen by a condition, may still be a weight afterwards. Where it
meets less than it is (`weight + x.mean()`), the sum goes on standing for the parameter. Where it meets as much as it
is, a position table and a weight look alike: the sum is an activation, and the parameter is noted as multiplied only
if it arrives, row by row, where a product or convolution takes its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping

from torch import Size, Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ke_metric.split.call import Call, Owned
from ke_metric.split.graph import ChannelGraph
from ke_metric.split.layers import convolution, linear, matrix_product
from ke_metric.split.operations import CONSUMERS, LAYERS, elementwise, rearrange, rule_of
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
        # What parameters of full size were put beside, as long as it may still be a weight.
        self._beside_in: MutableMapping[Tensor, frozenset[str]] = WeakTensorKeyDictionary()
        self._tables: set[str] = set()
        # By their shape, parameters that are biases, scales or tokens only.
        self._vectors: set[str] = set()
        self._shapes: dict[str, Size] = {}

    def note(self, call: Call, depends_on_input: Callable[[Tensor], bool]) -> None:
        """Note what an operation does with parameters; its layers and followers are recorded already."""
        sources = {tensor: made for tensor in call.tensors if (made := self._sources(tensor))}
        for tensor in call.tensors:
            if tensor not in sources and self._is_stranger(tensor) and not depends_on_input(tensor):
                self._graph.strangers.append(call.where)
        self._note_weights_among_activations(call)
        self._carry(call, frozenset().union(*(self._beside_in.get(tensor, frozenset()) for tensor in call.tensors)))
        if not sources:
            return
        is_lookup = call.kind in _LOOKUPS and call.tensors[0] in sources
        by_input = is_lookup and any(depends_on_input(other) for other in call.tensors[1:])
        is_met, still = False, frozenset[str]()
        for tensor, made in sources.items():
            is_beside = _is_beside(call, tensor)
            others = [other for other in call.tensors if other is not tensor and depends_on_input(other)]
            if is_beside:
                others = [other for other in others if other not in sources]
            if is_lookup or not others:
                continue
            self._meet(call, tensor, made)
            is_met = True
            if is_beside and _is_more(tensor, others, call.outputs[0]):
                still |= made
            elif is_beside:
                self._carry(call, made - self._tables - self._vectors)
        made = frozenset().union(*sources.values())
        made = still if is_met else self._passed_on(call, made, is_lookup=is_lookup, by_input=by_input)
        for output in call.outputs:
            self._made_of[output] = made

    def _passed_on(self, call: Call, made: frozenset[str], *, is_lookup: bool, by_input: bool) -> frozenset[str]:
        """Return the parameters that what an operation makes of them still stands for."""
        if is_lookup:
            # Rows of an embedding table that the input chooses are activations; any others may be weights.
            self._graph.beside |= made
            return made - self._tables if by_input else made
        if _records_layer(call):
            # What a layer makes of a token is an activation, though it does not depend on the input.
            tokens = self._tables | self._vectors
            self._graph.beside |= made & tokens
            return frozenset() if call.depends_on_input else made - tokens - call.recorded
        if not call.function.is_view and not call.depends_on_input:
            self._graph.computed_with |= made
        return made

    def _carry(self, call: Call, names: frozenset[str]) -> None:
        """Note that activations hold parameters of full size, as far as the operation leaves their values apart."""
        if not names or not (call.kind in _BESIDE or rule_of(call) in (elementwise, rearrange)):
            return
        for output in call.outputs:
            for each in (output, output._base):
                if each is not None:
                    self._beside_in[each] = self._beside_in.get(each, frozenset()) | names

    def _note_weights_among_activations(self, call: Call) -> None:
        """Note the parameters that arrive, with something added, in the place of a weight."""
        if rule_of(call) not in (convolution, linear, matrix_product):
            return
        first, weight = call.args[:2] if rule_of(call) is convolution else call.args[-2:]
        for name in self._beside_in.get(weight, frozenset()) - self._beside_in.get(first, frozenset()):
            if _has_room(weight, self._shapes[name]):
                self._graph.multiplied.setdefault(name, call.where)

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
                self._shapes[owned.name] = each.shape
                return frozenset([owned.name])
        return frozenset()

    def _is_stranger(self, tensor: Tensor) -> bool:
        """Tell whether something that could be trained belongs to no module; what is frozen is a constant there."""
        bases = [each for each in (tensor, tensor._base) if each is not None]
        is_owned = any(id(each) in self._owned for each in bases)
        return tensor.ndim >= 2 and not is_owned and any(each.requires_grad for each in bases)

    def _meet(self, call: Call, tensor: Tensor, made: frozenset[str]) -> None:
        rule = rule_of(call)
        is_norm = rule in CONSUMERS and rule not in LAYERS
        if is_norm or _is_beside(call, tensor):
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


def _is_beside(call: Call, tensor: Tensor) -> bool:
    """Tell whether an operation adds a tensor to others, or puts it beside them."""
    return call.kind in _BESIDE or (call.kind in _ADDS_FIRST and tensor is call.args[0])


def _is_more(tensor: Tensor, others: list[Tensor], output: Tensor) -> bool:
    """Tell whether a result has the shape of a tensor, and each of the others has been repeated to reach it."""
    return output.shape == tensor.shape and all(other.numel() < tensor.numel() for other in others)


def _has_room(weight: Tensor, shape: Size) -> bool:
    """Tell whether a parameter [shape] can be a weight's rows; what is alone along the batch is a position table."""
    if len(shape) != weight.ndim or (shape[0] == 1 and weight.ndim < 4):
        return False
    pairs = [list(zip(shape, sizes, strict=True)) for sizes in (weight.shape, weight.mT.shape)]
    return any(all(a <= b for a, b in each) and any(a == b for a, b in each) for each in pairs)
