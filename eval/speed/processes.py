"""One, two and four processes on this machine: whether they compute the same, and how fast.

    python -m eval.speed.processes [--rounds 3] [--kinds 'triplet; proxies'] [--counts 1,4] [--results FILE]

Every number of processes is started by torchrun on the CPU, one thread each, in turn. Compared with one process, over
the same batches of drawn characters and with a network without batch norm (whose statistics are those of a process's
own pictures): the gradients of the first step, the pictures of two epochs, the scores of the same weights, and the
scores of two generations. The number of pictures is one that no processes can share evenly.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.shared.provenance import provenance_lines
from eval.shared.rounds import ratios, spread
from ke_metric import evolve
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.evolution import LineageTraining
from ke_metric.images.pixel_store import Pictures
from ke_metric.recipe.schema import Recipe
from ke_metric.training.engine import Engine
from ke_metric.training.hooks import TrainingObserver

PACKAGES = ("accelerate", "timm", "pytorch-metric-learning")
GRADIENT_TARGET, SCORE_TARGET = 1e-5, 1e-6
RETRIEVAL = {"network": {"backbone": "timm/test_convnext", "embedding_size": 16}}
KINDS: dict[str, dict[str, Any]] = {
    "triplet": RETRIEVAL | {"loss": {"name": "TripletMarginLoss"}},
    "proxies": RETRIEVAL | {"loss": {"name": "ProxyNCALoss"}},
    "multi-similarity, three widths": RETRIEVAL
    | {"loss": {"name": "MultiSimilarityLoss"}, "split": {"rates": [0.25, 0.75]}},
    "classification": {"task": "classification", "loss": {"name": "CrossEntropyLoss"}},
    "classification, pairs": {"task": "classification", "loss": {"name": "CSKDLoss"}},
}
SAMPLERS = {"classification": "shuffled", "classification, pairs": "paired"}


def recipe_of(kind: str, **training: Any) -> Recipe:
    """Return the recipe of a kind of training, without batch norm."""
    fields: dict[str, Any] = {
        "name": "processes",
        "data": {"benchmark": "glyphs", "train_classes": 11, "image_size": 32, "store_size": 32},
        "network": {"backbone": "timm/test_convnext"},
        "batches": {"size": 16, "sampler": SAMPLERS.get(kind, "class_balanced"), "images_per_class": 2},
        "optimizer": {"name": "sgd", "learning_rate": 0.01},
        "training": {"epochs": 1, "precision": "fp32", **training},
        "evaluation": {"resize": 32, "kmeans_seeds": 1, "slim_repair": "auto"},
    }
    if kind not in SAMPLERS:
        fields["data"]["test_classes"] = 5
    return Recipe.model_validate(fields | KINDS[kind])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds of speed (default: 3)")
    parser.add_argument("--kinds", default="; ".join(KINDS), help="trainings, with semicolons (default: %(default)s)")
    parser.add_argument("--counts", default="1,2,4", help="numbers of processes, 1 first (default: %(default)s)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the tables there as well")
    parser.add_argument("--process", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    kinds = [kind.strip() for kind in options.kinds.split(";")]
    if options.process:
        own_part(options.process, kinds)
        return
    text = measured(kinds, [int(count) for count in options.counts.split(",")], options.rounds)
    print(text)
    if options.results:
        options.results.write_text(f"# One, two and four processes\n\n{text}\n", encoding="utf-8")


def measured(kinds: Sequence[str], counts: Sequence[int], rounds: int) -> str:
    """Return both tables as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        found = {count: started(Path(folder) / str(count), count, kinds) for count in counts}
        speeds: dict[int, list[float]] = {count: [] for count in counts}
        for number in range(rounds):
            for count in counts:
                where = Path(folder) / f"speed-{number}-{count}"
                speeds[count].append(started(where, count, ["speed"])[0]["speed"])
    lines = [*provenance_lines(PACKAGES, more=f"1 thread per process; {rounds} rounds of speed"), ""]
    return "\n".join(lines + equality_lines(found, kinds) + [""] + speed_lines(speeds))


def started(folder: Path, count: int, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Run the program by so many processes and return what each one found, by rank."""
    folder.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    program = ["-m", "eval.speed.processes", "--process", str(folder), "--kinds", ";".join(kinds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *program], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{count} processes failed:\n{done.stderr[-4000:]}")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def own_part(folder: Path, kinds: Sequence[str]) -> None:
    """Compute what one process computes, and write it."""
    engine = Engine("fp32", "cpu")
    found: dict[str, Any] = {}
    if kinds == ["speed"]:
        found["speed"] = images_per_second(engine)
    else:
        for kind in kinds:
            found[kind] = facts_of(kind, engine)
    torch.save(found, folder / f"{engine.rank}.pt")
    engine.wait()


def facts_of(kind: str, engine: Engine) -> dict[str, Any]:
    """Return gradients, pictures and scores of a kind of training."""
    recipe = recipe_of(kind)
    pictures = pictures_of(recipe)
    lineage = LineageTraining(recipe, pictures, engine)
    training = lineage.assemble(lineage.inheritance(1, None))
    keys = [key for epoch in (1, 2) for batch in training.epochs.epoch(epoch) for key in batch.keys]
    scored: list[int] = []
    counting = training.network.register_forward_pre_hook(lambda _, inputs: scored.append(len(inputs[0])))
    scores = dict(lineage.scorer.score(training.network))
    counting.remove()
    training.take_step(0, next(training.epochs.epoch(1)))
    gradients = {
        f"{part}.{name}": parameter.grad
        for part, module in (("network", training.network), ("loss", training.loss))
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    grown = list(evolve(recipe.model_copy(update={"generations": 2}), pictures, device="cpu"))
    return {
        "gradients": gradients,
        "trained": keys,
        "pictures": len(pictures.benchmark.train),
        "tested": len(pictures.benchmark.query),
        "scored": sum(scored),
        "scores": scores,
        "grown": dict(grown[-1].scorecard.dense),
    }


def pictures_of(recipe: Recipe) -> Pictures:
    """Return the characters of a recipe without the last ones: an odd number of each part."""
    benchmark = load_benchmark(recipe.data, recipe.task)
    train = benchmark.train.at(np.arange(len(benchmark.train) - 1 - len(benchmark.train) % 2))
    query = benchmark.query.at(np.arange(len(benchmark.query) - 1 - len(benchmark.query) % 2))
    gallery = query if benchmark.leave_one_out else benchmark.gallery
    smaller = replace(benchmark, train=train, query=query, gallery=gallery)
    return Pictures.decode(smaller, recipe.data.store_size, store_shape=recipe.data.store_shape)


def images_per_second(engine: Engine) -> float:
    """Return the speed of the second epoch of a training of ResNet18 on characters, loader and steps."""
    recipe = Recipe.model_validate(
        {
            "name": "speed",
            "data": {
                "benchmark": "glyphs",
                "train_classes": 64,
                "test_classes": 2,
                "image_size": 32,
                "store_size": 64,
            },
            "network": {"backbone": "resnet18", "embedding_size": 128},
            "batches": {"size": 128},
            "training": {"epochs": 2, "precision": "fp32"},
        }
    )
    benchmark = load_benchmark(recipe.data, recipe.task)
    lineage = LineageTraining(recipe, Pictures.decode(benchmark, recipe.data.store_size), engine)
    training = lineage.assemble(lineage.inheritance(1, None))
    engine.wait()
    last = training.train(TrainingObserver()).training_log[-1]
    return float(last["images"]) / float(last["seconds"])


def equality_lines(found: Mapping[int, Sequence[Mapping[str, Any]]], kinds: Sequence[str]) -> list[str]:
    """Return the table of what several processes compute beside one."""
    one = found[1][0]
    lines = [
        "| training | processes | gradients off by, of the largest | pictures left out, doubled in two epochs "
        "| scored | same weights' scores off by | two generations' scores off by "
        "| gradients to 1e-5, scores equal, none lost or doubled |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in kinds:
        for count, ranks in found.items():
            if count > 1:
                lines.append(
                    f"| {kind} | {count} | {' | '.join(_compared(one[kind], [rank[kind] for rank in ranks]))} |"
                )
    return lines


def _compared(one: Mapping[str, Any], ranks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the cells of one kind of training by several processes."""
    gradient = max(_furthest(rank["gradients"], one["gradients"]) for rank in ranks)
    same = max(_difference(rank["scores"], one["scores"]) for rank in ranks)
    expected, trained = Counter(one["trained"]), Counter(key for rank in ranks for key in rank["trained"])
    scored = sum(rank["scored"] for rank in ranks)
    left_out, doubled = (expected - trained).total(), (trained - expected).total()
    yield f"{gradient:.1e}"
    yield f"{left_out}, {doubled} of {expected.total()}"
    yield f"{scored} of {one['scored']}"
    yield f"{same:.1e}"
    yield f"{max(_difference(rank['grown'], one['grown']) for rank in ranks):.1e}"
    equal = gradient <= GRADIENT_TARGET and same <= SCORE_TARGET and scored == one["scored"]
    yield "yes" if equal and not left_out and not doubled else "no"


def _furthest(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Return how far gradients are apart, as a share of each tensor's largest one, of no less than 1e-6 of all."""
    if found.keys() != expected.keys():
        return float("inf")
    whole = max(float(value.abs().max()) for value in expected.values())
    return max(
        float((found[name] - value).abs().max()) / max(float(value.abs().max()), 1e-6 * whole)
        for name, value in expected.items()
    )


def _difference(found: Mapping[str, float], expected: Mapping[str, float]) -> float:
    return max(abs(found[name] - value) for name, value in expected.items())


def speed_lines(speeds: Mapping[int, Sequence[float]]) -> list[str]:
    """Return the table of images a second."""
    lines = [
        "| processes, a batch of 128 shared by them | images/s | beside one process, round by round |",
        "|---|---|---|",
    ]
    for count, found in speeds.items():
        lines.append(f"| {count} | {statistics.median(found):,.0f} | {spread(ratios(found, speeds[1]))} |")
    return lines


if __name__ == "__main__":
    main()
