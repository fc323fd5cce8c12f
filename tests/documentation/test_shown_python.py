"""Every fenced block of Python is run by some test: those that no other test runs are run here."""

import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from shown_blocks import BLOCKS

sys.path.append(str(Path(__file__).parents[1] / "export"))  # made

from made import SIZE, make_embedder, make_pictures

from ke_metric import Embedder
from ke_metric.export.export import Evidence, ExportSettings, export
from ke_metric.retrieval.index import StoreSettings, open_store
from ke_metric.stores.contract import Item

PYTHON = [block for block in BLOCKS if block.language == "python"]
RUN_ELSEWHERE = {
    "README.md": "tests/documentation/test_documents.py",
    "docs/retrieval.md": "tests/retrieval/test_pipelines.py",
}
RUN_HERE = ("docs/export.md", "docs/ranking.md", "docs/splitting.md")


def run(document, names, *, but=""):
    """Run the blocks of a document one after the other, all but those with a word; return the names they leave."""
    for block in PYTHON:
        if block.document == document and not (but and but in block.text):
            exec(compile(block.text, block.name, "exec"), names)
    return names


def test_every_document_with_python_has_a_test_that_runs_it():
    assert {block.document for block in PYTHON} == {*RUN_HERE, *RUN_ELSEWHERE}
    for document, test in RUN_ELSEWHERE.items():
        assert document.rpartition("/")[-1] in (Path(__file__).parents[2] / test).read_text(encoding="utf-8")


def test_splitting():
    names = run("docs/splitting.md", {})
    assert all(torch.isfinite(each).all() for each in names["statistics"].values())
    assert sum(p.numel() for p in names["slim"].parameters()) < sum(p.numel() for p in names["network"].parameters())


def test_ranking(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with closing(open_store(tmp_path, 8, StoreSettings(kind="memmap"), writing=True)) as store:
        store.add([Item(f"{number}.png") for number in range(30)], vectors)
        names = run("docs/ranking.md", {"index": SimpleNamespace(store=store), "vectors": vectors[:3]})
    assert names["hits"].similarities.shape == (3, 10)


def test_export(tmp_path, monkeypatch):
    """The block that prepares pictures by itself has a test of its own (tests/export/test_docs.py)."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    embedder, pictures = make_embedder(), make_pictures()
    for folder, kind in (("onnx", "onnx"), ("program", "torch-export")):
        export(embedder, Path(folder), settings=ExportSettings(kind), evidence=Evidence(pictures, source="x"))
    Image.new("RGB", (50, 40), (200, 60, 20)).save("a.png")
    monkeypatch.setattr(Embedder, "load", lambda folder: embedder)
    images = torch.rand(3, 3, SIZE, SIZE)
    names = {"np": np, "torch": torch, "images": images, "paths": [Path("a.png")]}
    run("docs/export.md", names, but="def prepare")
    np.testing.assert_allclose(names["network"](images.numpy()), names["vectors"].detach().numpy(), atol=1e-5)
