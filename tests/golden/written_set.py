"""What this version stores, kept as files: `python tests/golden/written_set.py OUT` writes such a set anew.

The set in `written/` must stay as it is: later versions have to open what an earlier one wrote. `answers.json` in it
has what the version that wrote it found.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from golden_world import CLASSES, drawing, must, save, to_text

from ke_metric import Embedder

WRITTEN = Path(__file__).parent / "written"
RECIPE = """
generations: 2
data: {benchmark: folder, root: pictures, image_size: 24, store_size: 24}
augmentation: {scale: [0.6, 1.0]}
network: {backbone: timm/test_efficientnet, embedding_size: 8}
loss: {name: MultiSimilarityLoss}
batches: {size: 8, images_per_class: 2}
optimizer: {name: adamw, learning_rate: 3e-3}
training: {epochs: 4, precision: fp32}
evaluation: {resize: 24, recall_at: [1, 2, 4], backend: torch, kmeans_seeds: 1}
"""
INDEXES = {"memmap": ("--store", "memmap"), "faiss": ("--store", "faiss", "--factory", "HNSW8")}
CPU = ("--device", "cpu")


def write_set() -> None:
    """Write pictures, recipe, lineage, bundle and two indexes into the current folder."""
    for number, name in enumerate(CLASSES[:8]):
        for picture in range(4):
            save(drawing(number, picture), Path("pictures", name, f"{picture}.bmp"))
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    must("train", "recipe.yaml", "--lineage", "lineage", *CPU)
    must("slim", "--lineage", "lineage", "--gen", 2, "-o", "bundle")
    for name, options in INDEXES.items():
        must("index", "build", "pictures", "--bundle", "bundle", "-o", name, *options, *CPU)
    Path("answers.json").write_text(to_text(answers()) + "\n", encoding="utf-8")
    # Tensorboard's file is for people. A database that was read keeps a file beside it, which nobody needs later.
    shutil.rmtree(Path("lineage", "tensorboard"))
    for name in INDEXES:
        with closing(sqlite3.connect(Path(name, "items.sqlite"))) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def answers() -> dict:
    """Return what the set in the current folder gives when it is opened."""
    found = {"eval": must("eval", "--lineage", "lineage", "--gen", 2, *CPU, "--json")["json"]}
    for name in INDEXES:
        search = must("search", "pictures", "--index", name, "-k", 3, "--keep-self", *CPU, "--json")["json"]
        found[name] = [
            {"label": query["label"], "hits": [[hit["id"], hit["similarity"]] for hit in query["results"]]}
            for query in search["queries"]
        ]
    embedder = Embedder.load("bundle", device="cpu")
    paths = sorted(Path("pictures").rglob("*.bmp"))[::5]
    found["vectors"] = embedder(paths).tolist()
    found["digest"] = embedder.digest
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    os.chdir(folder)
    write_set()
