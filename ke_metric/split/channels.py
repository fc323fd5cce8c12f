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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.call import Call
from ke_metric.split.graph import ChannelGraph
from ke_metric.split.labels import collapsed_always
from ke_metric.split.operations import follow


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
    mode = _ChannelMode(network, example_input)
    with _undisturbed(network), mode.watch_modules(network), mode:
        output = network(example_input)
    outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    if not outputs:
        raise KeMetricError(
            f"{type(network).__name__} returned {type(output).__name__}, in which there is no tensor to follow; "
            "split a network that returns tensors (or tuples, lists, dicts of them), or use kind='wels'",
            ExitCode.RECIPE,
        )
    for tensor in outputs:
        mode.graph.keep_whole(mode.labels.get(tensor, collapsed_always(tensor.ndim)))
    _refuse_unused(network, mode.used)
    return mode.graph


class _ChannelMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Watches every aten operation of a run and labels its outputs.

    Args:
        network: The network that is run.
        example_input: Its input; all channels of it are always there.
    """

    def __init__(self, network: nn.Module, example_input: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        named = [*network.named_parameters(), *network.named_buffers()]
        self.graph = ChannelGraph()
        self.used: set[str] = set()
        self.labels: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
        self.labels[example_input] = collapsed_always(example_input.ndim)
        self._names = {id(tensor): name for name, tensor in named}
        self._modules = [type(network).__name__]

    @contextmanager
    def watch_modules(self, network: nn.Module) -> Iterator[None]:
        """Know which module is running, for messages."""
        names = {module: name or type(network).__name__ for name, module in network.named_modules()}

        def enter(module: nn.Module, _inputs: Any) -> None:
            self._modules.append(names[module])

        def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            self._modules.pop()

        handles: list[RemovableHandle] = []
        for module in names:
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        call = Call(func, args, kwargs or {}, outputs, self.labels, self._names, self.graph, self._modules[-1])
        if call.labelled:
            for output, labels in zip(outputs, follow(call), strict=True):
                self.labels[output] = labels
        self.used |= call.used
        if not func.is_view:
            for name in call.used - call.recorded:
                self.graph.fixed[name] = call.place
        return result


@contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Run a network in eval mode, without gradients; put training flags and default random streams back."""
    training = [(module, module.training) for module in network.modules()]
    devices = sorted({parameter.device.index for parameter in network.parameters() if parameter.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.no_grad():
            network.eval()
            yield
    finally:
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
