"""One way of scoring embeddings in a process of its own, whose memory is its own: `eval.speed.scores` starts it.

    python eval/speed/scoring_ways.py WAY FOLDER

FOLDER holds vectors.npy and labels.npy; WAY is one of WAYS, or, for N embeddings that are drawn, `embed:N` or
`mapped:N`. It prints one JSON document: seconds on the clock, seconds of processors, bytes by which the process grew,
and what was found. The checkout whose folder is first in PYTHONPATH is measured, which may be an older one.
"""

import json
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import torch

from ke_metric import score_retrieval
from ke_metric.evaluation.retrieval import Scoring

RANKS = (1, 10, 100, 1000)
DIMENSION = 512
BATCH = 256
QUERIES = 1000
SHORT = 128
"""Length of embeddings that are scored in files."""
CLASSES = 1000
MAPPED_ABOVE = 2**22
"""Bytes above which these lie in files, fewer than otherwise: for sizes that take seconds."""
Found = dict[str, float]


def main() -> None:
    """Score, or embed, and print what it took."""
    way, folder = sys.argv[1], Path(sys.argv[2])
    name, _, count = way.partition(":")
    if name in COUNTED:
        work = COUNTED[name](int(count), folder)
    else:
        work = WAYS[way](np.load(folder / "vectors.npy"), np.load(folder / "labels.npy"))
    before, memory = resource.getrusage(resource.RUSAGE_SELF), memory_now()
    wall = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # What a way has found out itself is without the mapped files.
    grown = found.pop("grown", _status("VmHWM") - memory)
    print(json.dumps({"wall": seconds, "cpu": cpu, "grown": grown, "found": found}))


def memory_now() -> int:
    """Return the bytes that this process has, and forget that it ever had more; what starts it may have had, too."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _status("VmRSS")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


Work = Callable[[], Found]


def scorecard(vectors: np.ndarray, labels: np.ndarray, seeds: tuple[int, ...] = (0, 1, 2)) -> Work:
    """Return what computes all scores, NMI and AMI of three k-means among them."""
    return lambda: score_retrieval(
        vectors, labels, ranks_of(labels), scoring=Scoring(backend="faiss-cpu", kmeans_seeds=seeds)
    )


def neighbours(vectors: np.ndarray, labels: np.ndarray) -> Work:
    """Return what computes the scores of neighbour lists alone."""
    return scorecard(vectors, labels, ())


def calculator(vectors: np.ndarray, labels: np.ndarray) -> Work:
    """Return what computes the same scores by pytorch-metric-learning's calculator."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import FaissKNN

    ranks = ranks_of(labels)

    class WithRecall(AccuracyCalculator):
        def requires_knn(self) -> list[str]:
            return [*super().requires_knn(), *(f"recall_{k}" for k in ranks[1:])]

    def at(k: int) -> Callable[..., float]:
        def recall(_: object, knn_labels: torch.Tensor, query_labels: torch.Tensor, **__: object) -> float:
            return (knn_labels[:, :k] == query_labels[:, None]).any(dim=1).double().mean().item()

        return recall

    for k in ranks[1:]:
        setattr(WithRecall, f"calculate_recall_{k}", at(k))
    names = ("precision_at_1", "mean_average_precision_at_r", "r_precision", *(f"recall_{k}" for k in ranks[1:]))
    theirs = WithRecall(include=names, k=max(ranks), knn_func=FaissKNN(), device=torch.device("cpu"))
    called = {"precision_at_1": "recall@1", "mean_average_precision_at_r": "map@r"}

    def work() -> Found:
        found = theirs.get_accuracy(torch.from_numpy(vectors), torch.from_numpy(labels))
        return {called.get(name, name.replace("recall_", "recall@")): value for name, value in found.items()}

    return work


def bare_search(vectors: np.ndarray, labels: np.ndarray) -> Work:
    """Return FAISS's search for as many neighbours, and the query itself, which scores look at."""

    def work() -> Found:
        faiss.knn(vectors, vectors, max(ranks_of(labels)) + 1, faiss.METRIC_INNER_PRODUCT)
        return {}

    return work


def ranks_of(labels: np.ndarray) -> list[int]:
    """Return the Ks that are looked at; small sets have no thousand neighbours."""
    return [k for k in RANKS if k < len(labels)]


def prepared_embedding(count: int, _: Path) -> Work:
    """Return what embeds so many pictures by a network that costs nothing."""
    # An older checkout has it elsewhere.
    from ke_metric.evaluation.embeddings import embed

    some = torch.from_numpy(np.random.default_rng(0).standard_normal((BATCH, DIMENSION)).astype(np.float32))

    def batches() -> Iterator[torch.Tensor]:
        for start in range(0, count, BATCH):
            yield some[: count - start] + start

    return lambda: {"rows": float(len(embed(lambda batch: batch, batches())))}


def prepared_scores(count: int, folder: Path) -> Work:
    """Return what scores queries against so many embeddings that lie in files, a tenth of them copies, clusters too.

    What is found has `grown`: the most memory above that at the beginning which is no mapped file.
    """
    from ke_metric.evaluation import embeddings

    embeddings.IN_MEMORY = MAPPED_ABOVE
    path = folder / f"many_{count}.npy"
    generator, labels = np.random.default_rng(0), np.arange(count) % CLASSES
    many = np.lib.format.open_memmap(path, "w+", np.float32, (count, SHORT))
    for start in range(0, count, 1000):
        rows = many[start : start + 1000]
        rows[:] = generator.standard_normal(rows.shape)
        rows[::10] = rows[1::10]
    queries, asked = many[:QUERIES].copy(), labels[:QUERIES]
    del many, rows
    # FAISS, and torch's first product, take what they always do.
    score_retrieval(queries, asked % 2, (1,), scoring=Scoring(backend="faiss-cpu", kmeans_seeds=(0,)))

    def work() -> Found:
        with watched_memory() as grown:
            gallery = embeddings.Embeddings(np.load(path, mmap_mode="r"), labels)
            how = Scoring(backend="faiss-cpu", kmeans_seeds=(0,))
            found = score_retrieval(queries, asked, (1, 10), gallery=gallery, scoring=how)
        path.unlink()
        return found | {"grown": max(grown)}

    return work


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """While this lasts, note a thousand times a second by how much memory that is no mapped file has grown."""
    grown, before, ended = [0], _status("RssAnon"), threading.Event()

    def watch() -> None:
        while not ended.wait(0.001):
            grown.append(_status("RssAnon") - before)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield grown
    finally:
        ended.set()
        watching.join()


COUNTED: dict[str, Callable[[int, Path], Work]] = {"embed": prepared_embedding, "mapped": prepared_scores}
WAYS: dict[str, Callable[[np.ndarray, np.ndarray], Work]] = {
    "scorecard": scorecard,
    "neighbours": neighbours,
    "calculator": calculator,
    "bare": bare_search,
}

if __name__ == "__main__":
    main()
