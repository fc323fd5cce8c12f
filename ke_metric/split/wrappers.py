"""Networks inside the wrappers that frameworks put around them, and classes recognised without importing theirs."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ke_metric.errors import ExitCode, KeMetricError


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
