"""Embeddings as Parquet: written by `embed`, read by an index and by other programs, refused where damaged."""

import json
import sys

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from pyarrow import parquet as pq

from ke_metric import Embedder
from ke_metric.cli import main
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval.embedding_files import ItemBatch
from ke_metric.retrieval.index import Index
from ke_metric.retrieval.parquet_files import ParquetFiles, write_parquet
from ke_metric.retrieval.picture_list import LeftOut
from ke_metric.retrieval.stored_embeddings import StoredEmbeddings
from ke_metric.stores.contract import Item


@pytest.fixture(scope="module")
def embedder(grown):
    return Embedder.load(grown.folder, 1)


def batches_of(embedder, counts, *, first=0):
    for count in counts:
        vectors = np.random.default_rng(first).normal(size=(count, embedder.dimension)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        items = [Item(f"é/{n}", f"/x/{n}.png", "crow" if n % 2 else "") for n in range(first, first + count)]
        yield ItemBatch(items, vectors, (LeftOut("bad.png", "no picture"),))
        first += count


def content(stored):
    with stored as there:
        batches = list(there.batches())
    return [item for batch in batches for item in batch.items], np.concatenate([batch.vectors for batch in batches])


def refused(words, code=ExitCode.DATA):
    return pytest.raises(KeMetricError, match=words, check=lambda error: error.exit_code == code)


def test_what_was_written_comes_back(embedder, tmp_path):
    facts = write_parquet(tmp_path / "v.parquet", embedder, batches_of(embedder, [5, 0, 7]))
    assert (facts.count, facts.digest, len(facts.left_out)) == (12, embedder.digest, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["v.parquet"]
    stored = StoredEmbeddings.open(tmp_path / "v.parquet")
    assert (len(stored), stored.facts.digest, stored.embedder()) == (12, facts.digest, None)
    assert stored.facts.preparation == embedder.preparation
    items, vectors = content(stored)
    batches = list(batches_of(embedder, [5, 0, 7]))
    assert items == [item for batch in batches for item in batch.items]
    np.testing.assert_array_equal(vectors, np.concatenate([batch.vectors for batch in batches]))


def test_many_files_are_one(embedder, tmp_path):
    (tmp_path / "parts").mkdir()
    for part in range(3):
        write_parquet(
            tmp_path / "parts" / f"part-{part}.parquet", embedder, batches_of(embedder, [4], first=4 * part)
        )
    for name in ("parts", "parts/part-*.parquet"):
        items, _ = content(StoredEmbeddings.open(tmp_path / name))
        assert [item.id for item in items] == [f"é/{n}" for n in range(12)]
    assert len(ParquetFiles.open(tmp_path / "parts" / "part-[12].parquet")) == 8
    with refused("none of such a name"):
        StoredEmbeddings.open(tmp_path / "parts" / "other-*.parquet")


def test_files_of_two_networks_are_refused(embedder, grown, tmp_path):
    write_parquet(tmp_path / "1.parquet", embedder, batches_of(embedder, [2]))
    other = Embedder.load(grown.folder, 2)
    write_parquet(tmp_path / "2.parquet", other, batches_of(other, [2], first=2))
    with refused("2.parquet: made by another network than .*1.parquet"):
        StoredEmbeddings.open(tmp_path)


def test_other_programs_read_it(embedder, tmp_path):
    duckdb, pandas = pytest.importorskip("duckdb"), pytest.importorskip("pandas")
    for part in range(2):
        write_parquet(tmp_path / f"part-{part}.parquet", embedder, batches_of(embedder, [6], first=6 * part))
    columns = "label, count(*), max(len(vector)), max(list_dot_product(vector, vector))"
    found = duckdb.sql(f"SELECT {columns} FROM '{tmp_path}/part-*.parquet' GROUP BY 1 ORDER BY 1").fetchall()
    assert [row[:3] for row in found] == [("", 6, embedder.dimension), ("crow", 6, embedder.dimension)]
    assert found[0][3] == pytest.approx(1, abs=1e-5)
    frame = pandas.read_parquet(tmp_path / "part-0.parquet")
    assert list(frame.columns) == ["id", "path", "label", "vector"]
    (batch,) = batches_of(embedder, [6])
    np.testing.assert_array_equal(np.stack(frame["vector"].to_list()), batch.vectors)


def rewritten(path, change):
    """Write a file again with another table or other metadata."""
    table = pq.read_table(path)
    pq.write_table(change(table), path)


def with_vectors(kind):
    def change(table):
        column = pa.array(table.column("vector").to_pylist(), kind)
        return table.set_column(3, "vector", column).replace_schema_metadata(table.schema.metadata)

    return change


def with_null_vector(table):
    nothing = pa.nulls(1, table.schema.field("vector").type)
    whole = pa.concat_arrays([table.column("vector").combine_chunks()[1:], nothing])
    return table.set_column(3, table.schema.field(3), whole)


def with_null_id(table):
    return table.set_column(0, table.schema.field(0), pa.array([None] * len(table), pa.string()))


def said(table, **changes):
    facts = json.loads(table.schema.metadata[b"ke_metric"]) | changes
    return table.replace_schema_metadata({"ke_metric": json.dumps(facts)})


def test_a_list_of_float32_of_any_length_will_do(embedder, tmp_path):
    path = tmp_path / "v.parquet"
    write_parquet(path, embedder, batches_of(embedder, [5]))
    expected = content(StoredEmbeddings.open(path))
    rewritten(path, with_vectors(pa.list_(pa.float32())))
    items, vectors = content(StoredEmbeddings.open(path))
    assert items == expected[0]
    np.testing.assert_array_equal(vectors, expected[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.drop_columns(["label"]), "no column 'label'; ke-metric embed -o"),
        (lambda table: table.replace_schema_metadata({}), "no word of the network that made its vectors"),
        (lambda table: table.replace_schema_metadata({"ke_metric": "{"}), "under ke_metric is damaged"),
        (lambda table: said(table, digest="x"), "digest = 'x'"),
        (lambda table: said(table, format_version=2), "format_version"),
        (lambda table: said(table, dimension=3), "its vectors must be 3 numbers of float32 each"),
        (with_vectors(pa.list_(pa.float64())), "numbers of float32 each"),
        (with_null_vector, "numbers of float32 each|cannot be read"),
        (with_null_id, "id = None is NoneType, must be text"),
    ],
)
def test_files_that_are_not_ours_or_damaged_are_refused(embedder, tmp_path, change, words):
    path = tmp_path / "v.parquet"
    write_parquet(path, embedder, batches_of(embedder, [5]))
    rewritten(path, change)
    with refused(words):
        content(StoredEmbeddings.open(path))


def test_a_torn_file_is_refused(embedder, tmp_path):
    path = tmp_path / "v.parquet"
    write_parquet(path, embedder, batches_of(embedder, [500]))
    whole = path.read_bytes()
    for torn in (b"", whole[:-100], whole[100:], b"x" * 100):
        path.write_bytes(torn)
        with refused("cannot be read"):
            content(StoredEmbeddings.open(path))


def test_a_place_that_is_taken_and_a_picture_that_is_refused_leave_what_was_there(embedder, tmp_path):
    path = tmp_path / "v.parquet"
    path.write_text("mine")
    with refused("exists; choose another name, or replace it", ExitCode.USAGE):
        write_parquet(path, embedder, [])
    twice = ItemBatch([Item("a"), Item("a")], np.eye(2, embedder.dimension, dtype=np.float32))
    with refused("comes twice"):
        write_parquet(path, embedder, [twice], overwrite=True)
    assert path.read_text() == "mine"
    assert [each.name for each in tmp_path.iterdir()] == ["v.parquet"]
    write_parquet(path, embedder, batches_of(embedder, [1]), overwrite=True)
    assert len(StoredEmbeddings.open(path)) == 1
    with refused("cannot be written", ExitCode.ENVIRONMENT):
        write_parquet(tmp_path / "none" / "v.parquet", embedder, [])


def test_a_missing_library_names_the_command(embedder, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.setitem(sys.modules, name, None)
    with refused(r"pip install 'ke_metric\[parquet\]'", ExitCode.ENVIRONMENT):
        write_parquet(tmp_path / "v.parquet", embedder, [])


def test_an_index_of_a_file_is_that_of_the_pictures(grown, tmp_path):
    from PIL import Image

    draw = np.random.default_rng(1)
    (tmp_path / "pictures" / "crow").mkdir(parents=True)
    for number in range(5):
        picture = Image.fromarray(draw.integers(0, 256, (20, 20, 3), np.uint8))
        picture.save(tmp_path / "pictures" / "crow" / f"{number}.png")

    def run(code, *arguments):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == code, (result.output, result.exception)
        return result.output

    network = ("--lineage", grown.folder, "--gen", "1", "--network", "dense")
    pictures, file = tmp_path / "pictures", tmp_path / "v.parquet"
    run(ExitCode.OK, "embed", pictures, "-o", file, *network)
    run(ExitCode.USAGE, "embed", pictures, "-o", file, *network)
    run(ExitCode.OK, "index", "build", pictures, "-o", tmp_path / "a", *network)
    run(ExitCode.OK, "index", "build", "--from", file, "-o", tmp_path / "b")
    run(ExitCode.OK, "index", "build", "--from", tmp_path / "v*.parquet", "-o", tmp_path / "c", *network)
    found = []
    for name in "abc":
        with Index.open(tmp_path / name) as index:
            ((items, vectors),) = index.store.read()
            found.append((items, vectors.tolist(), index.digest))
            assert index.has_embedder is (name != "b")
    assert found[0] == found[1] == found[2]
    other = ("--lineage", grown.folder, "--gen", "2", "--network", "dense")
    assert "another network" in run(ExitCode.DATA, "index", "build", "--from", file, "-o", tmp_path / "d", *other)
    run(ExitCode.OK, "index", "build", pictures, "-o", tmp_path / "d", *other)
    assert "another network" in run(ExitCode.DATA, "index", "add", "--from", file, "--index", tmp_path / "d")
