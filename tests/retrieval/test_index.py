"""The index folder: what it holds, that it needs nothing else, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ke_metric import Embedder, Index
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval.index import MANIFEST, StoreSettings, results_of
from ke_metric.stores.contract import Item, Where

MEMMAP = StoreSettings(kind="memmap")
DIGEST, OTHER = "a" * 64, "b" * 64


def unit(rows, dimension=4, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def refused(code, call, *words):
    with pytest.raises(KeMetricError) as caught:
        call()
    assert caught.value.exit_code == code
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.fixture(scope="module")
def pictures():
    noise = np.random.default_rng(3).integers(0, 256, (6, 50, 40, 3)).astype(np.uint8)
    return [Image.fromarray(picture) for picture in noise]


@pytest.fixture
def vectors_only(tmp_path):
    with Index.create(tmp_path / "index", digest=DIGEST, dimension=4, settings=MEMMAP) as index:
        index.add([Item(str(row), label=str(row % 2)) for row in range(10)], unit(10), digest=DIGEST)
    return tmp_path / "index"


def test_the_folder_is_all_that_a_search_needs(grown, pictures, tmp_path):
    """Embedded, stored, moved, opened and searched: every picture finds itself, by the network that lies inside."""
    copy = shutil.copytree(grown.folder, tmp_path / "lineage")
    embedder = Embedder.load(copy, 2, "slim")
    items = [Item(f"{number}.png", path=f"/x/{number}.png", label="n") for number in range(len(pictures))]
    with Index.create(tmp_path / "index", embedder=embedder, settings=MEMMAP) as index:
        index.add(items, embedder(pictures), digest=embedder.digest)
    shutil.rmtree(copy)
    (tmp_path / "index").rename(tmp_path / "moved")
    with Index.open(tmp_path / "moved") as index:
        assert index.embedder.digest == embedder.digest
        queries = index.embedder(pictures)
        results = results_of(index.search(queries, 3, digest=index.embedder.digest))
        assert [row[0].id for row in results] == [item.id for item in items]
        assert all([result.rank for result in row] == [1, 2, 3] for row in results)
        assert results[0][0].document.keys() == {"rank", "id", "path", "label", "similarity"}
        assert results[0][0].similarity == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(
            [r.similarity for r in results[0]], np.sort(queries[0] @ queries.T)[::-1][:3], atol=1e-6
        )
        facts = index.describe()
    assert facts["items"] == 6
    assert facts["model"] == {"digest": embedder.digest, "description": embedder.description, "stored_here": True}
    assert facts["store"]["kind"] == "memmap"


@pytest.mark.parametrize("kind", ["memmap", "faiss", "milvus"])
def test_every_kind_of_store_gives_the_same_answers(kind, tmp_path):
    if kind == "milvus":
        pytest.importorskip("milvus_lite")
    vectors, queries = unit(50), unit(7, seed=1)
    with Index.create(tmp_path / "index", digest=DIGEST, dimension=4, settings=StoreSettings(kind=kind)) as index:
        index.add([Item(str(row), label=str(row % 5)) for row in range(50)], vectors, digest=DIGEST)
        index.remove(["3", "4"])
    with Index.open(tmp_path / "index") as index:
        assert len(index) == 48
        hits = index.search(queries, 5, digest=DIGEST)
        labelled = results_of(index.search(queries, 5, digest=DIGEST, where=Where.parse('label == "2"')))
    left = np.delete(np.arange(50), [3, 4])
    best = left[np.argsort(-queries @ vectors[left].T, axis=1)[:, :5]]
    np.testing.assert_allclose(hits.similarities, np.take_along_axis(queries @ vectors.T, best, axis=1), atol=1e-6)
    assert all(result.label == "2" for row in labelled for result in row)


def test_vectors_of_another_network_are_refused(vectors_only):
    with Index.open(vectors_only, writing=True) as index:
        refused(
            ExitCode.DATA, lambda: index.search(unit(1), 1, digest=OTHER), "queries: made by another network", "bbbb"
        )
        refused(ExitCode.DATA, lambda: index.add([Item("x")], unit(1), digest=OTHER), "another network")
        assert len(index) == 10
        index.add([Item("x")], unit(1, seed=5), digest=DIGEST)
        assert len(index) == 11


def test_another_network_in_the_folder_is_refused(grown, tmp_path):
    embedder = Embedder.load(grown.folder, 1)
    Index.create(tmp_path / "index", embedder=embedder, settings=MEMMAP).close()
    shutil.rmtree(tmp_path / "index" / "model")
    Embedder.load(grown.folder, 2).save(tmp_path / "index" / "model")
    with Index.open(tmp_path / "index") as index:
        refused(ExitCode.DATA, lambda: index.embedder, "another network", "model")


def test_an_index_of_vectors_alone_cannot_embed(vectors_only):
    with Index.open(vectors_only) as index:
        assert not index.has_embedder
        refused(ExitCode.DATA, lambda: index.embedder, "made of vectors alone", "aaaaaaaaaaaa")


def test_a_taken_folder_is_left_alone(tmp_path, vectors_only):
    before = {path.name for path in vectors_only.iterdir()}
    refused(ExitCode.USAGE, lambda: Index.create(vectors_only, digest=DIGEST, dimension=4), "exists")
    assert {path.name for path in vectors_only.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    refused(ExitCode.USAGE, lambda: Index.create(tmp_path / "file", digest=DIGEST, dimension=4), "exists")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_store_that_cannot_be_made_leaves_nothing(tmp_path):
    bad = StoreSettings(kind="faiss", factory="Flatt")
    refused(
        ExitCode.USAGE, lambda: Index.create(tmp_path / "index", digest=DIGEST, dimension=4, settings=bad), "Flatt"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_milvus_file_is_found_from_another_folder(tmp_path, monkeypatch):
    pytest.importorskip("milvus_lite")
    monkeypatch.chdir(tmp_path)
    settings = StoreSettings.of(kind="milvus", uri="gallery.db")
    with Index.create("index", digest=DIGEST, dimension=4, settings=settings) as index:
        index.add([Item("a")], unit(1), digest=DIGEST)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for writing in (False, True):
        with Index.open(tmp_path / "index", writing=writing) as index:
            assert len(index) == 1
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_collection_of_another_index_is_refused(tmp_path):
    """Two galleries of one network in one database, by the default name of a collection: they would be mixed."""
    pytest.importorskip("milvus_lite")
    settings = StoreSettings.of(kind="milvus", uri=str(tmp_path / "gallery.db"))
    with Index.create(tmp_path / "index", digest=DIGEST, dimension=4, settings=settings) as index:
        index.add([Item("a")], unit(1), digest=DIGEST)
    refused(
        ExitCode.USAGE,
        lambda: Index.create(tmp_path / "other", digest=DIGEST, dimension=4, settings=settings),
        "holds 1 items already",
        "--collection",
    )
    assert not (tmp_path / "other").exists()
    with Index.open(tmp_path / "index") as index:
        assert len(index) == 1


def test_an_empty_uri_is_no_file_of_its_own(tmp_path):
    """What `--uri "$VARIABLE"` is where nobody has set the variable."""
    pytest.importorskip("milvus_lite")
    settings = StoreSettings.of(kind="milvus", uri="")
    refused(
        ExitCode.USAGE,
        lambda: Index.create(tmp_path / "index", digest=DIGEST, dimension=4, settings=settings),
        "uri = ''",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 2}, ("format_version = 2", "reads 1")),
        ({"format_version": None}, ("format_version",)),
        ({"dimension": 0}, ("dimension = 0",)),
        ({"dimension": "4"}, ("dimension",)),
        ({"digest": "xyz"}, ("digest",)),
        ({"store": {"kind": "oracle"}}, ("store.kind = 'oracle'",)),
        ({"extra": 1}, ("extra",)),
    ],
)
def test_a_manifest_that_was_changed_is_refused(change, words, vectors_only):
    path = vectors_only / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(ExitCode.DATA, lambda: Index.open(vectors_only), MANIFEST, *words)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\xff"])
def test_a_damaged_manifest_is_refused(text, vectors_only):
    (vectors_only / MANIFEST).write_bytes(text.encode("latin-1"))
    refused(ExitCode.DATA, lambda: Index.open(vectors_only), MANIFEST)


def test_where_there_is_no_index(tmp_path):
    refused(ExitCode.DATA, lambda: Index.open(tmp_path / "none"), "no index here", "ke-metric index build")


def test_one_writer_at_a_time(vectors_only):
    with Index.open(vectors_only, writing=True), Index.open(vectors_only) as reader:
        refused(ExitCode.LINEAGE, lambda: Index.open(vectors_only, writing=True), str(vectors_only))
        assert len(reader) == 10
    Index.open(vectors_only, writing=True).close()


@pytest.mark.parametrize("settings", [StoreSettings(), StoreSettings(kind="memmap"), StoreSettings(kind="milvus")])
def test_no_empty_store_takes_the_place_of_one_that_is_gone(tmp_path, settings):
    folder = tmp_path / "index"
    with Index.create(folder, digest=DIGEST, dimension=4, settings=settings) as index:
        index.add([Item("crow")], np.eye(1, 4, dtype=np.float32), digest=DIGEST)
    for path in folder.iterdir():
        if path.name != "index.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for writing in (True, False):
        with pytest.raises(KeMetricError, match=r"is missing|there is no"):
            Index.open(folder, writing=writing)


def test_no_empty_collection_takes_the_place_of_one_that_is_gone(tmp_path):
    folder, settings = tmp_path / "index", StoreSettings(kind="milvus", uri=str(tmp_path / "shared.db"))
    Index.create(folder, digest=DIGEST, dimension=4, settings=settings).close()
    manifest = folder / "index.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"ke_metric"', '"another"'), encoding="utf-8")
    with pytest.raises(KeMetricError, match="there is no such collection"):
        Index.open(folder, writing=True)


def test_an_index_that_is_there_has_its_store(tmp_path, monkeypatch):
    def killed(self, *arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Index, "__init__", killed)
        patch.setattr("ke_metric.retrieval.index.remove_folder", lambda place: None)  # a SIGKILL leaves it
        with pytest.raises(KeyboardInterrupt):
            Index.create(tmp_path / "index", digest=DIGEST, dimension=4)
    with Index.open(tmp_path / "index", writing=True) as index:
        assert len(index) == 0
