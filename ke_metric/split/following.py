"""Follow the channels of any network: run it once, unmodified, and label every tensor that comes by.

The run is watched at the level of aten operations, a small closed set whatever modules or functions a network is
written with. Convolutions and linear layers give out new labels; everything else passes labels on, ties them
together, or demands that they are kept whole (see `operations.py`).

It is noted, too, how the network uses its parameters. A weight that is computed from others (weight norm, pruning,
fake quantisation, low rank), or that is multiplied in another way than layers do, is in no layer, and must be told
from position tables, tokens and scales, which belong to the fit hypothesis as a whole. So it is noted, operation by
operation, from which parameters a tensor is computed alone, and how such a tensor meets what depends on the input.

A parameter that something is added to, or that is chosen by a condition, may still be a weight afterwards. Where it
meets less than it is (`weight + x.mean()`), the sum goes on standing for the parameter. Where it meets as much as it
is, a position table and a weight look alike: the sum is an activation, and the parameter is noted as multiplied only
if it arrives, row by row, where a product or convolution takes its weight.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Size, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from ke_metric.arrays import tensors_of
from ke_metric.errors import KeMetricError
from ke_metric.split.admission import (
    ExampleInput,
    check_example,
    check_ordinary,
    refusal,
    run_network,
    tensors_in,
    undisturbed,
)
from ke_metric.split.call import Call, Owned, Place
from ke_metric.split.graph import ALWAYS, LARGEST_SEEN, ChannelGraph, Labelled, Step, always, collapsed_always
from ke_metric.split.operations import (
    CONSUMERS,
    LAYERS,
    computes,
    convolution,
    elementwise,
    follow,
    linear,
    matrix_product,
    rearrange,
    rule_of,
)
from ke_metric.split.wels import is_vector

# These operations add a tensor to activations, or put it beside them.
_BESIDE = {
    "add", "sub", "rsub", "cat", "stack", "copy", "where", "masked_fill", "maximum", "minimum", "slice_scatter",
    "select_scatter",
}  # fmt: skip
# These take rows of their first operand by number.
_LOOKUPS = {"embedding", "_embedding_bag", "_embedding_bag_forward_only", "index", "index_select", "gather"}
# These matrix products add their first operand.
_ADDS_FIRST = {"addmm", "baddbmm", "addbmm", "addmv", "addr"}
_NONE = frozenset[str]()


def follow_channels(network: nn.Module, example_input: ExampleInput) -> ChannelGraph:
    """Return all channels of a network and what ties them together.

    The network runs once in eval mode, without gradients and without autocast, on an example of what it takes, for
    example images [1, 3, H, W]; a tuple holds positional arguments, a dict keyword arguments. Parameters, buffers,
    gradients, training flags and the default random streams are as before afterwards.

    Raises:
        KeMetricError: The network is scripted or exported, does not run on the example, returns no tensor, or has
            weights that take no part in evaluation.
    """
    check_ordinary(network)
    check_example(example_input)
    mode = ChannelMode(network, example_input, ChannelGraph(type(network).__name__))
    try:
        with undisturbed(network), mode.watch_modules(), mode:
            output = run_network(network, example_input)
    except KeMetricError:
        raise
    except Exception:
        _refuse_unfit_example(network, example_input, mode.places[-1].name)
        # The network runs when it is not followed: the mistake is our own.
        raise
    returned = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    if not returned:
        raise refusal(
            f"{type(network).__name__} returned {type(output).__name__}, in which there is no tensor to follow; "
            "split a network that returns tensors (or tuples, lists, dicts of them), or use kind='wels'"
        )
    for tensor in returned:
        mode.graph.tie(mode.labels_of(tensor), always())
    _refuse_unused(network, mode.graph.used)
    return mode.graph


def _refuse_unfit_example(network: nn.Module, example_input: ExampleInput, place: str) -> None:
    """Demand that a network runs on an example; `place` is the module in which it did not when it was followed."""
    try:
        with undisturbed(network):
            run_network(network, example_input)
    except Exception as error:
        name = type(network).__name__
        shapes = ", ".join(f"{list(tensor.shape)} {tensor.dtype}" for tensor in tensors_in(example_input))
        where = "" if place == name else f", in module {place!r}"
        sentence = str(error).strip().split("\n")[0]
        raise refusal(
            f"this {name} does not run in eval mode on the example input, {shapes}{where}: {type(error).__name__}: "
            f"{sentence}. Give it an example of the kind, shape and device that it takes: a tensor, a tuple of "
            "positional arguments or a dict of keyword arguments"
        ) from error


def _refuse_unused(network: nn.Module, used: set[str]) -> None:
    weights = [name for name, parameter in network.named_parameters() if parameter.ndim >= 2]
    unused = [name for name in weights if name not in used]
    if unused:
        raise refusal(
            f"kels follows what the network computes in eval mode, and {len(unused)} of its weights take no part in "
            f"that: {', '.join(unused[:4])}; remove them (auxiliary heads: aux_logits=False), or use kind='wels'"
        )


class ChannelMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Watches every aten operation of a run, labels its outputs, and records what it sees in a graph."""

    def __init__(self, network: nn.Module, example_input: ExampleInput, graph: ChannelGraph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.graph = graph
        self.labels: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
        self._from_input: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()
        given = tensors_in(example_input)
        for tensor in given:
            self.labels[tensor] = collapsed_always(tensor.ndim)
            self._from_input[tensor] = True
        self.places = [Place(graph.root, network, root=True, given=given[0])]
        self._names = {module: name for name, module in network.named_modules()}
        self._owned = {
            id(tensor): Owned(f"{name}.{own}" if name else own, module, isinstance(tensor, nn.Parameter))
            for name, module in network.named_modules()
            for own, tensor in [*module._parameters.items(), *module._buffers.items()]
            if tensor is not None
        }
        # A tied weight goes by its first name, as in named_parameters.
        for name, tensor in tensors_of(network).items():
            self._owned[id(tensor)] = self._owned[id(tensor)]._replace(name=name)
        self._standardised: MutableMapping[Tensor, Owned] = WeakTensorKeyDictionary()
        self._casts: list[Tensor] = []
        self._uses = _Uses()

    @contextmanager
    def watch_modules(self) -> Iterator[None]:
        """Know which module is running and what it returns."""

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.enter(module, (args, kwargs))

        def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.leave(output)

        handles: list[RemovableHandle] = []
        for module in self._names:
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """Note that a module starts running on some inputs."""
        name = self._names[module]
        given = next((leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)), None)
        self.places.append(Place(name or self.graph.root, module, root=not name, given=given))

    def leave(self, output: Any) -> None:
        """Note what the innermost module returns."""
        place = self.places.pop()
        leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        # What is computed with labels is not part of the run.
        with _disable_current_modes():
            self.graph.leave(place.name, [Labelled(tuple(leaf.shape), self.labels_of(leaf)) for leaf in leaves])

    def labels_of(self, tensor: Tensor) -> Tensor:
        """Return the labels of a tensor; what has none is always there."""
        return self.labels.get(tensor, collapsed_always(tensor.ndim))

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        call = Call(
            func, args, kwargs or {}, outputs, self.labels, self._owned, self.graph, self.places[-1],
            self._standardised, self._from_input,
        )  # fmt: skip
        if self._is_cast(call):
            return result
        before = call.labelled
        for output, labels in zip(outputs, follow(call), strict=True):
            if call.depends_on_input:
                self._from_input[output] = True
            if labels is not None:
                self.labels[output] = labels
        self._note(call, before)
        self._uses.note(call)
        return result

    def _is_cast(self, call: Call) -> bool:
        """Tell whether a parameter was cast to another precision, which autocast does: the copy stands for it."""
        owned = self._owned.get(id(call.args[0])) if call.kind == "_to_copy" else None
        if owned is None or not call.outputs[0].is_floating_point():
            return False
        self._casts += call.outputs
        self._owned[id(call.outputs[0])] = owned
        self.graph.used |= call.used
        return True

    def _note(self, call: Call, given: list[tuple[Tensor, Tensor]]) -> None:
        """Remember what came by in a module, what was computed with it, and which parameters an operation used."""
        made = [(output, self.labels[output]) for output in call.outputs if output in self.labels]
        for tensor, labels in (*given, *made):
            # A parameter has labels from its second use on, and is compared as a follower.
            if labels.numel() > 1 and id(tensor) not in call.owned:
                seen = Labelled(tuple(tensor.shape), labels)
                self.graph.see(call.place.name, seen, from_input=tensor in self._from_input)
        if computes(call):
            self.graph.steps.append(Step(call.place.name, call.kind, self._taken_alone(given)))
        self.graph.used |= call.used
        if not call.function.is_view:
            for name in call.used_at_full_size - call.recorded:
                self.graph.fixed[name] = call.where

    def _taken_alone(self, given: list[tuple[Tensor, Tensor]]) -> Tensor | None:
        """Return the labels of what an operation computes with, where that is one tensor whose channels may go."""
        # What is computed from a weight alone has the labels of its rows.
        found = [labels for tensor, labels in given if tensor in self._from_input and bool((labels != ALWAYS).any())]
        return found[0] if len(found) == 1 and found[0].numel() <= LARGEST_SEEN else None


class _Uses:
    """Notes in the channel graph of a run how parameters of two or more dimensions are used."""

    def __init__(self) -> None:
        self._made_of: MutableMapping[Tensor, frozenset[str]] = WeakTensorKeyDictionary()
        # Activations that parameters of full size were put beside may still be a weight.
        self._beside_in: MutableMapping[Tensor, frozenset[str]] = WeakTensorKeyDictionary()
        self._tables: set[str] = set()
        # These parameters can, by their shape, be biases, scales or tokens only.
        self._vectors: set[str] = set()
        self._shapes: dict[str, Size] = {}

    def note(self, call: Call) -> None:
        """Note what an operation does with parameters; its layers and followers are recorded already."""
        sources = {tensor: made for tensor in call.tensors if (made := self._sources(call, tensor))}
        for tensor in call.tensors:
            if tensor not in sources and _is_stranger(call, tensor) and tensor not in call.from_input:
                call.graph.strangers.append(call.where)
        self._note_weights_among_activations(call)
        self._carry(call, _NONE.union(*(self._beside_in.get(tensor, _NONE) for tensor in call.tensors)))
        if not sources:
            return
        is_lookup = call.kind in _LOOKUPS and call.tensors[0] in sources
        is_met, still = False, _NONE
        for tensor, made in () if is_lookup else sources.items():
            is_beside = _is_beside(call, tensor)
            others = [
                other
                for other in call.tensors
                if other is not tensor and other in call.from_input and not (is_beside and other in sources)
            ]
            if not others:
                continue
            self._meet(call, made, is_beside=is_beside)
            is_met = True
            if is_beside and _is_more(tensor, others, call.outputs[0]):
                still |= made
            elif is_beside:
                self._carry(call, made - self._tables - self._vectors)
        made = still if is_met else self._passed_on(call, _NONE.union(*sources.values()), is_lookup=is_lookup)
        for output in call.outputs:
            self._made_of[output] = made

    def _passed_on(self, call: Call, made: frozenset[str], *, is_lookup: bool) -> frozenset[str]:
        """Return the parameters that what an operation makes of them still stands for."""
        if is_lookup:
            # Rows of an embedding table that the input chooses are activations; any others may be weights.
            call.graph.beside |= made
            by_input = any(other in call.from_input for other in call.tensors[1:])
            return made - self._tables if by_input else made
        if _records_layer(call):
            # What a layer makes of a token is an activation, though it does not depend on the input.
            tokens = self._tables | self._vectors
            call.graph.beside |= made & tokens
            return _NONE if call.depends_on_input else made - tokens - call.recorded
        if not call.function.is_view and not call.depends_on_input:
            call.graph.computed_with |= made
        return made

    def _carry(self, call: Call, names: frozenset[str]) -> None:
        """Note that activations hold parameters of full size, as far as the operation leaves their values apart."""
        if not names or not (call.kind in _BESIDE or rule_of(call) in (elementwise, rearrange)):
            return
        for output in call.outputs:
            for each in (output, output._base):
                if each is not None:
                    self._beside_in[each] = self._beside_in.get(each, _NONE) | names

    def _note_weights_among_activations(self, call: Call) -> None:
        """Note the parameters that arrive, with something added, in the place of a weight."""
        if rule_of(call) not in (convolution, linear, matrix_product):
            return
        first, weight = call.args[:2] if rule_of(call) is convolution else call.args[-2:]
        for name in self._beside_in.get(weight, _NONE) - self._beside_in.get(first, _NONE):
            if _has_room(weight, self._shapes[name]):
                call.graph.multiplied.setdefault(name, call.where)

    def _sources(self, call: Call, tensor: Tensor) -> frozenset[str]:
        """Return the names of the parameters that a tensor is, or is computed from alone."""
        views = [each for each in (tensor, tensor._base) if each is not None]
        for each in views:
            if each in self._made_of:
                return self._made_of[each]
        for each in views:
            owned = call.owned.get(id(each))
            if owned is not None and owned.is_parameter and each.ndim >= 2:
                if isinstance(owned.module, nn.Embedding | nn.EmbeddingBag):
                    self._tables.add(owned.name)
                elif is_vector(each.shape):
                    self._vectors.add(owned.name)
                self._shapes[owned.name] = each.shape
                return frozenset([owned.name])
        return _NONE

    def _meet(self, call: Call, made: frozenset[str], *, is_beside: bool) -> None:
        rule = rule_of(call)
        beside = _NONE
        if is_beside or (rule in CONSUMERS and rule not in LAYERS):
            beside = made
        elif rule is elementwise or _records_layer(call):
            # Scales and the gains of standardised weights multiply along one dimension only.
            beside = made & self._vectors
        call.graph.beside |= beside
        for name in made - beside:
            call.graph.multiplied.setdefault(name, call.where)


def _is_stranger(call: Call, tensor: Tensor) -> bool:
    """Tell whether something that could be trained belongs to no module; what is frozen is a constant there."""
    bases = [each for each in (tensor, tensor._base) if each is not None]
    is_owned = any(id(each) in call.owned for each in bases)
    return tensor.ndim >= 2 and not is_owned and any(each.requires_grad for each in bases)


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
