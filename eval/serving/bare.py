"""What `run.py` compares the service with: the same pictures through the bare Embedder, and the right answers.

    python -m eval.serving.bare prepare FOLDER [--lineage lineages/demo | --large] [--queries 1500]
    python -m eval.serving.bare measure FOLDER      reads a batch size per line, prints a JSON line for each

Run by `run.py`, in processes of their own.
"""

import argparse
import io
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.images.preparation import Preparation
from ke_metric.lineage.store import Lineage
from ke_metric.networks.bundle_config import Architecture, NetworkCard
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.recipe.schema import Recipe
from ke_metric.retrieval.embedder import Embedder
from ke_metric.retrieval.index import Index
from ke_metric.stores.contract import Item

K = 10
# Of each measured pass.
SECONDS = 2.0
CONTENT_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
LARGE = {"name": "large", "network": {"backbone": "resnet50", "embedding_size": 128}}
PHOTOGRAPHS = 64


def main() -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["prepare", "measure"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lineage", default="lineages/demo")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--queries", type=int, default=1500)
    given = parser.parse_args()
    if given.task == "measure":
        measure(given.folder)
        return
    embedder, pictures = photographs() if given.large else of_lineage(given.lineage)
    prepare(given.folder, embedder, pictures, queries=given.queries)


def of_lineage(folder: str) -> tuple[Embedder, list[tuple[str, Image.Image]]]:
    """Return a lineage's slim embedder of its last generation, and the labelled test pictures of its benchmark."""
    test = load_benchmark(Lineage(folder).recipe.data).query
    pictures = [(test.class_names[label], test.read(number)) for number, label in enumerate(test.labels)]
    return Embedder.load(folder, "last", "slim", device="cpu"), pictures


def photographs() -> tuple[Embedder, list[tuple[str, Image.Image]]]:
    """Return a ResNet50 with random weights, and pictures as large and as smooth as photographs."""
    recipe, generator = Recipe.model_validate(LARGE), np.random.default_rng(0)
    card = NetworkCard(split=None, normalization=Preparation.of_recipe(recipe))
    network = LineageNetworks(recipe, 0).build(1).eval()
    embedder = Embedder(network, architecture=Architecture.of_recipe(recipe), card=card, description="a ResNet50")
    pictures = []
    for _ in range(PHOTOGRAPHS):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = np.clip(smooth + generator.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
        pictures.append(("", Image.fromarray(noisy)))
    return embedder, pictures


def prepare(folder: Path, embedder: Embedder, pictures: list[tuple[str, Image.Image]], *, queries: int) -> None:
    """Write the gallery and its index, the queries as they are sent, and what they must find."""
    (folder / "gallery").mkdir(parents=True)
    items = []
    for number, (label, picture) in enumerate(pictures):
        path = folder / "gallery" / f"{number:05d}.png"
        picture.save(path)
        items.append(Item(f"gallery/{number:05d}.png", str(path.resolve()), label))
    with Index.create(folder / "index", embedder=embedder) as index:
        for start in range(0, len(items), 1024):
            part = items[start : start + 1024]
            index.add(part, embedder([item.path for item in part]), digest=embedder.digest)
        index.store.flush()
        bodies = [encode(picture, number) for number, (_, picture) in enumerate(pictures[:queries])]
        vectors = embedder(Image.open(io.BytesIO(body)) for _, body in bodies)
        # More than are asked for: those that tie with the last one may take its place.
        hits = index.search(vectors, K + 10, digest=embedder.digest)
        names = [[item.id for item in row] for row in hits.items()]
        facts = index.describe()
    (folder / "queries").mkdir()
    for number, (_, body) in enumerate(bodies):
        (folder / "queries" / f"{number:05d}").write_bytes(body)
    expected = [
        {"type": kind, "ids": ids, "similarities": row.tolist(), "vector": vector.tolist()}
        for (kind, _), ids, row, vector in zip(bodies, names, hits.similarities, vectors, strict=True)
    ]
    facts = {"items": facts["items"], "dimension": facts["dimension"], "model": facts["model"]["description"]}
    (folder / "expected.json").write_text(json.dumps({"facts": facts, "queries": expected}), encoding="utf-8")


def encode(picture: Image.Image, number: int) -> tuple[str, bytes]:
    """Return content type and bytes of a query: large pictures are JPEG, small ones mostly PNG."""
    large = picture.width * picture.height > 100_000
    kind = "JPEG" if large or number % 10 == 3 else "WEBP" if number % 10 == 7 else "PNG"
    file = io.BytesIO()
    picture.save(file, kind, quality=90)
    return CONTENT_TYPES[kind], file.getvalue()


def measure(folder: Path) -> None:
    """Embed the queries from memory, over and over, for a few seconds per line of stdin."""
    embedder = Embedder.load(folder / "index" / "model", device="cpu")
    bodies = [path.read_bytes() for path in sorted((folder / "queries").iterdir())]
    _pass(embedder, bodies, embedder.batch_size, seconds=1.0)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_pass(embedder, bodies, int(line), seconds=SECONDS)), flush=True)


def _pass(embedder: Embedder, bodies: list[bytes], batch_size: int, *, seconds: float) -> dict[str, Any]:
    started, cpu, count = time.perf_counter(), time.process_time(), 0

    def until_late() -> Iterator[Image.Image]:
        for body in itertools.cycle(bodies):
            if time.perf_counter() - started > seconds:
                return
            yield Image.open(io.BytesIO(body))

    for batch in embedder.stream(until_late(), batch_size=batch_size):
        count += len(batch.vectors)
    return {
        "images_per_second": count / (time.perf_counter() - started),
        "cpu_microseconds": (time.process_time() - cpu) / count * 1e6,
    }


if __name__ == "__main__":
    main()
