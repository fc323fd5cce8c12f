"""A network compiled by torch for its training (`training.compile`): all of it, or refused in words.

Only the call is compiled. The network itself stays what it is: state dicts, splitting, scoring and a resume see the
plain one, whose parameters the compiled call computes with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.training.engine import Engine

BACKEND = "inductor"


def compiled(network: nn.Module, engine: Engine) -> nn.Module:
    """Return what is called in place of a placed network; it is compiled when it is called first.

    What was compiled for one generation serves the next ones, which differ in their weights alone.

    Args:
        network: The network.
        engine: Its device and processes.

    Raises:
        KeMetricError: Several processes train, or there is no working compiler for the device (ENVIRONMENT).
    """
    if engine.processes > 1:
        raise KeMetricError(
            f"training.compile = true: trains in one process, there are {engine.processes}; leave it out, or start "
            "one process",
            ExitCode.ENVIRONMENT,
        )
    _require_compiler(engine.device)
    return cast(nn.Module, _whole(network))


def _whole(called: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function or module compiled as one graph; a batch of another size is compiled by itself."""
    return torch.compile(called, fullgraph=True, dynamic=False, backend=BACKEND)


def _require_compiler(device: torch.device) -> None:
    """Compile something small."""
    with told_of_compiling():
        _whole(Tensor.square)(torch.ones(8, device=device))


@contextmanager
def told_of_compiling() -> Iterator[None]:
    """Turn what torch says of a failed compilation into words: nothing goes on uncompiled.

    Raises:
        KeMetricError: A compilation inside the block failed (ENVIRONMENT).
    """
    # Loading it takes a second, and only who compiles needs it.
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = next((line for line in str(error).splitlines() if line and not line.startswith("backend=")), "")
        raise KeMetricError(
            f"training.compile = true: torch cannot compile the network here ({type(error).__name__}: {reason}). "
            "It needs a C++ compiler such as g++ on the CPU, Triton and a C compiler on a GPU, and a network without "
            "Python that it cannot follow; or leave training.compile out: the training is then slower, rounds "
            "otherwise and draws another dropout",
            ExitCode.ENVIRONMENT,
        ) from error
