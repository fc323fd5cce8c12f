"""Scores at the size of Stanford Online Products, beside what was there before, scikit-learn, PML and bare FAISS.

    python -m eval.speed.scores [--rounds 5] [--items 12000 --classes 2250] [--before CHECKOUT]

Embeddings are drawn: classes of 2 to 12 items, of 12 kinds; Recall@1 is about 3/4 at full size (`--items 60502
--classes 11316`). Every way of scoring runs in a process of its own, one after the other, the first of a round being
another one each time; all of them on as many threads as OMP_NUM_THREADS says. `--before` takes a checkout of an
earlier commit and compares full scorecards, three k-means seeds each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from eval.shared.provenance import provenance_lines
from eval.shared.rounds import Clocked, in_turn, ratios, spread
from ke_metric.evaluation.backend import Backend
from ke_metric.evaluation.clusters import compare_clusters
from ke_metric.evaluation.kmeans import assign_clusters

ROOT = Path(__file__).parents[2]
DIMENSION = 512
STREAMED = 1_000_000
MAPPED = 200_000
PARTS = ("scorecard", "ami", "neighbours", "stream", "mapped")
PML = "pytorch-metric-learning"
Row = tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """One way's run.

    Attributes:
        clocked: How long it took.
        grown: Bytes by which its process grew.
        found: The scores.
    """

    clocked: Clocked
    grown: int
    found: dict[str, float]


def main() -> None:
    """Measure and print."""
    asked = _asked()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        labels = _draw(place, asked.items, asked.classes)
        if "scorecard" in asked.parts and asked.before is not None:
            rows += compare_scorecards(place, asked.before, asked.rounds)
        if "ami" in asked.parts:
            rows += compare_ami(place, labels, asked.rounds)
        if "neighbours" in asked.parts:
            rows += compare_neighbours(place, asked.rounds)
        if "stream" in asked.parts:
            rows += stream(place, asked.streamed)
        if "mapped" in asked.parts:
            rows += score_mapped(place, asked.mapped)
    text = report(rows, asked)
    print(text)
    if asked.results is not None:
        asked.results.write_text(text, encoding="utf-8")


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--items", type=int, default=12_000)
    parser.add_argument("--classes", type=int, default=2_250)
    parser.add_argument("--before", type=Path, help="checkout of the commit to compare full scorecards with")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--streamed", type=int, default=STREAMED, help="embeddings that are streamed")
    parser.add_argument(
        "--mapped", type=int, default=MAPPED, help="embeddings of length 128 that are scored in files"
    )
    parser.add_argument("--results", type=Path, help="file for the table")
    return parser.parse_args()


def draw_embeddings(items: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors [N, 512] of length 1 and labels [N]: classes of 2 to 12 items, of 12 kinds, not equally wide."""
    generator, latent, kinds = np.random.default_rng(seed), 48, 12
    sizes = np.full(classes, 2)
    while (left := items - int(sizes.sum())) > 0:
        room = np.flatnonzero(sizes < 12)
        sizes[generator.choice(room, min(left, len(room) // 4 + 1), replace=False)] += 1
    labels = generator.permutation(np.repeat(np.arange(classes), sizes))
    kind = generator.normal(size=(kinds, latent))[generator.integers(kinds, size=classes)]
    centres = kind + generator.normal(size=(classes, latent))
    widths = 0.85 * generator.lognormal(0, 0.4, size=classes)
    places = centres[labels] + widths[labels, None] * generator.normal(size=(items, latent))
    vectors = np.tanh(places @ generator.normal(size=(latent, DIMENSION)) / np.sqrt(latent))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def _draw(place: Path, items: int, classes: int) -> np.ndarray:
    vectors, labels = draw_embeddings(items, classes)
    np.save(place / "vectors.npy", vectors)
    np.save(place / "labels.npy", labels)
    return labels


def measured(way: str, place: Path, checkout: Path = ROOT) -> Measured:
    """Run a way of `scoring_ways` with the package of a checkout, in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("scoring_ways.py")), way, str(place)]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if finished.returncode:
        raise SystemExit(f"{way} of {checkout.name} failed:\n{finished.stderr[-2000:]}")
    said: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return Measured(Clocked(said["wall"], said["cpu"]), int(said["grown"]), said["found"])


def compare_scorecards(place: Path, before: Path, rounds: int) -> list[Row]:
    """Time full scorecards of this checkout and an earlier one."""
    found: dict[Path, list[Measured]] = {ROOT: [], before: []}
    for number in range(rounds):
        for checkout in (ROOT, before) if number % 2 == 0 else (before, ROOT):
            found[checkout].append(measured("scorecard", place, checkout))
    now, then = found[ROOT], found[before]
    _require_same(now[0].found, then[0].found, "the checkout before", 1e-6)
    row = compared("full scorecard, three k-means seeds", "the checkout before", now, then, 0.25)
    scores = [[one.found[name] for one in (now[0], then[0])] for name in ("nmi", "ami")]
    deviations = [max(one.found[f"{name}_std"] for one in (now[0], then[0])) for name in ("nmi", "ami")]
    told = ", ".join(
        f"{name} {mine:.4f} and {theirs:.4f} (deviation of seeds {deviation:.4f})"
        for name, (mine, theirs), deviation in zip(("NMI", "AMI"), scores, deviations, strict=True)
    )
    return [row, ("- its clusters, now and before", told, "", "", "within the seeds' spread", "")]


def _require_same(one: dict[str, float], other: dict[str, float], whose: str, tolerance: float) -> None:
    """End unless neighbour scores are the same: another task is no comparison."""
    for name in set(one) & set(other) - {"nmi", "ami", "nmi_std", "ami_std"}:
        if abs(one[name] - other[name]) > tolerance:
            raise SystemExit(f"{name}: {one[name]} here, {other[name]} of {whose}: not the same task")


def compare_ami(place: Path, labels: np.ndarray, rounds: int) -> list[Row]:
    """Time NMI and AMI of the clusters of one k-means, beside scikit-learn's AMI alone."""
    vectors = np.load(place / "vectors.npy")
    clusters = assign_clusters(vectors, len(np.unique(labels)), 0, backend=Backend("torch"))
    compare_clusters(labels[:100], clusters[:100])
    times = in_turn(
        {
            "ours": lambda: compare_clusters(labels, clusters),
            "theirs": lambda: adjusted_mutual_info_score(labels, clusters),
        },
        rounds,
    )
    nmi, ami = compare_clusters(labels, clusters)
    differences = (
        abs(nmi - normalized_mutual_info_score(labels, clusters)),
        abs(ami - adjusted_mutual_info_score(labels, clusters)),
    )
    found = [[Measured(each, 0, {}) for each in times[name]] for name in ("ours", "theirs")]
    row = compared("NMI and AMI of the same clusters", "scikit-learn's AMI alone", *found, 0.05, digits=4)
    told = f"NMI differs by {differences[0]:.1e}, AMI by {differences[1]:.1e}"
    return [row, ("- the same numbers", told, "", "", "1e-6", _met(max(differences) <= 1e-6))]


def compare_neighbours(place: Path, rounds: int) -> list[Row]:
    """Time the scores of neighbour lists, beside PML's calculator and the search alone."""
    ways = ("neighbours", "calculator", "bare")
    found: dict[str, list[Measured]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in ways[number % 3 :] + ways[: number % 3]:
            found[way].append(measured(way, place))
    ours, theirs = found["neighbours"], found["calculator"]
    _require_same(ours[0].found, theirs[0].found, PML, 1e-4)
    # What is tiny fits into what a process has anyway.
    memory = ratios(*([max(1, each.grown) for each in some] for some in (ours, theirs)))
    grown = [f"{statistics.median(each.grown for each in some) / 2**20:,.0f} MiB" for some in (ours, theirs)]
    best = f"Recall@1 {ours[0].found['recall@1']:.3f}"
    return [
        compared(f"scores without clusters ({best})", PML, ours, theirs, 0.85),
        (
            "- peak memory above the embeddings",
            f"{grown[0]} to {grown[1]}",
            spread(memory),
            "",
            "0.25",
            _met(statistics.median(memory) <= 0.25),
        ),
        compared("scores without clusters", "bare FAISS search of that depth", ours, found["bare"], 1.06),
    ]


def stream(place: Path, count: int) -> list[Row]:
    """Embed many pictures by a network that costs nothing, and a tenth of them."""
    some, many = measured(f"embed:{count // 10}", place), measured(f"embed:{count}", place)
    size = count * DIMENSION * 4 / 2**20
    told = f"{count:,} of {size:,.0f} MiB; a tenth of them: {some.grown / 2**20:,.0f} MiB"
    row = ("embeddings streamed: memory", told, f"{many.grown / 2**20:,.0f} MiB", "", "300 MB")
    return [(*row, _met(many.grown < 300e6))]


def score_mapped(place: Path, count: int) -> list[Row]:
    """Score queries against many embeddings that lie in files, and half of them: memory beside the files."""
    some, many = measured(f"mapped:{count // 2}", place), measured(f"mapped:{count}", place)
    sizes = [each * 128 * 4 / 2**20 for each in (count // 2, count)]
    grown = [each.grown / 2**20 for each in (some, many)]
    share = (grown[1] - grown[0]) / (sizes[1] - sizes[0])
    told = f"{count:,} of {sizes[1]:,.0f} MiB: {grown[1]:,.0f} MiB; half of them: {grown[0]:,.0f} MiB"
    return [("all scores of embeddings in files: growth / that of the files", told, f"{share:.2f}", "", "", "")]


def compared(
    what: str, peer: str, ours: Sequence[Measured], theirs: Sequence[Measured], target: float, digits: int = 2
) -> Row:
    """Return a row of the table: seconds of both, ratios of wall and CPU time, target, whether it is met."""
    walls = [[each.clocked.wall for each in some] for some in (ours, theirs)]
    cpus = [[each.clocked.cpu for each in some] for some in (ours, theirs)]
    wall, cpu = ratios(*walls), ratios(*cpus)
    seconds = " to ".join(f"{statistics.median(each):.3g} s" for each in walls)
    # What a processor did, not what else ran on the machine meanwhile.
    met = _met(statistics.median(cpu) <= target)
    return (f"{what} / {peer}", seconds, spread(wall, digits), spread(cpu, digits), f"{target}", met)


def _met(met: bool) -> str:
    return "yes" if met else "no"


def report(rows: Iterable[Row], asked: argparse.Namespace) -> str:
    """Return the table, and what it depends on."""
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    more = f"{asked.rounds} rounds, OMP_NUM_THREADS {threads} for all ways"
    lines = [
        f"# Scores of {asked.items:,} embeddings of length {DIMENSION} in {asked.classes:,} classes",
        "",
        *provenance_lines(["faiss-cpu", "scikit-learn", "numpy", PML], more=more),
        "",
        "Ratios are medians with the smallest and the largest; whether a target is met goes by CPU time.",
        "",
        "| what | seconds | wall | CPU | target | met |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
