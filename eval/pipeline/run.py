"""Does every way to the gallery give the scores of training, and what does the slim network save in it?

    python -m eval.pipeline.run [--lineage lineages/demo] [--gen last] [--rounds 5] [--markdown FILE]

The test pictures of a lineage's benchmark are written as files. Dense and slim are then loaded from the lineage and
embed the files, and the embeddings are scored: directly, through every kind of store (exact ones), through ONNX
Runtime, and through the HTTP service, which is sent every file. The scores are compared with the stored scorecard;
"other ranks" counts the queries whose list of neighbours is not that of a NumPy twin (float64, all similarities
sorted), pairs that are closer than 1e-6 aside.

Images/s: decoding, preparing and embedding all files in one process, dense and slim in turns; medians of the rounds.
"""

import argparse
import http.client
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.shared.provenance import provenance_lines
from ke_metric import Embedder, Index, Lineage, score_retrieval
from ke_metric.arrays import FloatArray
from ke_metric.benchmarks.listings import OWN_LIST
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.datasets.pictures import write_pictures
from ke_metric.export.export import Evidence, ExportSettings, export
from ke_metric.export.onnx_file import OnnxNetwork
from ke_metric.export.record import ONNX_FILE
from ke_metric.retrieval.index import StoreSettings
from ke_metric.retrieval.picture_list import list_pictures
from ke_metric.retrieval.ranking import ranked_search
from ke_metric.retrieval.scores import score_through
from ke_metric.scoring import count_parameters
from ke_metric.stores.contract import Item

NETWORKS = ("dense", "slim")
STORES = {
    "FAISS file, Flat": StoreSettings(kind="faiss", factory="Flat"),
    "memmap and torch": StoreSettings(kind="memmap"),
    "Milvus Lite, FLAT": StoreSettings(kind="milvus"),
}
PACKAGES = ("faiss-cpu", "pymilvus", "milvus-lite", "onnxruntime", "uvicorn", "starlette")
CLIENTS = 16
COMPARED = 96
"""Pictures on which an export is compared with PyTorch before it is scored on all."""
CLOSE = 1e-6


@dataclass(frozen=True)
class Files:
    """The benchmark's test pictures as files.

    Attributes:
        items: In the order of the benchmark.
        labels: [N] class numbers.
    """

    items: Sequence[Item]
    labels: np.ndarray

    @property
    def ids(self) -> list[str]:
        """Ids, in order."""
        return [item.id for item in self.items]

    @property
    def classes(self) -> list[str]:
        """Labels in words, in order."""
        return [item.label for item in self.items]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lineage", type=Path, default=Path("lineages/demo"), help="default: lineages/demo")
    parser.add_argument("--gen", default="last", help="number, last or best (default: last)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    options = parser.parse_args()
    lineage = Lineage(options.lineage)
    number = lineage.number_of(options.gen)
    with tempfile.TemporaryDirectory() as folder:
        text = measure(lineage, number, rounds=options.rounds, folder=Path(folder))
    head = provenance_lines(PACKAGES, more=f"{options.rounds} rounds")
    text = "\n".join(
        [*head, f"- lineage: {lineage.recipe.name}, seed {lineage.recipe.seed}, generation {number}", text]
    )
    print(text)
    if options.markdown:
        options.markdown.write_text(f"# From files to scores\n\n{text}\n", encoding="utf-8")


def measure(lineage: Lineage, number: int, *, rounds: int, folder: Path) -> str:
    """Return the tables of a generation as Markdown."""
    recipe = lineage.recipe
    benchmark = load_benchmark(recipe.data, recipe.task)
    if not benchmark.leave_one_out:
        raise SystemExit(
            f"{benchmark.name}: query and gallery differ; this script is for benchmarks where they do not"
        )
    write_pictures(benchmark, folder / "pictures")
    files = Files(list_pictures([folder / "pictures" / OWN_LIST]).items, benchmark.query.labels)
    assert len(files.items) == len(files.labels), (len(files.items), len(files.labels))
    embedders = {network: Embedder.load(lineage.folder, number, network) for network in NETWORKS}
    stored = lineage.scorecard(number)
    scores, speeds = [], _speeds(embedders, files, rounds)
    for network, embedder in embedders.items():
        card: dict[str, float] = dict(getattr(stored, network))
        ranks = [int(name.partition("@")[2]) for name in card if name.startswith("recall@")]
        for way, found, other in _ways(embedder, files, ranks, folder / network):
            scores.append(
                (network, way, found, {name: found[name] - card[name] for name in found.keys() & card}, other)
            )
            print(network, way, found, file=sys.stderr)
    note = (
        f"Where a difference is not 0, neighbours closer than {CLOSE:g} have changed places; ONNX Runtime rounds "
        "otherwise than torch."
    )
    return "\n".join(["", *_speed_table(embedders, stored, speeds), "", *_score_table(scores), "", note])


def _speeds(embedders: dict[str, Embedder], files: Files, rounds: int) -> dict[str, list[float]]:
    """Return images/s of every round, the networks in turns; the first round warms up and is not counted."""
    paths = [item.path for item in files.items]
    speeds: dict[str, list[float]] = {network: [] for network in embedders}
    for counted in [False] + [True] * rounds:
        for network, embedder in embedders.items():
            started = time.perf_counter()
            embedder(paths)
            if counted:
                speeds[network].append(len(paths) / (time.perf_counter() - started))
    return speeds


Way = tuple[str, dict[str, float], int | None]


def _ways(embedder: Embedder, files: Files, ranks: Sequence[int], folder: Path) -> Iterator[Way]:
    """Yield every way's name, its scores, and the number of queries with other neighbours than the twin's."""
    vectors = embedder([item.path for item in files.items])
    yield "Embedder, scored directly", dict(score_retrieval(vectors, files.labels, ranks)), None
    depth = max(ranks)
    twin = _twin(vectors, depth)
    for way, settings in STORES.items():
        place = folder / settings.kind
        with Index.create(place, embedder=embedder, settings=settings) as index:
            index.add(files.items, vectors, digest=embedder.digest)
            scores = score_through(index.store, vectors, files.classes, ranks, ids=files.ids)
            hits = ranked_search(index.store, vectors, depth, exclude=files.ids)
            found = [[item.id for item in row] for row in hits.items()]
        yield way, scores, _other_ranks(found, twin, vectors, files.ids)
    yield "ONNX Runtime", _onnx_scores(embedder, files, ranks, folder / "onnx"), None
    found = _ask_service(folder / "memmap", files, depth + 1)
    yield "HTTP service", _recalls(found, files, ranks), _other_ranks(found, twin, vectors, files.ids)


def _twin(vectors: FloatArray, depth: int) -> np.ndarray:
    """Return the positions [N, depth] of the nearest others of all vectors, by brute force in float64."""
    wide = vectors.astype(np.float64)
    similarities = wide @ wide.T
    np.fill_diagonal(similarities, -np.inf)
    return np.argsort(-similarities, axis=1, kind="stable")[:, :depth]


def _other_ranks(found: Sequence[Sequence[str]], twin: np.ndarray, vectors: FloatArray, ids: Sequence[str]) -> int:
    """Return how many queries have a neighbour at a rank whose similarity is not that of the twin's at that rank."""
    position = {item: place for place, item in enumerate(ids)}
    wide = vectors.astype(np.float64)
    count = 0
    for query, row in enumerate(found):
        ours = wide[[position[item] for item in row]] @ wide[query]
        theirs = wide[twin[query, : len(row)]] @ wide[query]
        count += len(row) != twin.shape[1] or bool((np.abs(ours - theirs) > CLOSE).any())
    return count


def _onnx_scores(embedder: Embedder, files: Files, ranks: Sequence[int], folder: Path) -> dict[str, float]:
    pixels = np.stack([embedder.prepare(item.path) for item in files.items])
    some = pixels[:: max(1, len(pixels) // COMPARED)]
    export(embedder, folder, settings=ExportSettings("onnx"), evidence=Evidence(some, "some of the test pictures"))
    network = OnnxNetwork(folder / ONNX_FILE)
    vectors = np.concatenate([network(pixels[start : start + 256]) for start in range(0, len(pixels), 256)])
    return dict(score_retrieval(vectors, files.labels, ranks))


def _ask_service(index: Path, files: Files, k: int) -> list[list[str]]:
    """Return the ids that the service finds for every file, without the file itself."""
    with _service(index) as port, ThreadPoolExecutor(CLIENTS) as pool:
        shares = [range(start, len(files.items), CLIENTS) for start in range(CLIENTS)]
        answers = pool.map(lambda share: list(_ask(port, [files.items[n] for n in share], k)), shares)
        found = dict(
            zip((n for share in shares for n in share), (row for rows in answers for row in rows), strict=True)
        )
    return [[item for item in found[n] if item != files.items[n].id][: k - 1] for n in range(len(files.items))]


def _ask(port: int, items: Sequence[Item], k: int) -> Iterator[list[str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for item in items:
        body = Path(item.path).read_bytes()
        connection.request("POST", f"/search?k={k}", body, {"Content-Type": "image/png"})
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        assert response.status == 200, answer
        yield [result["id"] for result in answer["results"]]
    connection.close()


@contextmanager
def _service(index: Path) -> Iterator[int]:
    """Run `ke-metric serve` on a free port for the length of the block."""
    command = [sys.executable, "-m", "ke_metric.cli", "serve", "--index", str(index), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+);", process.stderr.readline())
        if found is None:
            raise SystemExit("the service did not start")
        port = int(found[1])
        while not _is_ready(port):
            time.sleep(0.2)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _is_ready(port: int) -> bool:
    """Return whether the service has opened its index."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/health")
    status = connection.getresponse().status
    connection.close()
    return status == 200


def _recalls(found: Sequence[Sequence[str]], files: Files, ranks: Sequence[int]) -> dict[str, float]:
    label = dict(zip(files.ids, files.classes, strict=True))
    alone = {name for name in set(files.classes) if files.classes.count(name) == 1}
    rows = [
        [label[item] == own for item in row]
        for row, own in zip(found, files.classes, strict=True)
        if own not in alone
    ]
    return {f"recall@{k}": sum(any(row[:k]) for row in rows) / len(rows) for k in ranks}


def _speed_table(embedders: dict[str, Embedder], stored: Any, speeds: dict[str, list[float]]) -> list[str]:
    lines = [
        "| network | parameters | images/s embedded | times dense | Recall@1 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for network, embedder in embedders.items():
        ratios = [ours / dense for ours, dense in zip(speeds[network], speeds["dense"], strict=True)]
        low, high = min(speeds[network]), max(speeds[network])
        lines.append(
            f"| {network} | {count_parameters(embedder.network):,} | {statistics.median(speeds[network]):,.0f} "
            f"({low:,.0f}–{high:,.0f}) | {statistics.median(ratios):.2f} | "
            f"{100 * getattr(stored, network)['recall@1']:.2f} |"
        )
    return lines


def _score_table(scores: Sequence[tuple[str, str, dict[str, float], dict[str, float], int | None]]) -> list[str]:
    lines = [
        "| network | way | Recall@1 | Recall@8 | MAP@R | largest difference to the scorecard, points | other ranks |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for network, way, found, differences, other in scores:
        shown = [f"{100 * found[name]:.2f}" if name in found else "" for name in ("recall@1", "recall@8", "map@r")]
        shares = [abs(value) for name, value in differences.items() if not name.startswith("queries")]
        largest = f"{100 * max(shares):.3g}"
        lines.append(f"| {network} | {way} | {' | '.join(shown)} | {largest} | {'' if other is None else other} |")
    return lines


if __name__ == "__main__":
    main()
