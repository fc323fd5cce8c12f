"""Follow the channels of any network: run it once, unmodified, and label every tensor that comes by.

The run is watched at the level of aten operations, a small closed set whatever modules or functions a network is
written with. Convolutions and linear layers give out new labels; everything else passes labels on, ties them
together, or demands that they are kept whole (see `operations.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.call import Call, Owned, Place
from ke_metric.split.graph import LARGEST_SEEN, ChannelGraph, Seen, Step
from ke_metric.split.labels import ALWAYS, collapsed_always
from ke_metric.split.operations import computes, follow


def follow_channels(network: nn.Module, example_input: Tensor) -> ChannelGraph:
    """Return all channels of a network and what ties them together.

    The network runs once in eval mode without gradients; its parameters, buffers, gradients, training flags and the
    default random streams are as before afterwards.

    Args:
        network: Any network.
        example_input: What it takes, for example images [B, 3, H, W]; B = 1 will do.

    Raises:
        KeMetricError: The network returns no tensor, or has weights that take no part in evaluation.
    """
    mode = ChannelMode(network, example_input, ChannelGraph())
    with undisturbed(network), mode.watch_modules(network), mode:
        output = network(example_input)
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
        raise KeMetricError(
            f"{type(network).__name__} returned {type(output).__name__}, in which there is no tensor to follow; "
            "split a network that returns tensors (or tuples, lists, dicts of them), or use kind='wels'",
            ExitCode.RECIPE,
        )
    mode.keep_whole(output)
    _refuse_unused(network, mode.used)
    return mode.graph


class ChannelMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Watches every aten operation of a run and labels its outputs.

    Args:
        network: The network that is run.
        example_input: Its input; all channels of it are always there.
        graph: Where everything is recorded.
    """

    def __init__(self, network: nn.Module, example_input: Tensor, graph: ChannelGraph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.graph = graph
        self.used: set[str] = set()
        self.labels: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
        self.labels[example_input] = collapsed_always(example_input.ndim)
        self.places = [Place(type(network).__name__, network, root=True, given=example_input)]
        self._names = {module: name for name, module in network.named_modules()}
        self._owned = {
            id(tensor): Owned(f"{name}.{own}" if name else own, module)
            for name, module in network.named_modules()
            for own, tensor in [*module._parameters.items(), *module._buffers.items()]
            if tensor is not None
        }
        # A tied weight goes by its first name, as in named_parameters.
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            self._owned[id(tensor)] = Owned(name, self._owned[id(tensor)].module)
        self._standardised: MutableMapping[Tensor, Owned] = WeakTensorKeyDictionary()
        self._from_input: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()
        self._from_input[example_input] = True

    @contextmanager
    def watch_modules(self, network: nn.Module) -> Iterator[None]:
        """Know which module is running and what it returns."""

        def enter(module: nn.Module, inputs: Any) -> None:
            self.enter(module, inputs)

        def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.leave(output)

        handles: list[RemovableHandle] = []
        for module in list(self._names):
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """Note that a module starts running on some inputs."""
        name = self._names[module]
        given = next((leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)), None)
        self.places.append(Place(name or type(module).__name__, module, root=not name, given=given))

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
        before = call.labelled
        for output, labels in zip(outputs, follow(call), strict=True):
            if from_input:
                self._from_input[output] = True
            if labels is not None:
                self.labels[output] = labels
        self._note(call, before)
        return result

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
        self.used |= call.used
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
    """Run a network in eval mode, without gradients; put training flags and default random streams back.

    Attention is computed step by step: its fused kernels would hide what happens to the channels.
    """
    training = [(module, module.training) for module in network.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    devices = sorted({parameter.device.index for parameter in network.parameters() if parameter.is_cuda})
    try:
        with (
            torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):  # fmt: skip
            torch.backends.mha.set_fastpath_enabled(False)
            network.eval()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, flag in training:
            module.training = flag


def _refuse_unused(network: nn.Module, used: set[str]) -> None:
    weights = [name for name, parameter in network.named_parameters() if parameter.ndim >= 2]
    unused = [name for name in weights if name not in used]
    if unused:
        raise KeMetricError(
            f"kels follows what the network computes in eval mode, and {len(unused)} of its weights take no part in "
            f"that: {', '.join(unused[:4])}; remove them (auxiliary heads: aux_logits=False), or use kind='wels'",
            ExitCode.RECIPE,
        )
