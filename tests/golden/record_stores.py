"""The parts of the record that hold embeddings: indexes of every store, searches, bundles and exports."""

from __future__ import annotations

import json
import sqlite3
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from golden_world import bits, cleaned, contents, described, digest, must, plain

from ke_metric import Embedder, Index, Predictor, load_network

STORES = {
    "memmap": ("--store", "memmap"),
    "automatic": (),
    "flat": ("--factory", "Flat"),
    "graph": ("--factory", "HNSW8", "--search", "efSearch=20"),
    "lists": ("--factory", "IVF2,Flat", "--search", "nprobe=1"),
    "quantised": ("--factory", "SQ8"),
}
MILVUS = {"milvus": ("--store", "milvus", "--collection", "animals")}
SEARCHES = {
    "plain": (),
    "condition": ("--where", 'label in ["ant", "cat"] and id != "cat/1.bmp"'),
    "expanded": ("--expand", "2:3"),
    "reranked": ("--rerank", "5:3:0.3"),
    "expanded and reranked": ("--expand", "2", "--rerank", "4:2:0.5:20", "--where", 'label != "cat"'),
    "itself": ("--keep-self", "--no-labels"),
}
QUERIES = ("pictures/ant/0.bmp", "queries/cat")


def stores() -> dict:
    """Embeddings, and an index of every kind that the installed libraries permit."""
    embed = must(
        "embed",
        "pictures",
        "-o",
        "embeddings",
        "--lineage",
        "lineages/base",
        "--gen",
        2,
        "--network",
        "slim",
        "--json",
    )
    items = plain(Path("embeddings", "items.csv").read_text(encoding="utf-8")).splitlines()
    found = {"embed": embed, "files": contents(Path("embeddings")), "items": items[:4]}
    kinds = STORES | (MILVUS if find_spec("milvus_lite") else {})
    return found | {name: _store(name, options) for name, options in kinds.items()}


def _store(name: str, options: tuple[str, ...]) -> dict:
    folder = Path("indexes", name)
    found = {"build": _sizeless(must("index", "build", "--from", "embeddings", "-o", folder, *options, "--json"))}
    found["files"] = contents(folder) if name != "milvus" else described(folder / "index.json")
    for kind, words in SEARCHES.items():
        found[f"search, {kind}"] = must("search", *QUERIES, "--index", folder, "-k", 3, *words, "--json")
    found["table"] = must("search", QUERIES[0], "--index", folder, "-k", 2)
    found["remove"] = _sizeless(must("index", "remove", "ant/1.bmp", "bee/2.bmp", "--index", folder, "--json"))
    condition = ("--where", 'label == "fox"')
    found["rehearsed"] = must("index", "remove", *condition, "--dry-run", "--index", folder, "--json")
    found["remove, condition"] = _sizeless(must("index", "remove", *condition, "--index", folder, "--json"))
    found["add"] = _sizeless(must("index", "add", "odd", "--prefix", "more", "--index", folder, "--json"))
    found["replace"] = _sizeless(must("index", "add", "queries", "--replace", "--index", folder, "--json"))
    found["info"] = _sizeless(must("index", "info", "--index", folder, "--json"))
    found["changed"] = must("search", *QUERIES, "--index", folder, "-k", 3, "--json")
    if (folder / "items.sqlite").exists():
        found["rows"] = _rows(folder / "items.sqlite")
        found["vectors"] = described(folder / "vectors.f32")
    with Index.open(folder, device="cpu") as index:
        items = [[item.id, plain(str(item.path)), item.label] for item in _items(index)]
        found["items"] = {"count": len(items), "last": items[-3:], "all": digest(json.dumps(items))}
    return found


def _items(index: Index) -> list:
    return sorted((item for items, _ in index.store.read() for item in items), key=lambda item: item.id)


def _sizeless(answer: dict) -> dict:
    """Leave out how many bytes a store takes: its database holds paths, which are longer elsewhere."""
    answer["json"].get("store", {}).pop("bytes", None)
    return answer


def _rows(path: Path) -> dict:
    """Return every table of a database with its columns and rows."""
    with sqlite3.connect(path) as database:
        tables = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
        found = {}
        for name, sql in tables:
            rows = database.execute(f'SELECT * FROM "{name}"').fetchall()
            shown = [cleaned([_shown(value) for value in row]) for row in rows]
            found[name] = {"made": sql, "count": len(rows), "rows": shown[:3] + shown[-2:]}
    return found


def _shown(value: object) -> object:
    return bits(value) if isinstance(value, bytes) else value


def bundles() -> dict:
    """Stored networks, and what Python makes of them."""
    found = {}
    for name, lineage, network in (
        ("slim", "base", "slim"),
        ("dense", "base", "dense"),
        ("classifier", "classes", "slim"),
        ("single weights", "other", "dense"),
    ):
        folder = Path("bundles", name.replace(" ", "_"))
        options = ("--lineage", f"lineages/{lineage}", "--network", network, "--gen", "last")
        found[name] = {"told": must("slim", *options, "-o", folder, "--json"), "files": contents(folder)}
        with torch.no_grad():
            answers = load_network(folder)(torch.linspace(0, 1, 2 * 3 * 24 * 24).reshape(2, 3, 24, 24))
        found[name]["answers"] = answers.double().abs().sum(dim=1).tolist()
    found["embedder"] = _embedder()
    found["predictor"] = _predictor()
    return found


def _embedder() -> dict:
    embedder = Embedder.load("lineages/base", generation=2, network="dense", device="cpu")
    vectors = embedder([Path("pictures/ant/0.bmp"), Path("odd/dog/clear.png"), Path("odd/bee/turned.jpg")])
    bundled = Embedder.load("bundles/dense", device="cpu")
    return {
        "vectors": np.asarray(vectors).tolist(),
        "same digest": embedder.digest == bundled.digest,
        "digest": bits(embedder.digest),
    }


def _predictor() -> list:
    predictor = Predictor.load("bundles/classifier", device="cpu")
    return [str(type(entry).__name__) for entry in predictor.predict([Path("pictures/ant/0.bmp")], k=3)]


def exports() -> dict:
    """What an export says of itself; without a library that writes it, nothing."""
    found = {}
    base = ("--lineage", "lineages/base", "--gen", "2", "--network", "slim")
    if find_spec("onnxscript") and find_spec("onnxruntime"):
        classes = ("--lineage", "lineages/classes", "--gen", "2", "--network", "dense")
        for name, options in (
            ("onnx", (*base, "--format", "onnx")),
            ("onnx classes", (*classes, "--format", "onnx")),
            ("onnx int8", (*base, "--format", "onnx", "--int8", "dynamic", "--max-loss", "100")),
        ):
            found[name] = _export(name, options)
    found["program"] = _export("program", (*base, "--format", "torch-export"))
    return found


def _export(name: str, options: tuple[str, ...]) -> dict:
    folder = Path("exports", name.replace(" ", "_"))
    told = must("export", *options, "-o", folder, "--json")
    found = {"told": told, "files": contents(folder)}
    # A program of torch.export holds, for whoever looks for a fault in it, which line of which file made each step:
    # its bytes change when a file is moved. What it computes is compared with PyTorch when it is exported.
    for record in (told["json"], found["files"]["export.json"]):
        if "model.pt2" in record["files"]:
            record["files"]["model.pt2"] = "<not read>"
    return found
