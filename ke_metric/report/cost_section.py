"""What a lineage cost to train, and what its networks cost to use: counted, and measured on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ke_metric.environment import describe_processor
from ke_metric.generation import rate_text, slim_name
from ke_metric.lineage.files import read_provenance
from ke_metric.lineage.store import Lineage
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.report.failures import FAILURES, told_failure
from ke_metric.report.page_parts import Cell, DataTable, Number, PageSection, counted
from ke_metric.split.hypotheses import extract_slim

ROUNDS = 15
BATCHES = (1, 32)
# A timing of less says more about the clock and the scheduler than about a network.
LEAST_SECONDS = 0.02


@dataclass(frozen=True)
class NetworkCost:
    """What one evaluation of a network costs.

    Attributes:
        parameters: Number of its parameters.
        flops: Floating-point operations for one picture, two for every multiply-add.
        seconds: Batch size to seconds for a batch: median over the rounds.
    """

    parameters: int
    flops: int
    seconds: Mapping[int, float]


def cost_section(lineage: Lineage, device: str | None = None) -> PageSection:
    """Return what training cost, by the records, and what the networks cost, counted and measured anew."""
    training, missing = _training_table(lineage)
    try:
        lead, networks = _measured(lineage, device)
    except FAILURES as error:
        return PageSection("cost", "Cost", [], [training], [told_failure(error, lineage), *missing])
    return PageSection("cost", "Cost", lead, [networks, training], missing)


def _measured(lineage: Lineage, device: str | None) -> tuple[list[str], DataTable]:
    """Return what an evaluation costs, and sentences on how it was counted and measured."""
    side = lineage.recipe.data.image_size
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    costs = measure_costs(lineage_networks(lineage), side, place)
    lead = [
        f"Operations are those of convolutions, linear layers and attention for one picture of {side} × {side} "
        "pixels; one multiply-add (MAC) is two operations.",
        f"Latency is the median of {counted(ROUNDS, 'round')} in which the networks take turns, measured for this "
        f"report on {_device_name(place)} ({_threads(place)}), fp32, without decoding and search.",
    ]
    return lead, _network_table(costs)


def lineage_networks(lineage: Lineage) -> dict[str, nn.Module]:
    """Return the networks of a lineage by name, with random weights: they cost what those with trained ones cost."""
    recipe = lineage.recipe
    builder = LineageNetworks(recipe, len(lineage.class_names))
    # The counter of operations fails at some parameters that would be trained.
    network = builder.build(1).requires_grad_(False)
    if recipe.method.rules.is_slim:
        return {"slim": network.eval()}
    networks = {"dense": network.eval()}
    if recipe.has_slim:
        own = rate_text(recipe.split.rate)
        networks["slim"] = extract_slim(network, builder.plan_at(network, recipe.split.rate)).eval()
        for rate in sorted(recipe.split.rates):
            if rate_text(rate) != own:
                networks[slim_name(rate_text(rate))] = extract_slim(network, builder.plan_at(network, rate)).eval()
    return networks


def measure_costs(networks: Mapping[str, nn.Module], side: int, device: torch.device) -> dict[str, NetworkCost]:
    """Count and time networks that take pictures of `side` x `side` pixels, on a device."""
    image = torch.zeros(1, 3, side, side)
    flops = {name: count_flops(network, image) for name, network in networks.items()}
    moved = {name: network.to(device) for name, network in networks.items()}
    seconds = {
        batch: interleaved_seconds(moved, torch.randn(batch, 3, side, side, device=device)) for batch in BATCHES
    }
    return {
        name: NetworkCost(
            sum(parameter.numel() for parameter in network.parameters()),
            flops[name],
            {batch: median(found[name]) for batch, found in seconds.items()},
        )
        for name, network in networks.items()
    }


def count_flops(network: nn.Module, image: Tensor) -> int:
    """Return the floating-point operations of one evaluation: two for every multiply-add of layers and attention.

    Fused attention is taken apart, because the counter does not know all of its kernels.

    Args:
        network: The network, in eval mode.
        image: Pictures [B, 3, H, W].
    """
    with torch.inference_mode(), unfused_attention(), FlopCounterMode(display=False) as counter:
        network(image)
    return int(counter.get_total_flops())


@contextmanager
def unfused_attention() -> Iterator[None]:
    """While this lasts, attention and transformer layers compute one operation after the other, in sight of modes."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def interleaved_seconds(networks: Mapping[str, nn.Module], images: Tensor) -> dict[str, list[float]]:
    """Time networks in turns, so that whatever slows the machine down slows all of them; seconds for a batch.

    Args:
        networks: In eval mode, on the device of the images.
        images: A batch [B, 3, H, W].
    """
    found: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        repeats = {name: _repeats(network, images) for name, network in networks.items()}
        for count in range(ROUNDS):
            names = list(networks)[:: 1 if count % 2 else -1]
            for name in names:
                found[name].append(_seconds(networks[name], images, repeats[name]))
    return found


def _repeats(network: nn.Module, images: Tensor) -> int:
    """Return how many evaluations make a timing, after two to warm up."""
    return math.ceil(LEAST_SECONDS / min(_seconds(network, images, 1) for _ in range(2)))


def _seconds(network: nn.Module, images: Tensor, repeats: int) -> float:
    _wait(images.device)
    started = time.perf_counter()
    for _ in range(repeats):
        network(images)
    _wait(images.device)
    return (time.perf_counter() - started) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(describe_processor().get("processor", device))


def _threads(device: torch.device) -> str:
    count = torch.get_num_threads()
    return "one picture or batch at a time" if device.type != "cpu" else f"{count} thread{'s' * (count != 1)}"


def _network_table(costs: Mapping[str, NetworkCost]) -> DataTable:
    first = next(iter(costs.values()))
    rows: list[list[Cell]] = []
    for name, cost in costs.items():
        rows.append(
            [
                name,
                Number(cost.parameters, f"{cost.parameters:,}"),
                Number(cost.flops, f"{cost.flops / 1e9:.3f}"),
                Number(cost.flops / 2, f"{cost.flops / 2e9:.3f}"),
                *(Number(value, f"{1000 * value:.2f}") for value in cost.seconds.values()),
                *(
                    Number(first.seconds[batch] / value, f"{first.seconds[batch] / value:.2f} ×")
                    for batch, value in cost.seconds.items()
                ),
            ]
        )
    columns = ["network", "parameters", "GFLOPs", "GMACs"]
    columns += [f"ms, {_pictures(batch)}" for batch in BATCHES]
    columns += [f"faster, {_pictures(batch)}" for batch in BATCHES]
    return DataTable("What an evaluation costs", columns, rows)


def _pictures(batch: int) -> str:
    return f"{batch} picture{'s' * (batch > 1)}"


def _training_table(lineage: Lineage) -> tuple[DataTable, list[str]]:
    """Return what every generation cost, by the records, and sentences on those that cannot be read."""
    rows: list[list[Cell]] = []
    counts: list[list[float | None]] = []
    missing: list[str] = []
    for number in lineage.numbers:
        found: list[float | None] = []
        for read in (_counted_log, _measured_seconds):
            try:
                found += read(lineage, number)
            except FAILURES as error:
                found += [None, None]
                missing.append(f"Generation {number}: {told_failure(error, lineage)}")
        counts.append(found)
        rows.append([str(number), *_training_cells(found)])
    if len(rows) > 1:
        # A sum without one of its parts would be taken for the whole.
        totals = [None if None in column else math.fsum(filter(None, column)) for column in zip(*counts, strict=True)]
        rows.append(["all", *_training_cells(totals)])
    columns = ["generation", "epochs", "image passes", "training, s", "scoring, s"]
    note = "pictures learnt from, counted in every epoch, without passes of a teacher"
    return DataTable(f"What training cost; image passes are {note}", columns, rows), missing


def _counted_log(lineage: Lineage, number: int) -> tuple[float, float]:
    """Return epochs and image passes of a generation."""
    log = lineage.training_log(number)
    return len(log), sum(int(record.get("images", 0)) for record in log)


def _measured_seconds(lineage: Lineage, number: int) -> tuple[float, float]:
    """Return the seconds that training and scoring of a generation took, the scoring of its epochs among them."""
    seconds = read_provenance(lineage.generation_folder(number)).seconds
    training, scoring, validating = (float(seconds.get(name, 0)) for name in ("training", "scoring", "validating"))
    scoring += validating
    if not (math.isfinite(training) and math.isfinite(scoring)):
        raise ValueError(f"seconds = {training} and {scoring}, not finite")
    return training, scoring


def _training_cells(counts: Sequence[float | None]) -> list[Cell]:
    digits = (0, 0, 1, 1)
    return [
        "–" if count is None else Number(count, f"{count:,.{places}f}")
        for count, places in zip(counts, digits, strict=True)
    ]
