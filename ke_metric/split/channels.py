"""Follow the channels of any network: run it once, unmodified, and label every tensor that comes by.

The run is watched at the level of aten operations, a small closed set whatever modules or functions a network is
written with. Convolutions and linear layers give out new labels; everything else passes labels on, ties them
together, or demands that they are kept whole (see `operations.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.admission import ExampleInput, check_example, check_ordinary, run_network, tensors_in
from ke_metric.split.call import Call, Owned, Place
from ke_metric.split.graph import LARGEST_SEEN, ChannelGraph, Seen, Step
from ke_metric.split.labels import ALWAYS, collapsed_always
from ke_metric.split.operations import computes, follow
from ke_metric.split.uses import Uses


def follow_channels(network: nn.Module, example_input: ExampleInput) -> ChannelGraph:
    """Return all channels of a network and what ties them together.

    The network runs once in eval mode, without gradients and without autocast; its parameters, buffers, gradients,
    training flags and the default random streams are as before afterwards.

    Args:
        network: Any network.
        example_input: What it takes, for example images [B, 3, H, W]; B = 1 will do. A tuple holds positional
            arguments, a dict keyword arguments.

    Raises:
        KeMetricError: The network is scripted or exported, does not run on the example, returns no tensor, or has
            weights that take no part in evaluation.
    """
    check_ordinary(network)
    check_example(example_input)
    mode = ChannelMode(network, example_input, ChannelGraph(type(network).__name__))
    try:
        with undisturbed(network), mode.watch_modules(network), mode:
            output = run_network(network, example_input)
    except KeMetricError:
        raise
    except Exception:
        _refuse_unfit_example(network, example_input, mode.places[-1].name)
        # The network runs when it is not followed: the mistake is our own.
        raise
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
        raise KeMetricError(
            f"{type(network).__name__} returned {type(output).__name__}, in which there is no tensor to follow; "
            "split a network that returns tensors (or tuples, lists, dicts of them), or use kind='wels'",
            ExitCode.RECIPE,
        )
    mode.keep_whole(output)
    _refuse_unused(network, mode.graph.used)
    return mode.graph


class ChannelMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Watches every aten operation of a run and labels its outputs.

    Args:
        network: The network that is run.
        example_input: Its input; all channels of it are always there.
        graph: Where everything is recorded.
    """

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
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            self._owned[id(tensor)] = replace(self._owned[id(tensor)], name=name)
        self._standardised: MutableMapping[Tensor, Owned] = WeakTensorKeyDictionary()
        self._casts: list[Tensor] = []
        self._uses = Uses(self.graph, self._owned)

    @contextmanager
    def watch_modules(self, network: nn.Module) -> Iterator[None]:
        """Know which module is running and what it returns."""

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.enter(module, (args, kwargs))

        def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.leave(output)

        handles: list[RemovableHandle] = []
        for module in list(self._names):
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
            self.graph.leave(place.name, [Seen(tuple(leaf.shape), self.labels_of(leaf)) for leaf in leaves])

    def labels_of(self, tensor: Tensor) -> Tensor:
        """Return the labels of a tensor; what has none is always there."""
        return self.labels.get(tensor, collapsed_always(tensor.ndim))

    def keep_whole(self, output: Any) -> None:
        """Never drop a channel of what the network returns."""
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self.graph.keep_whole(self.labels_of(leaf))

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        arguments = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        from_input = any(tensor in self._from_input for tensor in arguments)
        call = Call(
            func, args, kwargs or {}, outputs, self.labels, self._owned, self.graph, self.places[-1],
            self._standardised, from_input,
        )  # fmt: skip
        if self._is_cast(call):
            return result
        before = call.labelled
        for output, labels in zip(outputs, follow(call), strict=True):
            if from_input:
                self._from_input[output] = True
            if labels is not None:
                self.labels[output] = labels
        self._note(call, before)
        self._uses.note(call, lambda tensor: tensor in self._from_input)
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
                seen = Seen(tuple(tensor.shape), labels)
                self.graph.see(call.place.name, seen, from_input=tensor in self._from_input)
        if computes(call):
            self.graph.steps.append(Step(call.place.name, call.kind, self._taken_alone(given)))
        self.graph.used |= call.used
        if not call.function.is_view:
            for name in call.used_at_full_size - call.recorded:
                self.graph.fixed[name] = call.where

    def _taken_alone(self, given: list[tuple[Tensor, Tensor]]) -> Tensor | None:
        """Return the labels of what an operation computes with, where that is one tensor whose channels may go."""
        # A parameter has labels from its second use on; what is computed from a weight alone has those of its rows.
        found = [labels for tensor, labels in given if tensor in self._from_input and bool((labels != ALWAYS).any())]
        return found[0] if len(found) == 1 and found[0].numel() <= LARGEST_SEEN else None


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Run a network in eval mode, without gradients and autocast; put flags, buffers and default random streams back.

    Attention is computed step by step: its fused kernels would hide what happens to the channels.
    """
    training = [(module, module.training) for module in network.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    devices = sorted({parameter.device.index for parameter in network.parameters() if parameter.is_cuda})
    kinds = {"cpu", *(parameter.device.type for parameter in network.parameters())}
    try:
        with ExitStack() as circumstances:
            circumstances.enter_context(_same_buffers(network))
            circumstances.enter_context(torch.random.fork_rng(devices=devices))
            circumstances.enter_context(torch.inference_mode(False))
            circumstances.enter_context(torch.no_grad())
            circumstances.enter_context(sdpa_kernel(SDPBackend.MATH))
            for kind in filter(torch.amp.is_autocast_available, sorted(kinds)):
                circumstances.enter_context(torch.autocast(kind, enabled=False))
            torch.backends.mha.set_fastpath_enabled(False)
            network.eval()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, flag in training:
            module.training = flag


@contextmanager
def _same_buffers(network: nn.Module) -> Iterator[None]:
    """Put buffers back that a run changes even in eval mode, as the observers of quantisation do."""
    before = [
        (module, name, buffer, buffer.detach().clone())
        for module in network.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_meta and not buffer.is_inference()
    ]
    try:
        yield
    finally:
        for module, name, buffer, values in before:
            module._buffers[name] = buffer
            if buffer.shape != values.shape:
                buffer.data = values
            elif not torch.equal(buffer, values):
                with torch.no_grad():
                    buffer.copy_(values)


def _refuse_unfit_example(network: nn.Module, example_input: ExampleInput, place: str) -> None:
    """Demand that a network runs on an example; `place` is the module in which it did not when it was followed.

    Raises:
        KeMetricError: It does not.
    """
    try:
        with undisturbed(network):
            run_network(network, example_input)
    except Exception as error:
        name = type(network).__name__
        shapes = ", ".join(f"{list(tensor.shape)} {tensor.dtype}" for tensor in tensors_in(example_input))
        where = "" if place == name else f", in module {place!r}"
        sentence = str(error).strip().split("\n")[0]
        raise KeMetricError(
            f"this {name} does not run in eval mode on the example input, {shapes}{where}: {type(error).__name__}: "
            f"{sentence}. Give it an example of the kind, shape and device that it takes: a tensor, a tuple of "
            "positional arguments or a dict of keyword arguments",
            ExitCode.RECIPE,
        ) from error


def _refuse_unused(network: nn.Module, used: set[str]) -> None:
    weights = [name for name, parameter in network.named_parameters() if parameter.ndim >= 2]
    unused = [name for name in weights if name not in used]
    if unused:
        raise KeMetricError(
            f"kels follows what the network computes in eval mode, and {len(unused)} of its weights take no part in "
            f"that: {', '.join(unused[:4])}; remove them (auxiliary heads: aux_logits=False), or use kind='wels'",
            ExitCode.RECIPE,
        )
