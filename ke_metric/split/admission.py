"""Networks inside the wrappers that frameworks put around them, and classes recognised without importing theirs.

What a split takes: networks that can be followed or redrawn, and example inputs; and the words for all others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from ke_metric.errors import ExitCode, KeMetricError, closest


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
    _refuse_sharded(network)
    return network


def class_names(thing: object) -> list[tuple[str, str]]:
    """Return (top-level package, class name) of an object's class and its bases, the most specific first.

    So that a class of an optional or slow package (torch_geometric, torch._dynamo) is recognised without its import.
    """
    return [(base.__module__.partition(".")[0], base.__name__) for base in type(thing).__mro__]


def _refuse_sharded(network: nn.Module) -> None:
    for path, module in network.named_modules():
        names = class_names(module)
        if ("torch", "FullyShardedDataParallel") in names or ("torch", "FSDPModule") in names:
            _refuse(f"module {path!r}" if path else f"this {type(network).__name__}", "by FSDP")
    for name, parameter in network.named_parameters():
        if ("torch", "DTensor") in class_names(parameter):
            _refuse(f"{name} of this {type(network).__name__}", "as a DTensor")


def _refuse(what: str, how: str) -> None:
    raise KeMetricError(
        f"{what} is sharded {how}: every process has a piece of its weights only, and a split is made of whole ones. "
        "Split, redraw and extract before it is sharded, or train with DistributedDataParallel",
        ExitCode.RECIPE,
    )


KINDS = ("kels", "wels")
ExampleInput = Tensor | tuple[Any, ...] | Mapping[str, Any]


def check_network(network: object) -> None:
    """Make sure that this is a network whose weights can be split and redrawn.

    Raises:
        KeMetricError: It is no nn.Module, or has parameters without a shape or such that nothing can train.
    """
    if not isinstance(network, nn.Module):
        exported = ("torch", "ExportedProgram") in class_names(network)
        advice = "; split the network that was exported, before it is" if exported else ""
        raise KeMetricError(f"a split is made of an nn.Module, not of this {type(network).__name__}{advice}", _RECIPE)
    name = type(network).__name__
    for own, parameter in network.named_parameters():
        if is_lazy(parameter):
            raise KeMetricError(
                f"{own} of this {name} has no shape before the first forward pass: run the network once before it is "
                "split",
                _RECIPE,
            )
        if parameter.is_inference():
            raise KeMetricError(
                f"{own} of this {name} was made in inference mode, and can be neither trained nor redrawn: build the "
                "network outside of torch.inference_mode(), or go on with copy.deepcopy(network), made outside of it",
                _RECIPE,
            )


def check_arguments(*, kind: object, rate: Any, channel_multiple: Any, keep_whole: object, seed: object) -> None:
    """Make sure that a split can be made with these arguments.

    Raises:
        KeMetricError: One is of another type or out of its range.
    """
    if not isinstance(kind, str) or kind not in KINDS:
        near = closest(kind, KINDS) if isinstance(kind, str) else ""
        raise KeMetricError(f"split kind {kind!r} is none of {', '.join(KINDS)}{near}", _RECIPE)
    if not (_is_number(rate, Real) and 0 < rate <= 1):
        raise KeMetricError(f"split rate = {rate!r}: must be a number greater than 0 and at most 1", _RECIPE)
    if not (_is_number(channel_multiple, Integral) and channel_multiple >= 1):
        raise KeMetricError(f"channel_multiple = {channel_multiple!r}: must be a whole number of at least 1", _RECIPE)
    if seed is not None and not _is_number(seed, Integral):
        raise KeMetricError(f"seed = {seed!r}: must be a whole number", _RECIPE)
    if isinstance(keep_whole, str):
        raise KeMetricError(f"keep_whole = {keep_whole!r}: must be a list, [{keep_whole!r}]", _RECIPE)
    if not isinstance(keep_whole, Collection) or not all(isinstance(name, str) for name in keep_whole):
        raise KeMetricError(f"keep_whole = {keep_whole!r}: must be a list of names of modules or weights", _RECIPE)


def check_ordinary(network: nn.Module) -> None:
    """Make sure that no module of a network is compiled into something of which the layers are not known.

    Raises:
        KeMetricError: The network is scripted, traced or exported in part or as a whole.
    """
    for path, module in network.named_modules():
        kind = _compiled_kind(module)
        if kind:
            where = f"module {path!r} of this {type(network).__name__}" if path else f"this {type(network).__name__}"
            raise KeMetricError(
                f"{where} is {kind}, and what goes on inside cannot be followed: split the network it was made from, "
                "and script, trace or export the slim one",
                _RECIPE,
            )


def check_example(example_input: object) -> None:
    """Make sure that this can be given to a network.

    Raises:
        KeMetricError: It is of another kind, or holds no tensor.
    """
    if not isinstance(example_input, Tensor | tuple | Mapping):
        raise KeMetricError(
            f"the example input is a {type(example_input).__name__}: it must be a tensor, a tuple of positional "
            "arguments or a dict of keyword arguments; what takes a list is given a tuple with the list in it",
            _RECIPE,
        )
    if not tensors_in(example_input):
        raise KeMetricError(f"there is no tensor in the example input, a {type(example_input).__name__}", _RECIPE)


def run_network(network: nn.Module, example_input: ExampleInput) -> Any:
    """Return what a network makes of an example: a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(example_input, Mapping):
        return network(**example_input)
    return network(*example_input) if isinstance(example_input, tuple) else network(example_input)


def tensors_in(tree: Any) -> list[Tensor]:
    """Return all tensors in tuples, lists and dicts, in any nesting."""
    leaves: Iterable[Any] = tree_leaves(dict(tree) if isinstance(tree, Mapping) else tree)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _compiled_kind(module: nn.Module) -> str:
    """Return how a module was made that is no longer run module by module; "" for an ordinary one."""
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted (torch.jit)"
    # A graph of aten operations: the modules that its weights come from are never called.
    exported = isinstance(module, torch.fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
    )
    return "exported (torch.export)" if exported else ""


_RECIPE = ExitCode.RECIPE
