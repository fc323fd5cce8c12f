"""What query expansion and k-reciprocal re-ranking gain and cost, on lineages that were trained here.

    python -m eval.ranking.run [LINEAGE ...] [--class-sizes] [--results eval/ranking/results]

Measures the last generation of each LINEAGE, dense and slim, and keeps it as a line of RESULTS.jsonl; then writes
RESULTS.md from all lines. Every test picture queries all others in an exact store (memmap).

With --class-sizes only the re-rankings are measured, on test classes thinned to a few pictures each, several times
with other pictures: every picture queries all others. With one picture a class, which has nothing to find, another
picture of each class queries them.

Defaults are chosen without a look at the test classes: on classes that the lineage was neither trained nor tested on
(the training part's classes beyond `data.train_classes`), the setting with the highest mean MAP@R over all networks,
among those that cost no network more than half a point of Recall@1 there.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from eval.shared.memory import peak_of_process
from eval.shared.provenance import provenance_lines
from ke_metric import Lineage
from ke_metric.arrays import FloatArray
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.evaluation.embeddings import Embeddings
from ke_metric.images.image_set import Benchmark, ImageSet, without_training
from ke_metric.images.pixel_store import Pictures
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.recipe.schema import Recipe
from ke_metric.retrieval.ranking import Expansion, Reranking, ranked_search
from ke_metric.retrieval.scores import score_through
from ke_metric.scoring import Scorer
from ke_metric.stores.contract import Item
from ke_metric.stores.memmap import MemmapStore
from ke_metric.training.engine import Engine

HELD_OUT_CLASSES = 100
SCORES = ("recall@1", "map@r", "r_precision")
# Points of Recall@1 that a default may cost a network.
TOLERATED = 0.5
EXPANSIONS = [f"{neighbors}:{alpha}" for neighbors in (1, 2, 4, 8) for alpha in (0, 1, 3)]
RERANKINGS = [
    *(f"{k1}:{k2}:0.3" for k1 in (5, 10, 20) for k2 in (1, 3, 6) if k2 <= k1),
    *(f"10:3:{weight}" for weight in (0.1, 0.6)),
]
DEPTHS = ["20:6:0.3:50", "20:6:0.3:200"]
RERANKED_DEPTHS = ["rerank 20:6:0.3:50", "rerank 20:6:0.3", "rerank 20:6:0.3:200"]
CLASS_SIZES = (1, 2, 3, 4, 6)
THINNED = ["2:1:0.3", "2:2:0.3", "3:2:0.3", "3:3:0.3", "5:3:0.3", "10:3:0.3", "20:6:0.3"]
DRAWS = 5
TIMED_QUERIES = 500
ROUNDS = 3


def main() -> None:
    """Measure the lineages named on the command line and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lineages", nargs="*", type=Path, metavar="LINEAGE")
    parser.add_argument("--class-sizes", action="store_true", help="measure classes of a few pictures alone")
    parser.add_argument("--results", type=Path, default=Path("eval/ranking/results"), help="without .jsonl or .md")
    options = parser.parse_args()
    lines = options.results.with_suffix(".jsonl")
    stored = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    documents = {document["lineage"]: document for document in stored}
    for folder in options.lineages:
        before = documents.get(folder.name, {"lineage": folder.name})
        found = measure_class_sizes(Lineage(folder)) if options.class_sizes else measure(Lineage(folder))
        documents[folder.name] = before | found
        lines.write_text("".join(json.dumps(document) + "\n" for document in documents.values()))
    text = "\n".join(report(list(documents.values())))
    options.results.with_suffix(".md").write_text(text + "\n")
    print(text)


def measure(lineage: Lineage) -> dict[str, Any]:
    """Return the scores of every setting, in percent, of both networks on both parts, and what settings cost."""
    recipe = without_clusters(lineage.recipe)
    whole = load_benchmark(recipe.data, recipe.task)
    parts = {"test": whole, "held out": replace(whole, query=(rest := held_out(recipe, whole)), gallery=rest)}
    document: dict[str, Any] = {"lineage": lineage.folder.name, "provenance": described(), "parts": {}}
    for part, benchmark in parts.items():
        images = benchmark.query
        sizes = np.bincount(images.labels)
        facts = {"pictures": len(images), "classes": int((sizes > 0).sum()), "largest_class": int(sizes.max())}
        document["parts"][part] = {**facts, "networks": {}}
        for network, vectors in embed_networks(lineage, recipe, benchmark).items():
            with TemporaryDirectory() as folder:
                store = filled(Path(folder), images, vectors)
                scores = {text: score(store, images, vectors, text) for text in ["", *settings()]}
                document["parts"][part]["networks"][network] = scores
                if part == "test" and network == "dense":
                    document["cost"] = costs(store, vectors)
                store.close()
            print(f"{lineage.folder.name} {part} {network}: done", file=sys.stderr)
    return document


def measure_class_sizes(lineage: Lineage) -> dict[str, Any]:
    """Return the mean scores of re-rankings over several draws of a few pictures of each test class, in percent."""
    recipe = without_clusters(lineage.recipe)
    benchmark = load_benchmark(recipe.data, recipe.task)
    images, sizes = benchmark.query, {}
    for network, vectors in embed_networks(lineage, recipe, benchmark).items():
        for size in CLASS_SIZES:
            draws = [thinned_scores(images, vectors, size, np.random.default_rng(draw)) for draw in range(DRAWS)]
            sizes.setdefault(str(size), {})[network] = {
                text: {name: fmean(draw[text][name] for draw in draws) for name in SCORES} for text in draws[0]
            }
            print(f"{lineage.folder.name} {network}: {size} pictures a class: done", file=sys.stderr)
    facts = {"classes": len(np.unique(images.labels)), "draws": DRAWS}
    return {"class_sizes": {**facts, "provenance": described(), "sizes": sizes}}


def thinned_scores(
    images: ImageSet, vectors: FloatArray, size: int, generator: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Return the scores of each setting, in percent, with `size` pictures of each class, at most."""
    order = generator.permutation(len(images))
    nth = np.zeros(len(images), np.int64)
    for label in np.unique(images.labels):
        nth[order[images.labels[order] == label]] = np.arange((images.labels == label).sum())
    kept = np.flatnonzero(nth < size)
    queries = kept if size > 1 else np.flatnonzero(nth == size)
    with TemporaryDirectory() as folder:
        store = filled(Path(folder), images.at(kept), vectors[kept])
        texts = ["", *(f"rerank {text}" for text in THINNED)]
        scores = {text: score(store, images.at(queries), vectors[queries], text) for text in texts}
        store.close()
    return scores


def without_clusters(recipe: Recipe) -> Recipe:
    """Return a recipe whose scores are of neighbours alone."""
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"kmeans_seeds": 0})})


def settings() -> list[str]:
    """Return every setting of the grid, `expand ...`, `rerank ...`, or both."""
    return [
        *(f"expand {text}" for text in EXPANSIONS),
        *(f"rerank {text}" for text in (*RERANKINGS, *DEPTHS)),
        "expand 2:3 rerank 10:3:0.3",
    ]


def parsed(text: str) -> tuple[Expansion | None, Reranking | None]:
    """Return the options that a setting stands for."""
    words = text.split()
    found = dict(zip(words[::2], words[1::2], strict=True))
    return (
        Expansion.parse(found["expand"]) if "expand" in found else None,
        Reranking.parse(found["rerank"]) if "rerank" in found else None,
    )


def described() -> list[str]:
    """Return command, machine, versions and commit of this run."""
    return provenance_lines(("numpy",), more=f"times are the least of {ROUNDS}")


def held_out(recipe: Recipe, benchmark: Benchmark) -> ImageSet:
    """Return pictures of classes that are in the training part, but not among those trained on."""
    everything = load_benchmark(recipe.data.model_copy(update={"train_classes": None}), recipe.task).train
    trained = set(benchmark.train.class_names)
    rest = [number for number, name in enumerate(everything.class_names) if name not in trained][:HELD_OUT_CLASSES]
    if not rest:
        raise SystemExit(f"{benchmark.name}: every class of the training part was trained on; set train_classes")
    return everything.at(np.flatnonzero(np.isin(everything.labels, rest)))


def embed_networks(lineage: Lineage, recipe: Recipe, benchmark: Benchmark) -> dict[str, FloatArray]:
    """Return the normalised embeddings of the queries, which are the gallery too, by each network."""
    found: dict[str, FloatArray] = {}

    def keep(network: str, query: FloatArray, gallery: FloatArray) -> None:
        found[network] = Embeddings(query, benchmark.query.labels).vectors

    pictures = Pictures.decode(
        without_training(benchmark), recipe.data.store_size, store_shape=recipe.data.store_shape
    )
    scorer = Scorer(pictures, recipe, Engine("fp32", "cpu"))
    generation = lineage.load(lineage.number_of("last"))
    network, plan = LineageNetworks(recipe, 0).restore(generation, device=torch.device("cpu"))
    scorer.scorecard(network, plan, repairs=generation.repairs, seen=keep)
    return found


def filled(folder: Path, images: ImageSet, vectors: FloatArray) -> MemmapStore:
    """Return a store of the pictures."""
    store = MemmapStore(folder, vectors.shape[1], writing=True, device="cpu")
    labels = images.labels.tolist()
    store.add([Item(key, label=str(label)) for key, label in zip(images.keys, labels, strict=True)], vectors)
    return store


def score(store: MemmapStore, images: ImageSet, vectors: FloatArray, text: str) -> dict[str, float]:
    """Return the scores of a setting, in percent."""
    expand, rerank = parsed(text)
    labels = [str(label) for label in images.labels.tolist()]
    found = score_through(store, vectors, labels, (1,), ids=images.keys, expand=expand, rerank=rerank)
    return {name: 100 * found[name] for name in SCORES}


def costs(store: MemmapStore, vectors: FloatArray) -> dict[str, dict[str, float]]:
    """Return milliseconds per query of settings, all queries in one call and one by one, and the memory they take."""
    queries, found = vectors[:TIMED_QUERIES], {}
    for text in ("", "expand 1:3", "expand 8:3", *RERANKED_DEPTHS):
        expand, rerank = parsed(text)

        def search(some: FloatArray, options: Mapping[str, Any] = {"expand": expand, "rerank": rerank}) -> None:
            ranked_search(store, some, 10, **options)

        together, alone = [], []
        for _ in range(ROUNDS):
            together.append(seconds(lambda: search(queries)) / len(queries))
            alone.append(seconds(lambda: [search(query[None]) for query in queries[:50]]) / 50)
        grown = peak_of_process(lambda: search(queries)) or 0
        found[text] = {"together": 1e3 * min(together), "alone": 1e3 * min(alone), "grown": grown / 2**20}
    return found


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def report(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the tables of all lineages measured, as lines of Markdown."""
    lines = [
        "# Better ranking, measured",
        "",
        "Written by `python -m eval.ranking.run`; docs/ranking.md says it in words.",
    ]
    whole = [document for document in documents if "parts" in document]
    if whole:
        chosen = {kind: choose(whole, kind) for kind in ("expand", "rerank")}
        lines += ["", "Chosen on held-out classes: " + ", ".join(f"`--{text or 'none'}`" for text in chosen.values())]
    for document in documents:
        lines += ["", f"## {document['lineage']}"]
        lines += ["", *document["provenance"]] if "provenance" in document else []
        for part, found in document.get("parts", {}).items():
            lines += ["", f"### {part}: {found['pictures']:,} pictures, {found['classes']:,} classes"]
            lines += ["", *table(found["networks"])]
        if "cost" in document:
            lines += ["", "### cost", "", *cost_table(document["cost"])]
        if "class_sizes" in document:
            lines += class_size_tables(document["class_sizes"])
    return lines


def class_size_tables(found: Mapping[str, Any]) -> list[str]:
    """Return a table for each number of pictures a class."""
    lines = ["", f"### few pictures of each of {found['classes']:,} classes, mean of {found['draws']} draws"]
    lines += ["", *found["provenance"]]
    for size, networks in found["sizes"].items():
        queried = ", queried by another picture of each class" if size == "1" else ""
        lines += ["", f"#### {size} a class{queried}", "", *table(networks)]
    return lines


def choose(documents: Sequence[Mapping[str, Any]], kind: str) -> str:
    """Return the default of a kind of setting, by the rule at the top; empty where none is allowed."""
    networks = [found for document in documents for found in document["parts"]["held out"]["networks"].values()]
    allowed = {}
    for text in (text for text in networks[0] if text.startswith(kind) and text.count(" ") == 1):
        if all(found[text]["recall@1"] >= found[""]["recall@1"] - TOLERATED for found in networks):
            allowed[text] = fmean(found[text]["map@r"] - found[""]["map@r"] for found in networks)
    return max(allowed, key=lambda text: allowed[text], default="")


def table(networks: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Return plain scores and what each setting adds, in points, side by side for the networks."""
    names = [f"{network} {name}" for network in networks for name in ("R@1", "MAP@R", "R-precision")]
    lines = [f"| setting | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for text in next(iter(networks.values())):
        cells = []
        for found in networks.values():
            shift = 0 if not text else 1
            cells += [f"{found[text][n] - shift * found[''][n]:{'+.1f' if text else '.1f'}}" for n in SCORES]
        lines.append(f"| {text or 'plain'} | {' | '.join(cells)} |")
    return lines


def cost_table(costs: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return what settings cost."""
    lines = [
        f"| setting | ms per query, {TIMED_QUERIES} at a time | ms per query, one at a time | memory of a call, MB |",
        "|---|---:|---:|---:|",
    ]
    for text, cost in costs.items():
        cells = f"{cost['together']:.2f} | {cost['alone']:.2f} | {cost['grown']:,.0f}"
        lines.append(f"| {text or 'plain'} | {cells} |")
    return lines


if __name__ == "__main__":
    main()
