"""Seconds of splitting, inheriting, slimming and scoring on this machine, beside pytorch-metric-learning.

    python -m eval.speed.run [--rounds 5]

Scoring is compared in interleaved rounds, as the ratio of the two within each round: machines drift. Both compute
precision at 1 (= Recall@1), MAP@R and R-precision of the same embeddings with exact neighbours.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torchvision
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import FaissKNN

from ke_metric import extract_slim, plan_split, redraw_reset, score_retrieval
from ke_metric.evaluation.retrieval import Scoring

SCORES = ("precision_at_1", "mean_average_precision_at_r", "r_precision")


def main() -> None:
    """Print the timings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    rounds = parser.parse_args().rounds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians of {rounds} rounds\n")
    split_network("resnet50", rounds)
    split_network("googlenet", rounds)
    for items, classes in ((6_000, 100), (20_000, 1_000)):
        compare_scoring(items, classes, rounds)


def split_network(name: str, rounds: int) -> None:
    """Time plan, reset and slim of a torchvision network at 224 pixels and rate 0.5."""
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, weights=None, **options)
    example, generator = torch.zeros(1, 3, 224, 224), torch.Generator().manual_seed(0)
    plan = plan_split(network, example, rate=0.5)
    planned = median(lambda: plan_split(network, example, rate=0.5), rounds)
    redrawn = median(lambda: redraw_reset(network, plan, generator=generator), rounds)
    cut = median(lambda: extract_slim(network, plan), rounds)
    print(f"{name}: plan_split {planned:.2f} s, redraw_reset {redrawn:.2f} s, extract_slim {cut:.2f} s")


def compare_scoring(items: int, classes: int, rounds: int) -> None:
    """Time our scores and the calculator's on embeddings of low intrinsic dimension."""
    generator = np.random.default_rng(0)
    labels = generator.integers(classes, size=items)
    latent = generator.normal(size=(classes, 8))[labels] + generator.normal(size=(items, 8))
    vectors = torch.from_numpy(np.tanh(latent @ generator.normal(size=(8, 128))).astype(np.float32))
    vectors, targets = torch.nn.functional.normalize(vectors), torch.from_numpy(labels)
    calculator = AccuracyCalculator(include=SCORES, k="max_bin_count", knn_func=FaissKNN())
    neighbours_only = Scoring(backend="faiss-cpu", kmeans_seeds=())
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(seconds(lambda: score_retrieval(vectors, targets, scoring=neighbours_only)))
        theirs.append(seconds(lambda: calculator.get_accuracy(vectors, targets)))
    mine = score_retrieval(vectors, targets, scoring=neighbours_only)
    other = calculator.get_accuracy(vectors, targets)
    for name, key in zip(("recall@1", "map@r", "r_precision"), SCORES, strict=True):
        if abs(mine[name] - other[key]) > 1e-4:
            raise SystemExit(f"{name}: {mine[name]} here, {other[key]} there: not the same task, no comparison")
    ratios = [mine_ / theirs_ for mine_, theirs_ in zip(ours, theirs, strict=True)]
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    print(
        f"\n{items:,} items, {classes:,} classes: scored in {statistics.median(ours):.2f} s, pytorch-metric-learning "
        f"{statistics.median(theirs):.2f} s; ratio {ratio}"
    )
    whole = median(
        lambda: score_retrieval(vectors, targets, scoring=Scoring(backend="faiss-cpu")), max(1, rounds // 2)
    )
    print(f"with NMI and AMI of three k-means runs: {whole:.2f} s")


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median(work: Callable[[], object], rounds: int) -> float:
    """Return the median duration of a call."""
    return statistics.median(seconds(work) for _ in range(rounds))


if __name__ == "__main__":
    main()
