"""How far a training is from the network's own limit, and from the way the authors' code feeds it.

    python -m eval.speed.training [--rounds 5] [--rows feed,resnet18,emoji,cars,compiled] [--results FILE]

Every way trains one epoch per round, in turn. Ours is the real path: decoded pictures, loader thread, augmentation,
step, log and state. `feed`: beside Pillow's decoder and torchvision's RandomResizedCrop in every epoch, two loader
processes, fp32, default layout, a plain loop over the same network, loss and optimizer. The other rows: beside the
bare forward pass, backward pass and optimizer step of the same network, loss, precision and layout on one batch that
lies in memory; `compiled`: training.compile beside the same training without it. Pictures are drawn: like photographs
of 500 x 375 pixels, and characters where a recipe takes emoji. All ways share one process, which keeps the memory it
frees as that of `ke-metric train` does: peers are faster with it, too.
"""

import argparse
import copy
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from eval.shared.photographs import write_photographs
from eval.shared.provenance import provenance_lines
from eval.shared.rounds import in_turn, ratios, spread
from ke_metric import load_recipe
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.evolution import LineageTraining
from ke_metric.images.pixel_store import Pictures
from ke_metric.training.allocator import keep_freed_memory
from ke_metric.training.engine import Engine
from ke_metric.training.hooks import TrainingObserver
from ke_metric.training.one_generation import GenerationTraining, build_optimizer

PACKAGES = ("torchvision", "pillow", "pytorch-metric-learning", "numpy")
RECIPES = Path("recipes")
WORKERS = 2
PICTURE = (500, 375)
ROWS = ("feed", "resnet18", "emoji", "cars", "compiled")
NETWORK_TARGET, FEED_TARGET = 0.96, 2.5


@dataclass(frozen=True)
class Sizes:
    """How much is trained: steps of an epoch with the small network at 224 pixels, with the large one, with emoji."""

    resnet18: int = 8
    cars: int = 3
    emoji: int = 24
    batch: int = 32


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"which, with commas (default: {','.join(ROWS)})")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the table there as well")
    options = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        text = measured(options.rows.split(","), Path(folder), options.rounds)
    print(text)
    if options.results:
        options.results.write_text(f"# Training beside its limit\n\n{text}\n", encoding="utf-8")


def measured(rows: Sequence[str], folder: Path, rounds: int, sizes: Sizes = Sizes()) -> str:
    """Return the table of some rows as Markdown."""
    lines = [
        *provenance_lines(PACKAGES, more=f"{rounds} rounds"),
        "",
        "| what | ours, images/s | peer | images/s | ratio of speeds, wall | of processor time | target | met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    photographs = folder / "photographs"
    if set(rows) - {"emoji"}:
        write_photographs(photographs, classes=sizes.batch, each=sizes.resnet18, size=PICTURE)
    for row in rows:
        lines.append(_row(row, photographs, rounds, sizes))
        print(lines[-1], flush=True)
    return "\n".join(lines)


def _row(name: str, photographs: Path, rounds: int, sizes: Sizes) -> str:
    if name == "emoji":
        some = ["data.benchmark=glyphs", f"data.train_classes={8 * sizes.emoji}", f"batches.size={4 * sizes.batch}"]
        training = training_of("emoji_resnet18", some)
        return compared("emoji_resnet18 on characters", training, "bare steps", Bare(training), rounds)
    changes = ["data.benchmark=folder", f"data.root={photographs}", "data.workers=0"]
    if name == "cars":
        steps = f"data.train_classes={sizes.batch * sizes.cars // sizes.resnet18}"
        # Without a test part of their own, half of the classes are trained on.
        root = f"data.root={photographs / 'train'}"
        training = training_of("cars_resnet50", [*changes, root, f"batches.size={sizes.batch}", steps])
        return compared("cars_resnet50, batch of 32", training, "bare steps", Bare(training), rounds)
    changes += ["training.precision=auto", f"batches.size={sizes.batch}"]
    training = training_of("cub_resnet18", changes)
    if name == "compiled":
        compiled = training_of("cub_resnet18", [*changes, "training.compile=true"])
        return compared("ResNet18, 224 px, compiled", compiled, "not compiled", Ours(training), rounds, None)
    if name == "resnet18":
        return compared("ResNet18, 224 px, JPEG files", training, "bare steps", Bare(training), rounds)
    peer = Authors(training, photographs / "train")
    return compared("ResNet18, 224 px, JPEG files", training, "the authors' way", peer, rounds, FEED_TARGET)


def training_of(name: str, changes: Sequence[str]) -> GenerationTraining:
    """Return the training of generation 1 of a recipe, its pictures decoded."""
    recipe = load_recipe(RECIPES / f"{name}.yaml", [*changes, "data.verify_counts=false"])
    benchmark = load_benchmark(recipe.data, recipe.task)
    pictures = Pictures.decode(benchmark, recipe.data.store_size, store_shape=recipe.data.store_shape)
    lineage = LineageTraining(recipe, pictures, Engine(recipe.training.precision, "cpu"))
    return lineage.assemble(lineage.inheritance(1, None))


class Ours:
    """The epochs of a training, one after another."""

    def __init__(self, training: GenerationTraining) -> None:
        self.training, self.epoch = training, 0

    def __call__(self) -> None:
        """Train the next epoch."""
        self.epoch += 1
        self.training.train_epoch(self.epoch, TrainingObserver())


class Bare:
    """As many steps as an epoch has on one batch in memory, with a twin of a training's network and loss."""

    def __init__(self, training: GenerationTraining) -> None:
        self.network, self._loss = copy.deepcopy(training.network), copy.deepcopy(training.loss)
        self._batch = next(training.epochs.epoch(1))
        self._engine, self._steps = training.engine, len(training.epochs)
        self._optimizer = build_optimizer(
            self.network, self._loss, training.recipe, device=self._engine.device, scaled=False
        )

    def __call__(self) -> None:
        """Take the steps."""
        self.network.train()
        for _ in range(self._steps):
            self._optimizer.zero_grad(set_to_none=True)
            with self._engine.autocast():
                outputs = self.network(self._batch.images)
            self._loss(outputs.float(), self._batch.labels).backward()
            self._optimizer.step()


class Authors:
    """Epochs as the authors' code takes them: every picture is decoded, cut and flipped anew by loader processes."""

    def __init__(self, training: GenerationTraining, folder: Path) -> None:
        data = training.recipe.data
        steps = transforms.Compose(
            [
                transforms.RandomResizedCrop(data.image_size),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )
        self._loader = DataLoader(
            ImageFolder(str(folder), steps), training.recipe.batches.size, shuffle=True, num_workers=WORKERS
        )
        self.network = copy.deepcopy(training.network).to(memory_format=torch.contiguous_format)
        self._loss = copy.deepcopy(training.loss)
        section = training.recipe.optimizer
        self._optimizer = torch.optim.SGD(
            self.network.parameters(), section.learning_rate, section.momentum, weight_decay=section.weight_decay
        )

    def __call__(self) -> None:
        """Train an epoch."""
        self.network.train()
        for images, labels in self._loader:
            self._optimizer.zero_grad()
            loss = self._loss(self.network(images), labels)
            loss.backward()
            self._optimizer.step()
            loss.item()


def compared(
    what: str,
    training: GenerationTraining,
    peer: str,
    way: Callable[[], None],
    rounds: int,
    target: float | None = NETWORK_TARGET,
) -> str:
    """Return the row of a training beside another way of taking as many steps with as many pictures."""
    ours = Ours(training)
    ours()
    way()
    times = in_turn({"ours": ours, "peer": way}, rounds)
    images = len(training.epochs) * training.recipe.batches.size
    speeds = {name: [images / clock.wall for clock in found] for name, found in times.items()}
    wall = ratios(speeds["ours"], speeds["peer"])
    processor = ratios(*([clock.cpu for clock in times[name]] for name in ("peer", "ours")))
    judged = ["–", "–"]
    if target is not None:
        judged = [f">= {target}", "yes" if statistics.median(wall) >= target else "no"]
    cells = [
        what,
        spread(speeds["ours"], 1),
        peer,
        spread(speeds["peer"], 1),
        f"**{spread(wall, 3)}**",
        spread(processor, 3),
        *judged,
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
