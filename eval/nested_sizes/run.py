"""What a size of a nested embedding costs in Recall@1, and what it saves in bytes and in the time of a search.

    python -m eval.nested_sizes.run --seeds 0,1,2
    python -m eval.nested_sizes.run --seeds 0,1,2 --show

Three trainings of every grid, with its settings and epochs in one generation: `nested` (128 numbers, nested sizes
16, 32 and 64), `alone_32` (32 numbers) and `plain` (128 numbers, whose first numbers are scored as well: what a size
is worth that the loss has not seen). Missing lineages are trained, interrupted ones go on. What they show is kept as
lines of results.jsonl, and stands for them where their folders are gone; the rest is in measurements.json, the tables
in results.md. All networks are the dense ones.

The search is an exact one (FAISS, IndexFlatIP, one thread) of random unit vectors; every round measures all sizes,
and the fastest round of each counts.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
import yaml

from eval.shared.lineages import Results, StoredResult, folder_of, key_of, train
from eval.shared.provenance import provenance_lines
from ke_metric import Lineage
from ke_metric.arrays import FloatArray
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.images.image_set import without_training
from ke_metric.images.pixel_store import Pictures
from ke_metric.lineage.comparison import mean_and_spread, paired_difference
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.recipe.file import load_recipe
from ke_metric.recipe.schema import Recipe
from ke_metric.scoring import Scorer
from ke_metric.training.engine import Engine

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GRIDS = ("glyphs_retrieval", "emoji_retrieval")
WHOLE, ALONE, NESTED = 128, 32, (16, 32, 64)
TRAININGS = {
    "nested": (f"network.embedding_size={WHOLE}", f"network.nested_sizes={list(NESTED)}"),
    "alone_32": (f"network.embedding_size={ALONE}",),
    "plain": (f"network.embedding_size={WHOLE}",),
}
GALLERY, QUERIES, ROUNDS, NEIGHBOURS = 100_000, 200, 7, 10


def main() -> None:
    """Train what is missing, measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="0,1,2 when left out")
    parser.add_argument("--lineages", type=Path, default=Path("lineages/nested_sizes"), help="where lineages are")
    parser.add_argument("--show", action="store_true", help="train and measure nothing")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    results, measured = Results(HERE / "results.jsonl"), HERE / "measurements.json"
    kept: dict[str, Any] = json.loads(measured.read_text(encoding="utf-8")) if measured.exists() else {}
    if not options.show:
        # What is asked first is trained first.
        for name in TRAININGS:
            for seed in seeds:
                for grid in GRIDS:
                    recipe, path = recipe_of(grid, name, seed)
                    grow(recipe, path, options.lineages, results, kept.setdefault("untrained_sizes", {}))
                    measured.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        kept["search"] = search_costs()
        kept["provenance"] = provenance_lines(["faiss-cpu", "numpy"], more=f"{ROUNDS} rounds, seeds {options.seeds}")
        measured.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    text = report(results, kept, seeds)
    (HERE / "results.md").write_text(text, encoding="utf-8")
    print(text)


def recipe_of(grid: str, name: str, seed: int) -> tuple[Recipe, Path]:
    """Return the recipe of a training, and the file that it comes from."""
    path = ROOT / "eval" / "budget" / "grids" / f"{grid}.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    overrides = [
        *document["set"], f"name=nested_sizes-{grid}-{name}", "generations=1",
        f"training.epochs={document['epochs']}", *TRAININGS[name],
    ]  # fmt: skip
    recipe = ROOT / document["recipe"]
    return load_recipe(recipe, overrides, seed=seed), recipe


def grow(
    recipe: Recipe, path: Path, lineages: Path, results: Results, untrained: dict[str, Mapping[str, float]]
) -> None:
    """Train a lineage where neither it nor its line is there, and write down what it shows."""
    is_plain = recipe.network.embedding_size == WHOLE and not recipe.network.nested_sizes
    if results.get(recipe) is not None and (not is_plain or key_of(recipe) in untrained):
        return
    train(recipe, path, lineages)
    lineage = Lineage(folder_of(recipe, lineages))
    if lineage.facts["status"] != "finished":
        return
    if is_plain:
        untrained[key_of(recipe)] = recall_by_size(lineage)
    results.add(lineage)


def recall_by_size(lineage: Lineage) -> dict[str, float]:
    """Return size to the Recall@1 of the last generation's embeddings cut to it, whatever they were trained for."""
    network = lineage.recipe.network.model_copy(update={"nested_sizes": NESTED})
    evaluation = lineage.recipe.evaluation.model_copy(update={"slim": False})
    recipe = lineage.recipe.model_copy(update={"network": network, "evaluation": evaluation})
    benchmark = without_training(load_benchmark(recipe.data, recipe.task))
    pictures = Pictures.decode(benchmark, recipe.data.store_size, store_shape=recipe.data.store_shape)
    generation = lineage.load(lineage.numbers[-1])
    dense, plan = LineageNetworks(recipe, len(benchmark.train.class_names)).restore(generation)
    card = Scorer(pictures, recipe, Engine("fp32", "cpu")).scorecard(dense, plan)
    assert card.sizes is not None, "there are sizes to be scored"
    return {size: scores["recall@1"] for size, scores in card.sizes["dense"].items()}


def search_costs() -> dict[str, dict[str, float]]:
    """Return size to bytes of a vector, and queries per second one by one and all at once, of an exact search."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    galleries = {size: unit_vectors(rng, GALLERY, size) for size in (*NESTED, WHOLE)}
    queries = {size: unit_vectors(rng, QUERIES, size) for size in galleries}
    seconds: dict[int, dict[str, list[float]]] = {size: {"one": [], "many": []} for size in galleries}
    for _ in range(ROUNDS):
        for size, gallery in galleries.items():
            index = faiss.IndexFlatIP(size)
            index.add(gallery)
            for kind, parts in (("one", np.split(queries[size], QUERIES)), ("many", [queries[size]])):
                started = time.perf_counter()
                for part in parts:
                    index.search(part, NEIGHBOURS)
                seconds[size][kind].append(time.perf_counter() - started)
    faiss.omp_set_num_threads(threads)
    return {
        str(size): {"bytes": float(4 * size)} | {kind: QUERIES / min(times) for kind, times in found.items()}
        for size, found in seconds.items()
    }


def unit_vectors(rng: np.random.Generator, count: int, size: int) -> FloatArray:
    """Return random vectors of length 1, float32 [count, size]."""
    vectors = rng.standard_normal((count, size), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def report(results: Results, kept: Mapping[str, Any], seeds: Sequence[int]) -> str:
    """Return the tables as Markdown."""
    lines = ["# Nested embeddings, measured", "", *kept.get("provenance", []), ""]
    lines += ["Recall@1 in percent, mean ± standard deviation over seeds; `untrained` is the plain training cut.", ""]
    for grid in GRIDS:
        lines += [f"## {grid}", "", *recall_table(grid, results, kept.get("untrained_sizes", {}), seeds), ""]
    if "search" in kept:
        lines += ["## Exact search", "", f"{GALLERY:,} vectors, {NEIGHBOURS} neighbours, one thread", ""]
        lines += search_table(kept["search"])
    return "\n".join(lines).rstrip("\n") + "\n"


def recall_table(
    grid: str, results: Results, untrained: Mapping[str, Mapping[str, float]], seeds: Sequence[int]
) -> list[str]:
    """Return the table of one grid: a row for each size, and nested 32 against 32 alone."""
    recipes = {name: {seed: recipe_of(grid, name, seed)[0] for seed in seeds} for name in TRAININGS}
    found = {
        name: {seed: stored for seed, recipe in own.items() if (stored := results.get(recipe))}
        for name, own in recipes.items()
    }

    def recalls(name: str, size: int) -> dict[int, float]:
        return {seed: recall(stored, size) for seed, stored in found[name].items()}

    cut = {seed: untrained.get(key_of(recipe), {}) for seed, recipe in recipes["plain"].items()}
    lines = ["| size | nested | trained at that size alone | untrained |", "|---:|---:|---:|---:|"]
    told = []
    for size in (*NESTED, WHOLE):
        alone = {ALONE: "alone_32", WHOLE: "plain"}.get(size)
        ours, theirs = recalls("nested", size), recalls(alone, size) if alone else {}
        not_seen = {seed: by_size[str(size)] for seed, by_size in cut.items() if str(size) in by_size}
        lines.append(f"| {size} | " + " | ".join(map(cell, (ours, theirs, not_seen))) + " |")
        if difference := paired_difference(ours, theirs):
            each = (f"{100 * (ours[seed] - theirs[seed]):+.1f}" for seed in sorted(ours.keys() & theirs.keys()))
            told.append(f"Nested less alone at {size}: {100 * difference.mean:+.1f} points ({', '.join(each)})")
    return [*lines, *(["", *told] if told else [])]


def recall(stored: StoredResult, size: int) -> float:
    """Return the Recall@1 of a training's last generation at a size."""
    card = stored.scorecard(stored.numbers[-1])
    if size == stored.recipe.network.embedding_size:
        return card.dense["recall@1"]
    assert card.sizes is not None, "trained without this size"
    return card.sizes["dense"][str(size)]["recall@1"]


def cell(values: Mapping[int, float]) -> str:
    """Return mean and spread of values by seed, in percent."""
    if not values:
        return "–"
    mean, spread = mean_and_spread([100 * value for value in values.values()])
    return f"{mean:.1f}" + ("" if spread is None else f" ± {spread:.1f}") + f" (n={len(values)})"


def search_table(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the table of bytes and queries per second, beside those of the whole embedding."""
    whole = found[str(WHOLE)]
    lines = ["| size | bytes per vector | queries/s, one by one | | queries/s, 200 at once | |"]
    lines.append("|---:|---:|---:|---:|---:|---:|")
    for size, own in sorted(found.items(), key=lambda pair: int(pair[0])):
        rates = " | ".join(f"{own[kind]:,.0f} | x {own[kind] / whole[kind]:.1f}" for kind in ("one", "many"))
        lines.append(f"| {size} | {own['bytes']:.0f} | {rates} |")
    return lines


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
