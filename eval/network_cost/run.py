"""What a split saves: parameters, FLOPs and measured time, dense against slim; and what splitting itself costs.

    python -m eval.network_cost.run [NAME ...] [--rate 0.5] [--batch 1 32 256] [--rounds 5] [--size 224]
        [--device cpu cuda] [--channels-last] [--markdown FILE]

A name is one of torchvision, or `timm/NAME`. Networks are timed in eval mode, in inference mode, in fp32, on random
images. Every round times dense and slim one after the other, and their ratio is taken within the round: machines
drift. Figures with a range are the median of the rounds and its quartiles.

`torch.utils.flop_counter` counts two operations for each multiply-add of convolutions, linear layers and attention,
and nothing else; MACs are half of that. "Of the FLOP saving" is how much of it arrives as time: the speed-up divided
by dense / slim FLOPs.
"""

import argparse
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from eval.shared.memory import peak_of_process, peak_of_tensors, within_free_memory
from eval.shared.networks import build_network, count_flops, give_weights, measure_statistics
from eval.shared.provenance import provenance_lines
from ke_metric import extract_slim, plan_split, redraw_reset
from ke_metric.errors import KeMetricError
from ke_metric.scoring import count_parameters

NETWORKS = ("resnet50", "googlenet", "mobilenet_v2")
# A timing is of as many evaluations in a row as take this long, so that what calling them costs is nothing beside it.
SECONDS = 0.2
NO_MEMORY = ("out of memory", "allocate memory", "enough memory", "bad_alloc")


def main() -> None:
    """Print the tables of the networks named on the command line."""
    options = _options()
    # The profiler writes notes of its own to stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    try:
        costs = [_cost(name, options) for name in options.networks or NETWORKS]
    except KeMetricError as error:
        raise SystemExit(str(error)) from error
    head = provenance_lines(("torchvision", "timm"), more=f"interleaved rounds: {options.rounds}; fp32")
    text = "\n".join([*head, "", *report(costs)])
    print(text)
    if options.markdown:
        options.markdown.write_text(f"# What a split saves\n\n{text}\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    parser.add_argument("networks", nargs="*", metavar="NAME", help=f"networks (default: {' '.join(NETWORKS)})")
    parser.add_argument("--rate", type=float, default=0.5, help="split rate (default: 0.5)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32, 256], help="batches (default: 1 32 256)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds, at least 2 (default: 5)")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels (default: 224)")
    parser.add_argument("--device", nargs="+", choices=devices, default=devices, help="default: all that are here")
    parser.add_argument("--channels-last", action="store_true", help="weights and images in channels-last layout")
    parser.add_argument("--markdown", type=Path, help="file to write the tables to")
    options = parser.parse_args()
    if options.rounds < 2 or min(*options.batch, options.size, options.rounds) < 1:
        parser.error("--rounds must be at least 2, --batch and --size at least 1")
    return options


# --- one network --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Times:
    """Seconds of one evaluation, in each round.

    Attributes:
        dense: Of the dense network.
        slim: Of the slim one.
    """

    dense: list[float]
    slim: list[float]


@dataclass(frozen=True)
class SplitCost:
    """What splitting costs.

    Attributes:
        plan: Median seconds of `plan_split`.
        redraw: Of `redraw_reset`.
        extract: Of `extract_slim`.
        tensors: Peak extra memory of all three, in tensors, as a share of the network's weights and buffers.
        process: The same of everything that a fresh process holds in memory; None where the system does not tell.
    """

    plan: float
    redraw: float
    extract: float
    tensors: float
    process: float | None


@dataclass(frozen=True)
class Cost:
    """What one network costs, dense and slim.

    Attributes:
        name: The network.
        parameters: Numbers of parameters, dense and slim.
        flops: Floating-point operations per image, dense and slim.
        times: Device, batch -> times; None where the batch does not fit in memory.
        split: What splitting it costs.
    """

    name: str
    parameters: tuple[int, int]
    flops: tuple[int, int]
    times: dict[tuple[str, int], Times | None]
    split: SplitCost


def _cost(name: str, options: argparse.Namespace) -> Cost:
    print(f"{name} ...", file=sys.stderr)
    split = split_cost(name, options.rate, options.size, options.rounds)
    dense, slim = dense_and_slim(name, options.rate, options.size)
    image = torch.zeros(1, 3, options.size, options.size)
    parameters = count_parameters(dense), count_parameters(slim)
    flops = count_flops(dense, image), count_flops(slim, image)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    times = {}
    for device in options.device:
        for network in (dense, slim):
            network.to(device, memory_format=layout)
        for batch in options.batch:
            shape = (batch, 3, options.size, options.size)

            def images(shape: Sequence[int] = shape, device: str = device) -> Tensor:
                return torch.randn(shape, device=device).to(memory_format=layout)

            times[device, batch] = compare_times(dense, slim, images, rounds=options.rounds)
    return Cost(name, parameters, flops, times, split)


def dense_and_slim(name: str, rate: float, pixels: int) -> tuple[nn.Module, nn.Module]:
    """Return a network and its slim one, with weights as after some training: tiny numbers would slow a CPU down.

    Args:
        name: The network.
        rate: Split rate.
        pixels: Side of the images.
    """
    network = _built(name, pixels)
    images = torch.randn(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    give_weights(network, images)
    slim = extract_slim(network, plan_split(network, images[:1], rate=rate)).eval()
    measure_statistics(slim, images)
    return network, slim


def _built(name: str, pixels: int) -> nn.Module:
    network = build_network(name)
    described = getattr(network, "default_cfg", {})
    fixed = described.get("fixed_input_size") and described["input_size"][-1] != pixels
    return build_network(name, pixels) if fixed else network


# --- time ---------------------------------------------------------------------------------------------------------


def compare_times(dense: nn.Module, slim: nn.Module, images: Callable[[], Tensor], *, rounds: int) -> Times | None:
    """Time two networks in interleaved rounds; None where the images or what is computed from them do not fit.

    Args:
        dense: The dense network, in eval mode.
        slim: The slim network, in eval mode.
        images: Returns the images [B, 3, H, W], on the networks' device.
        rounds: How often each of them is timed; they take turns in being the first.
    """
    times = Times([], [])
    pairs = [(dense, times.dense), (slim, times.slim)]
    try:
        with torch.inference_mode(), within_free_memory():
            batch = images()
            # Once to warm up, once to see how long it takes.
            repeats = [_repeats(min(_seconds(network, batch, 1) for _ in range(2))) for network, _ in pairs]
            for count in range(rounds):
                for which in (0, 1) if count % 2 else (1, 0):
                    network, found = pairs[which]
                    found.append(_seconds(network, batch, repeats[which]))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error).lower() for words in NO_MEMORY):
            raise
        return None
    return times


def _repeats(seconds: float) -> int:
    return math.ceil(SECONDS / seconds)


def _seconds(network: nn.Module, images: Tensor, repeats: int) -> float:
    """Return how long one evaluation takes, the mean of some in a row."""
    _wait(images.device)
    started = time.perf_counter()
    for _ in range(repeats):
        network(images)
    _wait(images.device)
    return (time.perf_counter() - started) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- the split itself ---------------------------------------------------------------------------------------------


def split_cost(name: str, rate: float, pixels: int, rounds: int) -> SplitCost:
    """Measure `plan_split`, `redraw_reset` and `extract_slim` on a network.

    Args:
        name: The network.
        rate: Split rate.
        pixels: Side of the image that the plan is made with.
        rounds: How often each is timed, after one that is not counted.
    """
    network, image = _built(name, pixels), torch.zeros(1, 3, pixels, pixels)
    plan = plan_split(network, image, rate=rate)
    generator = torch.Generator().manual_seed(0)
    redraw_reset(network, plan, generator=generator)
    extract_slim(network, plan)
    works: list[Callable[[], object]] = [
        lambda: plan_split(network, image, rate=rate),
        lambda: redraw_reset(network, plan, generator=generator),
        lambda: extract_slim(network, plan),
    ]
    seconds = [[_clocked(work) for work in works] for _ in range(rounds)]
    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    tensors = peak_of_tensors(lambda: _all_three(network, image, rate)) / weights
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        grown = pool.apply(_in_fresh_process, (name, rate, pixels))
    medians = [statistics.median(each) for each in zip(*seconds, strict=True)]
    return SplitCost(*medians, tensors=tensors, process=None if grown is None else grown / weights)


def _clocked(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _all_three(network: nn.Module, image: Tensor, rate: float) -> object:
    plan = plan_split(network, image, rate=rate)
    redraw_reset(network, plan, generator=torch.Generator().manual_seed(0))
    return plan, extract_slim(network, plan)


def _in_fresh_process(name: str, rate: float, pixels: int) -> int | None:
    """Return the growth of a process that split a tiny network and ran this one before, so that code is loaded."""
    tiny = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    _all_three(tiny, torch.zeros(1, 3, 8, 8), rate)
    network, image = _built(name, pixels), torch.zeros(1, 3, pixels, pixels)
    with torch.inference_mode():
        network(image)
    return peak_of_process(lambda: _all_three(network, image, rate))


# --- tables -------------------------------------------------------------------------------------------------------


def report(costs: Sequence[Cost]) -> list[str]:
    """Return three tables as lines of Markdown: sizes, times, and what splitting costs."""
    sizes = "network, M parameters, slim, GFLOPs per image, slim, GMACs, slim, dense / slim"
    times = "network, device, batch, dense ms, slim ms, images/s, slim, speed-up, of the FLOP saving"
    split = "network, plan_split s, redraw_reset s, extract_slim s, peak extra: tensors, whole process"
    return [
        *_table(sizes, [_size_row(cost) for cost in costs]),
        "",
        *_table(times, [_time_row(cost, *key, found) for cost in costs for key, found in cost.times.items()]),
        "",
        *_table(split, [_split_row(cost) for cost in costs]),
        "",
        "Peak extra: memory of the three calls together at the worst moment, as a share of the network's weights.",
    ]


def _size_row(cost: Cost) -> list[str]:
    millions = [f"{count / 1e6:.2f}" for count in cost.parameters]
    giga = [f"{count / divisor:.3f}" for divisor in (1e9, 2e9) for count in cost.flops]
    return [cost.name, *millions, *giga, f"{cost.flops[0] / cost.flops[1]:.2f}"]


def _time_row(cost: Cost, device: str, batch: int, times: Times | None) -> list[str]:
    if times is None:
        return [cost.name, device, str(batch), "does not fit in memory", *[""] * 5]
    ratios = [dense / slim for dense, slim in zip(times.dense, times.slim, strict=True)]
    saving = cost.flops[0] / cost.flops[1]
    return [
        cost.name,
        device,
        str(batch),
        _spread([1000 * each for each in times.dense]),
        _spread([1000 * each for each in times.slim]),
        f"{batch / statistics.median(times.dense):.1f}",
        f"{batch / statistics.median(times.slim):.1f}",
        _spread(ratios),
        f"{100 * statistics.median(ratios) / saving:.0f} %",
    ]


def _split_row(cost: Cost) -> list[str]:
    split = cost.split
    seconds = [f"{each:.3f}" for each in (split.plan, split.redraw, split.extract)]
    process = "not known" if split.process is None else f"{split.process:.2f}"
    return [cost.name, *seconds, f"{split.tensors:.2f}", process]


def _spread(values: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{_short(middle)} ({_short(low)}–{_short(high)})"


def _short(value: float) -> str:
    """Return three significant digits, never as a power of ten."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 1000 else f"{value:.3g}"


def _table(titles: str, rows: Sequence[Sequence[str]]) -> list[str]:
    columns = titles.split(", ")
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


if __name__ == "__main__":
    main()
