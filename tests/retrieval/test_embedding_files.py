"""Embeddings as files: what is written is read again, by us and by anybody; whole or not at all; damage is told."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ke_metric import Embedder
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval.embedding_files import (
    EmbeddingFiles,
    ItemBatch,
    require_place,
    write_embeddings,
)
from ke_metric.retrieval.picture_list import LeftOut
from ke_metric.retrieval.stored_embeddings import StoredEmbeddings
from ke_metric.stores.contract import Item


@pytest.fixture(scope="module")
def embedder(grown):
    return Embedder.load(grown.folder)


def unit(count, dimension=8, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def items_of(count, start=0):
    return [Item(f"a/{n}.png", f"/x/a/{n}.png", "a" if n % 2 else "") for n in range(start, start + count)]


def batches_of(*sizes):
    start = 0
    for size in sizes:
        left_out = (LeftOut(f"bad {start}", f"bad {start}: why"),)
        yield ItemBatch(items_of(size, start), unit(size, seed=start), left_out)
        start += size


def read_all(folder, batch_size=8192):
    batches = list(EmbeddingFiles.open(folder).batches(batch_size))
    items = [item for batch in batches for item in batch.items]
    vectors = np.concatenate([batch.vectors for batch in batches]) if batches else np.empty((0, 8), np.float32)
    return items, vectors


def refused(function, *arguments, **options):
    with pytest.raises(KeMetricError) as caught:
        function(*arguments, **options)
    return str(caught.value)


@pytest.fixture
def written(embedder, tmp_path):
    """A folder with twelve embeddings."""
    write_embeddings(tmp_path / "e", embedder, batches_of(5, 7))
    return tmp_path / "e"


def test_anybody_can_read_them(embedder, tmp_path):
    before = LeftOut("b.png", "b.png: not UTF-8")
    facts = write_embeddings(tmp_path / "e", embedder, batches_of(5, 7), left_out=[before])
    vectors = np.load(tmp_path / "e" / "vectors.npy", allow_pickle=False)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert np.array_equal(vectors, np.concatenate([unit(5), unit(7, seed=5)]))
    with (tmp_path / "e" / "items.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["path"], row["label"]) for row in rows] == [
        (item.id, item.path, item.label) for item in items_of(12)
    ]
    document = json.loads((tmp_path / "e" / "embeddings.json").read_text(encoding="utf-8"))
    assert document == facts.model_dump()
    assert document["digest"] == embedder.digest
    assert document["dimension"] == 8
    assert document["count"] == 12
    assert document["description"] == embedder.description
    assert [bad["name"] for bad in document["left_out"]] == ["b.png", "bad 0", "bad 5"]
    assert Embedder.load(tmp_path / "e" / "model").digest == embedder.digest


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_they_come_back_in_batches(batch_size, written):
    items, vectors = read_all(written, batch_size)
    assert items == items_of(12)
    assert np.array_equal(vectors, np.concatenate([unit(5), unit(7, seed=5)]))
    sizes = [len(batch.items) for batch in EmbeddingFiles.open(written).batches(batch_size)]
    assert max(sizes) <= batch_size


def test_no_embedding_at_all(embedder, tmp_path):
    write_embeddings(tmp_path / "e", embedder, [])
    assert np.load(tmp_path / "e" / "vectors.npy", allow_pickle=False).shape == (0, 8)
    assert read_all(tmp_path / "e")[0] == []


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.tuples(TEXT.filter(bool), TEXT, TEXT), min_size=1, max_size=6, unique_by=lambda row: row[0]))
def test_every_name_survives(rows, embedder, tmp_path_factory):
    items = [Item(*row) for row in rows]
    folder = tmp_path_factory.mktemp("e") / "e"
    write_embeddings(folder, embedder, [ItemBatch(items, unit(len(items)))])
    assert read_all(folder)[0] == items


def test_what_fails_leaves_nothing(embedder, tmp_path):
    def failing():
        yield from batches_of(3)
        raise KeMetricError("bad.png: cannot be decoded", ExitCode.DATA)

    assert "bad.png" in refused(write_embeddings, tmp_path / "e", embedder, failing())
    assert list(tmp_path.iterdir()) == []
    broken = [ItemBatch(items_of(2), np.full((2, 8), np.nan, np.float32))]
    assert "has length nan" in refused(write_embeddings, tmp_path / "e", embedder, broken)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_replaced_only_when_asked_and_only_by_something_whole(written, embedder):
    assert "--overwrite" in refused(write_embeddings, written, embedder, batches_of(1))
    assert "has length" in refused(
        write_embeddings, written, embedder, [ItemBatch(items_of(1), unit(1) * 2)], overwrite=True
    )
    assert len(read_all(written)[0]) == 12
    write_embeddings(written, embedder, batches_of(1), overwrite=True)
    assert len(read_all(written)[0]) == 1
    assert [path.name for path in written.parent.iterdir()] == ["e"]


def test_what_is_not_ours_is_never_replaced(written, tmp_path, monkeypatch):
    (written / "notes.txt").write_text("mine")
    assert "never replaced" in refused(require_place, written, overwrite=True)
    (tmp_path / "file").write_text("mine")
    assert "never replaced" in refused(require_place, tmp_path / "file", overwrite=True)
    (tmp_path / "empty").mkdir()
    require_place(tmp_path / "empty", overwrite=False)
    require_place(tmp_path / "none", overwrite=False)
    assert "cannot be made there" in refused(require_place, tmp_path / ("x" * 5000), overwrite=False)
    monkeypatch.chdir(tmp_path / "empty")
    assert "is the current folder" in refused(require_place, Path(), overwrite=True)


def test_where_there_are_none(tmp_path, written):
    assert "neither an index nor embeddings" in refused(StoredEmbeddings.open, tmp_path)
    assert StoredEmbeddings.open(written).folder == written
    assert "make some with ke-metric embed" in refused(EmbeddingFiles.open, tmp_path)


def test_the_network_may_be_taken_away(written):
    with StoredEmbeddings.open(written) as there:
        assert there.embedder().digest == there.facts.digest
        (written / "model").rename(written.parent / "model")
        assert there.embedder() is None


def edit_json(**fields):
    def edit(folder):
        path = folder / "embeddings.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit


def edit_items(change):
    def edit(folder):
        path = folder / "items.csv"
        path.write_bytes(change(path.read_bytes()))

    return edit


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (edit_json(format_version=2), "format_version"),
        (edit_json(count=-1), "count"),
        (edit_json(count=11), r"vectors.npy: float32 \[12, 8\], must be float32 \[11, 8\]"),
        (edit_json(digest="x"), "digest"),
        (edit_json(more=1), "more"),
        (lambda folder: (folder / "embeddings.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "embeddings.json").write_text("[" * 100_000), "cannot be read"),
        (lambda folder: (folder / "vectors.npy").write_bytes(b"x"), "vectors.npy: cannot be read"),
        (lambda folder: np.savez((folder / "vectors.npy").open("wb"), unit(12)), "vectors.npy: cannot be read"),
        (lambda folder: (folder / "vectors.npy").unlink(), "vectors.npy: cannot be read"),
        (lambda folder: np.save(folder / "vectors.npy", unit(12).astype(np.float64)), "float64"),
        (lambda folder: np.save(folder / "vectors.npy", np.array([{}], object), allow_pickle=True), "cannot be read"),
        (lambda folder: (folder / "items.csv").unlink(), "items.csv: cannot be read"),
        (edit_items(lambda text: text.replace(b"id,path", b"path,id")), "first line must be id,path,label"),
        (edit_items(lambda text: text[:-20]), "items.csv"),
        (edit_items(lambda text: text + b'"a","b"\n'), "line 14: 2 cells, must be 3"),
        (edit_items(lambda text: text + b'"a","b","c"\n'), "more rows, must be 12"),
        (edit_items(lambda text: text[: text.rindex(b'"a/11')]), "11 rows, must be 12"),
        (edit_items(lambda text: text + b'"\xff","b","c"\n'), "cannot be read"),
    ],
)
def test_damage_is_told(damage, words, written):
    damage(written)
    with pytest.raises(KeMetricError, match=words) as caught:
        read_all(written)
    assert caught.value.exit_code == ExitCode.DATA
