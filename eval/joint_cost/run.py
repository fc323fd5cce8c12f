"""What joint training of several widths costs beside a plain one: operations, time and memory of a step.

    python -m eval.joint_cost.run

ResNet18 with an embedding of 128, fp32, NHWC, SGD, at 32 pixels (small stem, batch of 64) and 224 pixels (batch of
16). Steps of all ways are taken in turn and compared as ratios of medians, wall time and processor time; operations
are counted by torch; memory is what tensors hold at the worst moment of a step, beside weights, gradients and
optimizer state, which are there before it. Prints a table in Markdown.
"""

import statistics
import time
from collections.abc import Iterator
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from eval.shared.memory import peak_of_tensors
from eval.shared.provenance import provenance_lines
from ke_metric import plan_split
from ke_metric.images.batches import DeviceBatch
from ke_metric.losses.building import build_embedding_loss
from ke_metric.networks.dense import build_network
from ke_metric.recipe.schema import Recipe
from ke_metric.training.engine import Engine
from ke_metric.training.one_generation import GenerationTraining

WAYS = {"plain": (), "0.5": (0.5,), "0.25, 0.5, 0.75": (0.25, 0.5, 0.75)}
SIZES = {32: (64, {"stem": "small"}), 224: (16, {})}
CLASSES, STEPS = 16, 7


class Batches:
    """One epoch of steps on the same noise."""

    def __init__(self, size: int, count: int) -> None:
        images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(count) % CLASSES
        self.batch = DeviceBatch(images.contiguous(memory_format=torch.channels_last), labels, ("",) * count)

    def __len__(self) -> int:
        return 1000

    def epoch(self, number: int) -> Iterator[DeviceBatch]:
        """Yield the batch."""
        yield self.batch


def training_of(size: int, rates: tuple[float, ...]) -> GenerationTraining:
    """Return a training whose steps can be taken."""
    count, network_fields = SIZES[size]
    recipe = Recipe.model_validate(
        {
            "name": "cost",
            "data": {"image_size": size, "store_size": size},
            "network": {"backbone": "resnet18", **network_fields},
            "split": {"rates": list(rates)},
            "training": {"precision": "fp32"},
            "evaluation": {"resize": size, "slim_repair": "auto"},
        }
    )
    torch.manual_seed(0)
    engine = Engine("fp32", "cpu")
    network = build_network(recipe.network, size)
    plans = {f"{rate:g}": plan_split(network, torch.zeros(1, 3, size, size), rate=rate) for rate in rates}
    engine.place(network, channels_last=True)
    loss = build_embedding_loss(recipe.loss, None, classes=CLASSES, embedding_size=128)
    training = GenerationTraining(network, loss, Batches(size, count), recipe=recipe, engine=engine, number=1)
    if plans:
        training.train_widths(plans)
    network.train()
    return training


def measured(size: int) -> dict[str, dict[str, float]]:
    """Return operations, and medians of seconds and processor seconds, of a step of every way."""
    trainings = {way: training_of(size, rates) for way, rates in WAYS.items()}
    found: dict[str, dict[str, float]] = {}
    for way, training in trainings.items():
        counter = FlopCounterMode(display=False)
        with counter:
            training.heard(training.take_step(0, training.epochs.batch))
        training.heard(training.take_step(1, training.epochs.batch))
        peak = peak_of_tensors(partial(training.take_step, 2, training.epochs.batch))
        found[way] = {"operations": counter.get_total_flops(), "memory": peak}
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for step in range(3, STEPS + 3):
        for way, training in trainings.items():
            started, worked = time.perf_counter(), time.process_time()
            training.heard(training.take_step(step, training.epochs.batch))
            seconds[way].append((time.perf_counter() - started, time.process_time() - worked))
    for way, taken in seconds.items():
        found[way] |= {
            "wall": statistics.median(wall for wall, _ in taken),
            "processor": statistics.median(processor for _, processor in taken),
        }
    return found


def main() -> None:
    """Print the table."""
    print("\n".join([*provenance_lines((), more="fp32"), ""]))
    print("| pixels | batch | narrow rates | operations | wall time | processor time | memory |")
    print("|---|---|---|---|---|---|---|")
    for size, (count, _) in SIZES.items():
        found = measured(size)
        for way, facts in found.items():
            names = ("operations", "wall", "processor", "memory")
            ratios = " | ".join(f"{facts[name] / found['plain'][name]:.2f}" for name in names)
            print(f"| {size} | {count} | {way} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
