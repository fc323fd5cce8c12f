"""What one NVIDIA GPU gives: training speed, waits for the device, search, and scores beside the CPU's.

    python -m eval.speed.gpu [--results FILE]
    python -m eval.speed.gpu --device cpu --tiny      # the same code in seconds, to see that it runs

Under eight minutes on one GPU. Pictures are drawn in memory, nothing is downloaded or decoded. Without a GPU, and
without `--device`, it says so and ends with exit code 5. Rows: images a second of a whole epoch (loader,
augmentation, step, log), and of the steps alone on one batch that is on the device; how often a step makes the
processor wait for the device, counted by torch's profiler as what an epoch of twice as many steps has more; exact
neighbours by FAISS and torch; every score of the same weights on the device and on the CPU.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from eval.shared.provenance import provenance_lines
from eval.shared.rounds import clocked
from ke_metric.arrays import FloatArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.backend import choose_backend, installed_distributions, search
from ke_metric.evolution import LineageTraining
from ke_metric.images.image_set import Benchmark, ImageSet
from ke_metric.images.pixel_store import Pictures, PixelStore
from ke_metric.recipe.schema import Recipe
from ke_metric.scoring import Scorer
from ke_metric.training.engine import Engine
from ke_metric.training.hooks import TrainingObserver
from ke_metric.training.one_generation import GenerationTraining

PACKAGES = ("torchvision", "accelerate", "timm", "pytorch-metric-learning", "numpy")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
READS = ("aten::_local_scalar_dense",)
COPIES = "Memcpy DtoH"
SCORE_TARGET = 1e-4


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        backbone: The network.
        side: Height and width of its pictures in pixels.
        batch: Pictures of a step.
        steps: Steps of an epoch.
        tested: Pictures that are scored.
        items: Vectors that are searched in.
        queries: Vectors that are searched with.
        width: Numbers of an embedding, and of such a vector.
    """

    backbone: str = "resnet50"
    side: int = 224
    batch: int = 128
    steps: int = 20
    tested: int = 600
    items: int = 200_000
    queries: int = 10_000
    width: int = 512


TINY = Sizes("timm/test_resnet", side=32, batch=16, steps=3, tested=60, items=2_000, queries=50, width=16)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="a torch device (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="seconds, to see that everything runs")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the tables there as well")
    options = parser.parse_args()
    if options.device is None and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no NVIDIA GPU here: nothing was measured.", file=sys.stderr)
        print("--device cpu --tiny runs the same code on the CPU, not for its numbers.", file=sys.stderr)
        raise SystemExit(int(ExitCode.ENVIRONMENT))
    device = Engine("fp32", options.device).device
    sizes, started = TINY if options.tiny else Sizes(), time.perf_counter()
    lines = [*provenance_lines(PACKAGES, more=f"device {device}; FAISS: {installed_distributions() or 'none'}"), ""]
    print("\n".join(lines), flush=True)
    for table in (training_lines, waiting_lines, search_lines, score_lines):
        found = [*table(sizes, device), ""]
        print("\n".join(found), flush=True)
        lines += found
    lines.append(f"All in {time.perf_counter() - started:.0f} s.")
    print(lines[-1])
    if options.results:
        options.results.write_text("\n".join(["# One GPU", "", *lines, ""]), encoding="utf-8")


def training_lines(sizes: Sizes, device: torch.device) -> Iterator[str]:
    """Yield the table of images a second by precision."""
    what = f"{sizes.backbone}, {sizes.side} px, batches of {sizes.batch}"
    yield f"| {what} | images/s of an epoch | of steps alone | ratio |"
    yield "|---|---|---|---|"
    for name, fields in precisions(device).items():
        # What a user may have switched on; scores are computed in full precision all the same.
        torch.set_float32_matmul_precision("high" if name == "fp32, TF32" else "highest")
        torch.backends.cudnn.allow_tf32 = name == "fp32, TF32"
        try:
            whole, alone = speeds(sizes, device, fields)
        except KeMetricError as error:
            yield f"| {name} | not possible here: {error} | | |"
            continue
        yield f"| {name} | {whole:,.0f} | {alone:,.0f} | {whole / alone:.2f} |"
    torch.set_float32_matmul_precision("highest")


def precisions(device: torch.device) -> dict[str, dict[str, Any]]:
    """Return ways to train, as fields of the recipe's training; compiled too where recipes have that."""
    ways: dict[str, dict[str, Any]] = {"fp32": {"precision": "fp32"}}
    if device.type == "cuda":
        ways["fp32, TF32"] = {"precision": "fp32"}
        ways["fp16"] = {"precision": "fp16"}
    ways["bf16"] = {"precision": "bf16"}
    if "compile" in type(recipe_of(TINY, {}).training).model_fields:
        ways["bf16, compiled"] = {"precision": "bf16", "compile": True}
    return ways


def speeds(sizes: Sizes, device: torch.device, fields: Mapping[str, Any]) -> tuple[float, float]:
    """Return images a second of the last of three epochs, and of steps on one batch of the device."""
    training = training_of(sizes, device, {"epochs": 3, **fields})
    last = training.train(TrainingObserver()).training_log[-1]
    batch = next(training.epochs.epoch(1))
    seconds = []
    for _ in range(3):
        finish(device)
        started = time.perf_counter()
        for step in range(sizes.steps):
            training.take_step(step, batch)
        finish(device)
        seconds.append(time.perf_counter() - started)
    return last["images"] / last["seconds"], sizes.steps * sizes.batch / statistics.median(seconds)


def waiting_lines(sizes: Sizes, device: torch.device) -> Iterator[str]:
    """Yield the table of waits for the device in a step."""
    one, twice = (waits(sizes, device, steps) for steps in (sizes.steps, 2 * sizes.steps))
    yield "| waits for the device, per step | |"
    yield "|---|---|"
    for name in one:
        yield f"| {name} | {(twice[name] - one[name]) / sizes.steps:.2f} |"


def waits(sizes: Sizes, device: torch.device, steps: int) -> dict[str, int]:
    """Return how often an epoch of so many steps waits for the device, by kind."""
    training = training_of(sizes, device, {"epochs": 1}, steps=steps)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as found:
        training.train(TrainingObserver())
    counts = {event.key: event.count for event in found.key_averages()}
    return {
        "synchronisations": sum(counts.get(name, 0) for name in WAITS),
        "numbers read from the device": sum(counts.get(name, 0) for name in READS),
        "copies to the processor": sum(count for name, count in counts.items() if name.startswith(COPIES)),
    }


def search_lines(sizes: Sizes, device: torch.device) -> Iterator[str]:
    """Yield the table of exact search."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((sizes.items, sizes.width), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query, first = vectors[: sizes.queries], None
    what = f"{sizes.queries:,} of {sizes.items:,} x {sizes.width}, 10 neighbours"
    yield f"| {what} | seconds | beside the first | same neighbours |"
    yield "|---|---|---|---|"
    for name in ("faiss-cpu", "torch", "faiss-gpu"):
        try:
            seconds, found = neighbors(name, device, query, vectors)
        except KeMetricError as error:
            yield f"| {name} | not possible here: {error} | | |"
            continue
        first = first or (seconds, found)
        same = float((found == first[1]).mean())
        yield f"| {name} | {seconds:.4f} | {seconds / first[0]:.3f} | {100 * same:.3f} % |"


def neighbors(
    name: str, device: torch.device, query: FloatArray, vectors: FloatArray
) -> tuple[float, np.ndarray[Any, Any]]:
    """Return the seconds of the second of two searches, and the neighbours' numbers [Q, 10]."""
    backend = choose_backend(name, "cpu" if name == "faiss-cpu" else device)
    found = []
    for _ in range(2):
        seconds = clocked(lambda: found.append(search(query, vectors, 10, backend=backend).indices)).wall
    return seconds, found[-1]


def score_lines(sizes: Sizes, device: torch.device) -> Iterator[str]:
    """Yield the table of scores of the same weights on the device and the CPU."""
    training = training_of(sizes, device, {"epochs": 1})
    training.train(TrainingObserver())
    pictures = pictures_in_memory(sizes)
    here = Scorer(pictures, training.recipe, training.engine).score(training.network)
    there = Scorer(pictures, training.recipe, Engine("fp32", "cpu")).score(training.network.cpu())
    yield f"| scores of {sizes.tested:,} pictures | {device} | cpu | apart | within {SCORE_TARGET:g} |"
    yield "|---|---|---|---|---|"
    for name, value in there.items():
        apart = abs(here[name] - value)
        is_cluster = name.startswith(("nmi", "ami"))
        within = "by clusters, which begin otherwise" if is_cluster else "yes" if apart <= SCORE_TARGET else "no"
        yield f"| {name} | {here[name]:.5f} | {value:.5f} | {apart:.1e} | {within} |"


def recipe_of(sizes: Sizes, fields: Mapping[str, Any]) -> Recipe:
    """Return the recipe that is trained."""
    return Recipe.model_validate(
        {
            "name": "gpu",
            "data": {"image_size": sizes.side, "store_size": sizes.side, "workers": 0},
            "network": {"backbone": sizes.backbone, "embedding_size": sizes.width},
            "batches": {"size": sizes.batch, "images_per_class": 4},
            "optimizer": {"learning_rate": 0.001},
            "training": {"epochs": 1, **fields},
            "evaluation": {"resize": sizes.side},
        }
    )


def training_of(
    sizes: Sizes, device: torch.device, fields: Mapping[str, Any], *, steps: int | None = None
) -> GenerationTraining:
    """Return the training of generation 1, whose epochs have so many steps."""
    recipe = recipe_of(sizes, fields)
    engine = Engine(recipe.training.precision, str(device))
    lineage = LineageTraining(recipe, pictures_in_memory(sizes, steps=steps or sizes.steps), engine)
    return lineage.assemble(lineage.inheritance(1, None))


def pictures_in_memory(sizes: Sizes, *, steps: int = 1) -> Pictures:
    """Return pictures of noise in the colour of their class: those of an epoch of so many steps, and those scored."""
    train, train_store = part("train", steps * sizes.batch, sizes)
    test, test_store = part("test", sizes.tested, sizes)
    return Pictures(Benchmark("noise", train, test, test), train_store, test_store, test_store)


def part(name: str, count: int, sizes: Sizes) -> tuple[ImageSet, PixelStore]:
    """Return so many pictures, four of a class or five, and their pixels."""
    classes = max(count // 4, 1)
    labels = np.sort(np.arange(count) % classes).astype(np.int64)
    generator = np.random.default_rng(len(name))
    colours = generator.integers(0, 200, (classes, 1, 1, 3), dtype=np.uint8)
    pixels = generator.integers(0, 56, (count, sizes.side, sizes.side, 3), dtype=np.uint8)
    pixels += colours[labels]
    sides = np.full(count, sizes.side, np.int64)
    names = tuple(str(number) for number in range(classes))
    images = ImageSet(tuple(f"{name}-{number}" for number in range(count)), labels, names, None)
    return images, PixelStore(pixels.reshape(-1), sides, widths=sides)


def finish(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
