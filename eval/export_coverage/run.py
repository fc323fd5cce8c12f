"""Export embedding networks of torchvision and timm, dense and slim, in both formats, and compare each with PyTorch.

    pip install -e '.[timm,export]'
    python -m eval.export_coverage.run run --out eval/export_coverage/results.jsonl [--networks NAME ...]
    python -m eval.export_coverage.run table eval/export_coverage/results.jsonl --out eval/export_coverage/results.md

`run` writes a row per network, width and format as they come; a second call does those that are missing. Weights are
drawn, not trained; batch statistics come from pictures. The pictures are glyphs at 64 pixels. `table` makes the
document.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.errors import KeMetricError
from ke_metric.export.export import Evidence, ExportSettings, export
from ke_metric.export.record import versions
from ke_metric.images.preparation import Preparation
from ke_metric.networks.bundle_config import Architecture, NetworkCard
from ke_metric.networks.dense import build_network
from ke_metric.recipe.schema import Recipe
from ke_metric.retrieval.embedder import Embedder
from ke_metric.split.hypotheses import extract_slim
from ke_metric.split.planning import plan_split

NETWORKS = (
    "resnet18",
    "resnet50",
    "googlenet",
    "densenet121",
    "vgg11_bn",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "shufflenet_v2_x1_0",
    "convnext_tiny",
    "regnet_y_400mf",
    "squeezenet1_1",
    "timm/test_resnet",
    "timm/test_vit",
    "timm/convnext_atto",
)
FORMATS = ("onnx", "torch-export")
SIZE, DIMENSION, PICTURES, RATE = 64, 32, 64, 0.5

Row = dict[str, Any]


def main() -> None:
    """Export networks, or make the document of those that were exported."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="export networks and keep what came of it")
    running.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="file of the rows")
    running.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME", help="these alone")
    running.set_defaults(work=lambda options: run(options.out, options.networks))
    making = commands.add_parser("table", help="make the document")
    making.add_argument("rows", type=Path, metavar="FILE.jsonl", help="what `run` wrote")
    making.add_argument("--out", type=Path, required=True, metavar="FILE.md", help="the document")
    making.set_defaults(work=lambda options: options.out.write_text(table(read(options.rows)), encoding="utf-8"))
    options = parser.parse_args()
    options.work(options)


def run(out: Path, names: list[str]) -> None:
    """Export every network in every way that has no row yet."""
    done = {key(row) for row in read(out)} if out.exists() else set()
    recipe = recipe_of("resnet18")
    benchmark = load_benchmark(recipe.data, recipe.task)
    for name in names:
        if all((name, width, kind) in done for width in ("dense", "slim") for kind in FORMATS):
            continue
        pictures = None
        for width, embedder in embedders(name):
            if pictures is None:
                chosen = np.linspace(0, len(benchmark.query) - 1, PICTURES).astype(int)
                pictures = np.stack([embedder.prepare(benchmark.query.read(n)) for n in chosen])
                warm_up(embedder, pictures)
            for kind in FORMATS:
                if (name, width, kind) not in done:
                    row = {"network": name, "width": width, "format": kind} | try_export(embedder, kind, pictures)
                    print(json.dumps(row), flush=True)
                    with out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")


def recipe_of(name: str) -> Recipe:
    """Return the recipe of a network."""
    return Recipe.model_validate(
        {
            "name": "x",
            "data": {"benchmark": "glyphs", "image_size": SIZE},
            "network": {"backbone": name, "embedding_size": DIMENSION},
            "split": {"rate": RATE},
        }
    )


def embedders(name: str) -> Iterator[tuple[str, Embedder]]:
    """Yield the dense embedder, and then, cut out of it as it is by then, the slim one."""
    recipe = recipe_of(name)
    torch.manual_seed(0)
    network = build_network(recipe.network, SIZE).eval()
    card = NetworkCard(normalization=Preparation.of_recipe(recipe))
    architecture = Architecture.of_recipe(recipe)
    yield "dense", Embedder(network, architecture=architecture, card=card)
    plan = plan_split(network, torch.zeros(2, 3, SIZE, SIZE), rate=RATE, kind="kels")
    yield "slim", Embedder(extract_slim(network, plan), architecture=architecture, card=card)


def warm_up(embedder: Embedder, pictures: np.ndarray) -> None:
    """Give the batch norms the statistics of pictures: fresh ones would hide a wrong fusion."""
    for module in embedder.network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.5
            module.train()
    for _ in range(4):
        embedder.embed_pixels(pictures)
    embedder.network.eval()


def try_export(embedder: Embedder, kind: str, pictures: np.ndarray) -> Row:
    """Export once, and return what came of it."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            record = export(
                embedder,
                Path(folder) / "e",
                settings=ExportSettings(kind),
                evidence=Evidence(pictures, source="glyphs"),
            )
        except KeMetricError as error:
            return {"ok": False, "reason": str(error), "versions": versions()}
    worst = record.verification.worst
    return {
        "ok": True,
        "max_difference": worst.max_difference,
        "smallest_cosine": min(found.smallest_cosine for found in record.verification.batches),
        "bytes": sum(facts.bytes for facts in record.files.values()),
        "parameters": sum(parameter.numel() for parameter in embedder.network.parameters()),
        "seconds": round(time.perf_counter() - start, 1),
        "versions": record.versions,
    }


def read(path: Path) -> list[Row]:
    """Return the rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def key(row: Row) -> tuple[str, str, str]:
    """Return what a row is about."""
    return row["network"], row["width"], row["format"]


def table(rows: list[Row]) -> str:
    """Return the document: a line per network and width, a column per format."""
    by_key = {key(row): row for row in rows}
    made = "; ".join(f"{name} {number}" for name, number in rows[0]["versions"].items())
    lines = [
        f"Largest |difference| of embeddings from PyTorch's, {PICTURES} glyphs at {SIZE} pixels in batches of 1, 3 "
        f"and 32; slim at rate {RATE}; weights drawn, not trained. Made by `eval.export_coverage.run` ({made}).",
        "",
        "| network | width | parameters | ONNX | torch.export |",
        "|---|---|---|---|---|",
    ]
    for name, width in dict.fromkeys((row["network"], row["width"]) for row in rows):
        found = [by_key.get((name, width, kind), {"ok": False, "reason": "not run"}) for kind in FORMATS]
        count = next((f"{row['parameters']:,}" for row in found if row["ok"]), "")
        cells = [f"{row['max_difference']:.1e}" if row["ok"] else row["reason"] for row in found]
        lines.append(f"| {name} | {width} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
