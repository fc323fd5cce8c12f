"""What a split takes: networks that can be followed or redrawn, and example inputs; and the words for all others.

A network may come in the wrappers that frameworks put around it. Classes of optional or slow packages are recognised
without importing them. Where a network is run, it is as before afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from ke_metric.errors import ExitCode, KeMetricError, closest

KINDS = ("kels", "wels")
ExampleInput = Tensor | tuple[Any, ...] | Mapping[str, Any]


def refusal(message: str) -> KeMetricError:
    """Return the error for a network, or for arguments, that no split can be made of."""
    return KeMetricError(message, ExitCode.RECIPE)


def and_more(found: Collection[object], what: str) -> str:
    """Return how many more a message could name that names the first of what was found."""
    return f" (and {len(found) - 1} more such {what})" if len(found) > 1 else ""


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel, DataParallel and torch.compile, in any nesting.

    The network itself, not a copy: what is changed in it is changed in the wrapped one. A network without a wrapper
    is returned as it is; wrappers around parts of it are left where they are.

    Raises:
        KeMetricError: Its parameters are sharded (FSDP, DTensor): a process has a piece of every weight only.
    """
    while True:
        if isinstance(network, DataParallel | DistributedDataParallel):
            inner = network.module
        elif ("torch", "OptimizedModule") in class_names(network):
            inner = network._orig_mod
        else:
            break
        assert isinstance(inner, nn.Module)
        network = inner
    if sharded := _sharded_part(network):
        raise refusal(
            f"{sharded}: every process has a piece of its weights only, and a split is made of whole ones. Split, "
            "redraw and extract before it is sharded, or train with DistributedDataParallel"
        )
    return network


def class_names(thing: object) -> list[tuple[str, str]]:
    """Return (top-level package, class name) of an object's class and its bases, the most specific first."""
    return [(base.__module__.partition(".")[0], base.__name__) for base in type(thing).__mro__]


def called(network: nn.Module, path: str) -> str:
    """Return what a message calls the module at a path of a network."""
    return f"module {path!r}" if path else f"this {type(network).__name__}"


def _sharded_part(network: nn.Module) -> str:
    """Say which part of a network is sharded, and how; "" if none is."""
    for path, module in network.named_modules():
        if not {("torch", "FullyShardedDataParallel"), ("torch", "FSDPModule")}.isdisjoint(class_names(module)):
            return f"{called(network, path)} is sharded by FSDP"
    for name, parameter in network.named_parameters():
        if ("torch", "DTensor") in class_names(parameter):
            return f"{name} of this {type(network).__name__} is sharded as a DTensor"
    return ""


def check_network(network: object) -> None:
    """Make sure that this is a network whose weights can be split and redrawn.

    Raises:
        KeMetricError: It is no nn.Module, or has parameters without a shape or such that nothing can train.
    """
    if not isinstance(network, nn.Module):
        exported = ("torch", "ExportedProgram") in class_names(network)
        advice = "; split the network that was exported, before it is" if exported else ""
        raise refusal(f"a split is made of an nn.Module, not of this {type(network).__name__}{advice}")
    name = type(network).__name__
    for own, parameter in network.named_parameters():
        if is_lazy(parameter):
            raise refusal(
                f"{own} of this {name} has no shape before the first forward pass: run the network once before it is "
                "split"
            )
        if parameter.is_inference():
            raise refusal(
                f"{own} of this {name} was made in inference mode, and can be neither trained nor redrawn: build the "
                "network outside of torch.inference_mode(), or go on with copy.deepcopy(network), made outside of it"
            )


def check_arguments(*, kind: object, rate: Any, channel_multiple: Any, keep_whole: object, seed: object) -> None:
    """Make sure that a split can be made with these arguments.

    Raises:
        KeMetricError: One is of another type or out of its range.
    """
    if not isinstance(kind, str) or kind not in KINDS:
        near = closest(kind, KINDS) if isinstance(kind, str) else ""
        raise refusal(f"split kind {kind!r} is none of {', '.join(KINDS)}{near}")
    if not (_is_number(rate, Real) and 0 < rate <= 1):
        raise refusal(f"split rate = {rate!r}: must be a number greater than 0 and at most 1")
    if not (_is_number(channel_multiple, Integral) and channel_multiple >= 1):
        raise refusal(f"channel_multiple = {channel_multiple!r}: must be a whole number of at least 1")
    if seed is not None and not _is_number(seed, Integral):
        raise refusal(f"seed = {seed!r}: must be a whole number")
    if isinstance(keep_whole, str):
        raise refusal(f"keep_whole = {keep_whole!r}: must be a list, [{keep_whole!r}]")
    if not isinstance(keep_whole, Collection) or not all(isinstance(name, str) for name in keep_whole):
        raise refusal(f"keep_whole = {keep_whole!r}: must be a list of names of modules or weights")


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def check_ordinary(network: nn.Module) -> None:
    """Make sure that no module of a network is compiled into something of which the layers are not known.

    Raises:
        KeMetricError: The network is scripted, traced or exported in part or as a whole.
    """
    for path, module in network.named_modules():
        kind = _compiled_kind(module)
        if kind:
            where = called(network, path) + (f" of {called(network, '')}" if path else "")
            raise refusal(
                f"{where} is {kind}, and what goes on inside cannot be followed: split the network it was made from, "
                "and script, trace or export the slim one"
            )


def _compiled_kind(module: nn.Module) -> str:
    """Return how a module was made that is no longer run module by module; "" for an ordinary one."""
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted (torch.jit)"
    # An exported network is a graph of aten operations: the modules that its weights come from are never called.
    exported = isinstance(module, torch.fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
    )
    return "exported (torch.export)" if exported else ""


def check_example(example_input: object) -> None:
    """Make sure that this can be given to a network.

    Raises:
        KeMetricError: It is of another kind, or holds no tensor.
    """
    if not isinstance(example_input, Tensor | tuple | Mapping):
        raise refusal(
            f"the example input is a {type(example_input).__name__}: it must be a tensor, a tuple of positional "
            "arguments or a dict of keyword arguments; what takes a list is given a tuple with the list in it"
        )
    if not tensors_in(example_input):
        raise refusal(f"there is no tensor in the example input, a {type(example_input).__name__}")


def tensors_in(tree: Any) -> list[Tensor]:
    """Return all tensors in tuples, lists and dicts, in any nesting."""
    leaves: Iterable[Any] = tree_leaves(dict(tree) if isinstance(tree, Mapping) else tree)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def run_network(network: nn.Module, example_input: ExampleInput) -> Any:
    """Return what a network makes of an example: a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(example_input, Mapping):
        return network(**example_input)
    return network(*example_input) if isinstance(example_input, tuple) else network(example_input)


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
        with ExitStack() as settings:
            settings.enter_context(_same_buffers(network))
            settings.enter_context(torch.random.fork_rng(devices=devices))
            settings.enter_context(torch.inference_mode(False))
            settings.enter_context(torch.no_grad())
            settings.enter_context(sdpa_kernel(SDPBackend.MATH))
            for kind in filter(torch.amp.is_autocast_available, sorted(kinds)):
                settings.enter_context(torch.autocast(kind, enabled=False))
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
