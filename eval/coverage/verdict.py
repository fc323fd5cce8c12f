"""What this experiment demands of one network at one rate, and the verdict on it.

The invariant: in eval mode the slim network computes what the dense one computes with its reset hypothesis at zero.
Where a norm takes its statistics over channels of which some are dropped (layer and RMS norm, response normalisation,
weight standardisation), no narrower network can compute that, and the reference is the zeroed dense network in which
those modules alone see the fit channels only. It is written out here, by types and shapes, apart from the code that
follows channels.
"""

import ast
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from eval.shared.networks import count_flops, forget_caches, measure_statistics
from ke_metric import extract_slim, plan_split, redraw_reset
from ke_metric.errors import KeMetricError
from ke_metric.scoring import count_parameters
from ke_metric.split.hypotheses import zero_reset
from ke_metric.split.plan import ASKED_FOR, Narrowing, SplitPlan

# Largest difference of outputs that is rounding, as a share of the largest output of the dense network ...
LIMIT = 1e-4
LIMIT_FP64 = 1e-9
# ... and of the difference between its outputs for two images, without which equality would say nothing.
LIMIT_OF_SIGNAL = 0.01
LEAST_SIGNAL = 1e-5
# How often a list of an error message is added to what is kept whole.
PASTES = 5

EXACT = "exact"
EXACT_NORMS = "exact, norms over fit channels"
EXACT_PASTED = "exact, after keep_whole"
EXACT_FP64 = "exact in fp64 only"
REFUSED = "refused"
WRONG = "wrong"
CRASHED = "crashed"
NO_ANSWER = "no answer"
VERDICTS = (EXACT, EXACT_NORMS, EXACT_PASTED, EXACT_FP64, REFUSED, WRONG, CRASHED, NO_ANSWER)


@dataclass(frozen=True)
class Comparison:
    """Two networks on the same images; every figure is relative to the largest output of the dense one.

    Attributes:
        error: Largest difference of dense and slim outputs, in fp32.
        error_fp64: The same in fp64; None where fp32 has settled it.
        signal: Largest difference between the dense outputs of two images.
    """

    error: float
    error_fp64: float | None
    signal: float

    @property
    def verdict(self) -> str:
        """`exact`, `exact in fp64 only` or `wrong`; NaN is wrong, and so are outputs that the images do not move."""
        if not self.signal > LEAST_SIGNAL:
            return WRONG
        if _is_rounding(self.error, self.signal):
            return EXACT
        return EXACT_FP64 if self.error_fp64 is not None and self.error_fp64 <= LIMIT_FP64 else WRONG


def _is_rounding(error: float, signal: float) -> bool:
    return error <= min(LIMIT, LIMIT_OF_SIGNAL * signal)


# --- one network at one rate --------------------------------------------------------------------------------------


def examine(network: nn.Module, images: Tensor, rate: float) -> dict[str, Any]:
    """Split a network, and return the verdict and its figures as JSON values.

    Where the split is refused and the message says what to keep whole, that is done as a reader would do it, some
    times if need be.

    Args:
        network: The network, in eval mode; unchanged.
        images: Two or more images [B, 3, H, W].
        rate: Split rate.
    """
    pasted: list[str] = []
    refusals: list[str] = []
    while True:
        try:
            row = _examine(network, images, rate, pasted)
        except KeMetricError as error:
            refusals.append(str(error))
            more = [name for name in _proposed(refusals[-1]) if name not in pasted]
            if not more or len(refusals) > PASTES:
                return _refused(network, images, rate, refusals) | {"pasted": pasted}
            pasted += more
        else:
            break
    if not refusals:
        return row
    verdict = EXACT_PASTED if row["verdict"] in (EXACT, EXACT_NORMS) else row["verdict"]
    return {"reason": refusals[0]} | row | {"verdict": verdict, "pasted": pasted}


def _proposed(refusal: str) -> list[str]:
    """Return the `keep_whole` list that an error message gives."""
    found = re.search(r"keep_whole=(\[.*?\])", refusal)
    return ast.literal_eval(found[1]) if found else []


def _refused(network: nn.Module, images: Tensor, rate: float, refusals: Sequence[str]) -> dict[str, Any]:
    last = {"reason_pasted": refusals[-1]} if len(refusals) > 1 else {}
    return {"verdict": REFUSED, "reason": refusals[0], "wels": wels_problem(network, images, rate) or "works"} | last


def _examine(network: nn.Module, images: Tensor, rate: float, keep_whole: Sequence[str]) -> dict[str, Any]:
    started = time.perf_counter()
    plan = plan_split(network, images[:1], rate=rate, keep_whole=keep_whole)
    seconds = time.perf_counter() - started
    trained, zeroed = trained_with(network, plan, images)
    slim = extract_slim(trained, plan).eval()
    # The copies of a network of 600 M parameters, two of them in fp64, would not fit in memory together.
    del trained
    sizes = _sizes(network, slim, plan, images[:1])
    return judge(zeroed, slim, plan, images) | sizes | {"seconds": _short(seconds)}


def trained_with(network: nn.Module, plan: SplitPlan, images: Tensor) -> tuple[nn.Module, nn.Module]:
    """Return a network like this one, and one with its reset hypothesis at zero, with norm statistics of the latter.

    With the statistics of the dense network, a signal fades in the zeroed one from norm to norm, and equal outputs
    would say little.
    """
    zeroed = deepcopy(network)
    zero_reset(zeroed, plan)
    measure_statistics(zeroed, images)
    buffers = dict(zeroed.named_buffers())
    if not buffers:
        return network, zeroed
    trained = deepcopy(network)
    for name, buffer in trained.named_buffers():
        buffer.copy_(buffers[name])
    return trained, zeroed


def judge(zeroed: nn.Module, slim: nn.Module, plan: SplitPlan, images: Tensor) -> dict[str, Any]:
    """Return the verdict on a slim network and what it rests on: verdict, norms, error, error_fp64, signal, reason.

    Args:
        zeroed: The dense network, its reset hypothesis at zero.
        slim: The slim network.
        plan: The plan that it was cut by.
        images: Two or more images [B, 3, H, W], of which two are compared.
    """
    compared = compare(zeroed, slim, images[:2], plan.norms)
    verdict = EXACT_NORMS if compared.verdict == EXACT and plan.norms else compared.verdict
    figures = {name: _short(value) for name, value in vars(compared).items() if value is not None}
    row = {"verdict": verdict, "norms": len(plan.norms), **figures}
    if verdict == WRONG:
        said = ", ".join(f"{name} {value:g}" for name, value in figures.items())
        row["reason"] = f"of the largest dense output: {said}"
    return row


def _sizes(network: nn.Module, slim: nn.Module, plan: SplitPlan, image: Tensor) -> dict[str, Any]:
    """Return how much of the network is split, and what the slim one has left."""
    parameters = count_parameters(network)
    weights = plan.fit_count + plan.reset_count
    flops = count_flops(network, image)
    return {
        "fit_share": _short(plan.fit_count / weights),
        "reset_share": _short(plan.reset_count / parameters),
        "parameters": parameters,
        "parameter_ratio": _short(count_parameters(slim) / parameters),
        "gflops": _short(flops / 1e9),
        "flop_ratio": _short(count_flops(slim, image) / flops),
        "kept_whole": {module: why for module, why in plan.kept_whole.items() if why != ASKED_FOR},
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


# --- comparing ----------------------------------------------------------------------------------------------------


def compare(dense: nn.Module, slim: nn.Module, images: Tensor, norms: Mapping[str, Narrowing]) -> Comparison:
    """Compare two networks on images, in fp32 and, where that differs too much, in fp64.

    Args:
        dense: The dense network, its reset hypothesis at zero.
        slim: The slim network.
        images: Two images [2, 3, H, W].
        norms: Modules of the dense network that are to see their fit channels only.
    """
    outputs = run(dense, images, norms)
    error = difference(outputs, run(slim, images))
    signal = min(float((one[0] - one[1]).abs().max() / one.abs().max()) for one in outputs)
    if _is_rounding(error, signal):
        return Comparison(error, None, signal)
    # One after the other: both in fp64 may be too much for the memory. Going back to fp32 is exact.
    outputs = run(dense.double(), images.double(), norms)
    dense.float()
    error_fp64 = difference(outputs, run(slim.double(), images.double()))
    slim.float()
    return Comparison(error, error_fp64, signal)


def run(network: nn.Module, images: Tensor, norms: Mapping[str, Narrowing] | None = None) -> list[Tensor]:
    """Return all output tensors of a network; modules in `norms` see their fit channels only."""
    forget_caches(network)
    with torch.no_grad(), over_fit_channels(network, norms or {}):
        return [leaf for leaf in tree_leaves(network(images)) if isinstance(leaf, Tensor)]


def difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest difference relative to the largest expected value; infinity where shapes differ."""
    if [each.shape for each in expected] != [each.shape for each in found]:
        return float("inf")
    worst = [float((one - two).abs().max() / one.abs().max()) for one, two in zip(expected, found, strict=True)]
    return max(value if value == value else float("inf") for value in worst)  # noqa: PLR0124  # NaN


# --- norms over the fit channels ----------------------------------------------------------------------------------


@contextmanager
def over_fit_channels(network: nn.Module, norms: Mapping[str, Narrowing]) -> Iterator[None]:
    """While this lasts, the named modules take their statistics over their fit channels only.

    What a module computes from those is put in their places; all other channels of its output stay as they were.
    """
    modules = dict(network.named_modules())
    handles = [modules[name].register_forward_hook(_hook(modules[name], entry)) for name, entry in norms.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(module: nn.Module, narrowing: Narrowing) -> Any:
    channels = narrowing.channels.index
    copy = narrow_copy(module, channels, narrowing.channels.size)

    def replace(_module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        axis = _channel_axis(inputs[0], narrowing)
        narrow = copy(inputs[0].index_select(axis, channels))
        if isinstance(module, _ConvNd):
            return narrow
        assert output.shape == inputs[0].shape, f"{type(module).__name__} changes the shape of its input"
        return output.index_copy(axis, channels, narrow)

    return replace


def _channel_axis(tensor: Tensor, narrowing: Narrowing) -> int:
    """Return the axis of a norm's input that holds the channels, also where the norm itself moves them last."""
    if tensor.shape[1:] == narrowing.shape[1:]:
        return narrowing.axis
    [axis] = [dim for dim in range(1, tensor.ndim) if tensor.size(dim) == narrowing.channels.size]
    return axis


def narrow_copy(module: nn.Module, channels: Tensor, size: int) -> nn.Module:
    """Return a copy of a norm, or of a convolution that standardises its weight, for some of its input channels.

    Args:
        module: The module.
        channels: Channels to keep, int64 [n].
        size: How many channels its input has.
    """
    copy = deepcopy(module)
    if isinstance(copy, _ConvNd):
        assert copy.groups == 1, "the groups of a convolution are kept or dropped whole"
        copy.weight = nn.Parameter(copy.weight[:, channels])
        copy.in_channels = len(channels)
        return copy
    for tensors in (copy._parameters, copy._buffers):
        for name, tensor in tensors.items():
            if tensor is not None and size in tensor.shape:
                narrow = tensor.detach().index_select(list(tensor.shape).index(size), channels)
                tensors[name] = nn.Parameter(narrow) if isinstance(tensor, nn.Parameter) else narrow
    for name, value in vars(copy).items():
        if not isinstance(value, bool) and value == size:
            setattr(copy, name, len(channels))
        elif isinstance(value, tuple) and size in value:
            setattr(copy, name, tuple(len(channels) if each == size else each for each in value))
    return copy


# --- single weights -----------------------------------------------------------------------------------------------


def wels_problem(network: nn.Module, images: Tensor, rate: float) -> str:
    """Plan and redraw a network by single weights; return what went wrong, an empty string if nothing."""
    try:
        plan = plan_split(network, images[:1], rate=rate, kind="wels", seed=0)
        child = deepcopy(network)
        redraw_reset(child, plan, generator=torch.Generator().manual_seed(1))
    except KeMetricError as error:
        return str(error)
    if abs(plan.fit_count / (plan.fit_count + plan.reset_count) - rate) > 0.01:
        return f"{plan.fit_count} of {plan.fit_count + plan.reset_count} weights are fit"
    masks, before = plan.masks, network.state_dict()
    for name, tensor in child.state_dict().items():
        same = tensor == before[name]
        reset = ~masks[name] if name in masks else torch.zeros_like(same)
        if not bool(same[~reset].all()):
            return f"{name}: fit entries changed"
        if bool(same[reset].float().mean() > 0.01):
            return f"{name}: reset entries are what they were"
    return "" if all(bool(output.isfinite().all()) for output in run(child, images)) else "outputs are not finite"
