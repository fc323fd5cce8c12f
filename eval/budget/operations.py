"""How much arithmetic an epoch takes, counted by torch while it runs: a busy machine changes nothing.

Counted are the multiplications and additions of convolutions and matrix products, forward and backward, of the
network, of a teacher and of the loss; not what is small beside them (norms, activations, the optimizer), nor what a
method does between generations.
"""

from dataclasses import replace

import numpy as np
from torch.utils.flop_counter import FlopCounterMode

from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.evolution import evolve
from ke_metric.generation import TrainingState
from ke_metric.images.image_set import Benchmark
from ke_metric.images.pixel_store import Pictures
from ke_metric.recipe.schema import Recipe
from ke_metric.training.hooks import TrainingObserver

# Epochs of each generation that is counted; the first of them is not, so that scores before it do not count.
EPOCHS = 3
# Test images: scoring is not counted, but takes time.
TESTED = 32


class Marks(TrainingObserver):
    """Notes the count after every epoch.

    Args:
        counter: Counts.
    """

    def __init__(self, counter: FlopCounterMode) -> None:
        self._counter = counter
        self.counts: dict[tuple[int, int], int] = {}

    def epoch_done(self, state: TrainingState) -> None:
        """Note the count."""
        self.counts[state.number, state.epoch] = self._counter.get_total_flops()


def operations_per_epoch(recipe: Recipe, pictures: Pictures) -> float:
    """Return floating-point operations of an epoch, the mean over the generations of a recipe.

    Args:
        recipe: A strategy; its generations are cut to a few epochs.
        pictures: What it trains on.
    """
    training = recipe.training.model_copy(update={"epochs": EPOCHS, "warmup_epochs": 1.0})
    short = recipe.model_copy(update={"training": training})
    counter = FlopCounterMode(display=False)
    marks = Marks(counter)
    with counter:
        for _ in evolve(short, pictures, watch=marks):
            pass
    counts = [
        (marks.counts[number, EPOCHS] - marks.counts[number, 1]) / (EPOCHS - 1)
        for number in range(1, recipe.generations + 1)
    ]
    return sum(counts) / len(counts)


def training_pictures(recipe: Recipe) -> Pictures:
    """Return the pictures of a recipe's benchmark, with next to nothing to test on."""
    benchmark = load_benchmark(recipe.data, recipe.task)
    return Pictures.decode(_tested_on_few(benchmark), recipe.data.store_size, store_shape=recipe.data.store_shape)


def _tested_on_few(benchmark: Benchmark) -> Benchmark:
    few = benchmark.query.at(np.arange(min(TESTED, len(benchmark.query.labels))))
    gallery = few if benchmark.leave_one_out else benchmark.gallery
    return replace(benchmark, query=few, gallery=gallery)
