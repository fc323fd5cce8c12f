"""Embeddings as Parquet: written by `embed`, read by an index and by other programs, refused where damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from PIL import Image
from pyarrow import parquet as pq

from ke_metric import Embedder
from ke_metric.cli import main
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval import parquet_files
from ke_metric.retrieval.embedding_files import ItemBatch, embed_items
from ke_metric.retrieval.index import Index
from ke_metric.retrieval.parquet_files import ParquetFiles, embed_part, embed_parts, parts_of, write_parquet
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


def test_polars_reads_many_files_as_one_table(embedder, tmp_path):
    polars = pytest.importorskip("polars")
    for part in range(2):
        write_parquet(tmp_path / f"part-{part}.parquet", embedder, batches_of(embedder, [6], first=6 * part))
    table = polars.read_parquet(tmp_path / "part-*.parquet")
    assert table.columns == ["id", "path", "label", "vector"]
    assert table["id"].to_list() == [f"é/{n}" for n in range(12)]
    expected = np.concatenate([batch.vectors for first in (0, 6) for batch in batches_of(embedder, [6], first=first)])
    np.testing.assert_array_equal(np.stack(table["vector"].to_list()), expected)


def test_rows_come_in_groups_worth_reading(embedder, tmp_path):
    write_parquet(tmp_path / "v.parquet", embedder, batches_of(embedder, [256] * 40))
    said = pq.read_metadata(tmp_path / "v.parquet")
    assert [said.row_group(group).num_rows for group in range(said.num_row_groups)] == [8192, 2048]


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


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Forty pictures; the embedder's batch size is 16."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(2)
    for number in range(40):
        Image.fromarray(draw.integers(0, 256, (20, 20, 3), np.uint8)).save(folder / f"{number:02d}.png")
    return [Item(path.name, str(path), "x") for path in sorted(folder.iterdir())]


def test_parts_are_the_stretches_of_a_list():
    items = [Item(str(number)) for number in range(7)]
    parts = list(parts_of(items, 3))
    assert [name for name, _ in parts] == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert [len(part) for _, part in parts] == [3, 3, 1]
    assert [item for _, part in parts for item in part] == items
    assert list(parts_of([], 3)) == []
    with refused("size = 0", ExitCode.USAGE):
        list(parts_of(items, 0))


def test_no_more_parts_than_names_that_sort_in_order():
    names = [name for name, _ in parts_of([Item("x")] * 200_000, 2)]
    assert (len(names), names == sorted(names)) == (100_000, True)
    with refused("size = 2: makes 100,001 files, must be at most 100,000: 3 or more in each", ExitCode.USAGE):
        next(parts_of([Item("x")] * 200_001, 2))
    with refused("^rows = 2: makes 100,001 files", ExitCode.USAGE):
        embed_parts(Path("none"), None, [Item("x")] * 200_001, rows=2)


def test_many_files_hold_what_one_holds_to_the_bit_and_stay_when_begun_again(embedder, pictures, tmp_path):
    write_parquet(tmp_path / "one.parquet", embedder, embed_items(embedder, pictures))
    items, vectors = content(StoredEmbeddings.open(tmp_path / "one.parquet"))
    folder, told = tmp_path / "new" / "parts", []
    facts = embed_parts(folder, embedder, pictures, rows=16, on_done=lambda count, left_out: told.append(count))
    assert (facts.count, facts.digest, facts.left_out, sum(told)) == (40, embedder.digest, [], 40)
    assert [len(ParquetFiles.open(path)) for path in sorted(folder.iterdir())] == [16, 16, 8]
    found, same = content(StoredEmbeddings.open(folder))
    assert found == items
    np.testing.assert_array_equal(same, vectors)
    was = {path.name: path.stat().st_ino for path in folder.iterdir()}
    (folder / "part-00001.parquet").unlink()
    (folder / ".writing-0123abcd-part-00001.parquet").write_bytes(b"what a killed process left")
    assert len(StoredEmbeddings.open(folder)) == 24
    told.clear()
    assert embed_parts(folder, embedder, pictures, rows=16, on_done=lambda *now: told.append(now[0])).count == 40
    assert sum(told) == 40
    now = {path.name: path.stat().st_ino for path in folder.glob("part-*")}
    assert {name for name in was if now[name] != was[name]} <= {"part-00001.parquet"}
    np.testing.assert_array_equal(content(StoredEmbeddings.open(folder))[1], vectors)


def test_a_picture_that_cannot_be_used_is_tried_again(embedder, pictures, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    items = [*pictures[:3], Item("bad.png", str(bad))]
    for _ in range(2):
        facts = embed_parts(tmp_path / "parts", embedder, items, rows=3)
        assert (facts.count, [each["name"] for each in facts.left_out]) == (3, [str(bad)])
        assert [path.name for path in (tmp_path / "parts").iterdir()] == ["part-00000.parquet"]
    mixed = embed_part(tmp_path / "m.parquet", embedder, items)
    bad.write_bytes(Path(pictures[5].path).read_bytes())
    assert (mixed.count, embed_part(tmp_path / "m.parquet", embedder, items).count) == (3, 4)
    with refused("no picture|cannot be decoded"):
        bad.write_bytes(b"no picture")
        embed_parts(tmp_path / "strict", embedder, items, rows=3, strict=True)
    assert embed_parts(tmp_path / "none", embedder, [], rows=3).count == 0


def unreadable(paths):
    """Make files no pictures; gives their contents."""
    was = {path: path.read_bytes() for path in paths}
    for path in paths:
        path.write_bytes(b"no picture")
    return was


def readable(was):
    for path, pixels in was.items():
        path.write_bytes(pixels)


@pytest.fixture
def own(pictures, tmp_path):
    """Six pictures that a test may spoil."""
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path, picture in zip(paths, pictures, strict=False):
        path.write_bytes(Path(picture.path).read_bytes())
    return [Item(path.name, str(path), "x") for path in paths]


def test_a_file_is_not_replaced_by_one_of_fewer_pictures(embedder, own, tmp_path):
    path, files = tmp_path / "parts" / "part-00000.parquet", [Path(item.path) for item in own]
    first = unreadable(files[:1])
    assert embed_parts(path.parent, embedder, own, rows=6).count == 5
    was = path.read_bytes()
    readable(first)
    for bad in (files[1:3], files[1:]):
        others, told = unreadable(bad), []
        facts = embed_parts(path.parent, embedder, own, rows=6, on_done=lambda *now, told=told: told.append(now))
        readable(others)
        assert path.read_bytes() == was
        assert [each.name for each in path.parent.iterdir()] == [path.name]
        assert (facts.count, [each["name"] for each in facts.left_out]) == (5, [str(files[0])])
        assert sum(done for done, _ in told) == 6
        kept = f"{path}: kept, with 5 of its 6 pictures: only {6 - len(bad)} could be used now"
        assert kept in told[-1][1][0].reason
        assert kept in facts.left_out[0]["reason"]
    assert embed_parts(path.parent, embedder, own, rows=6).count == 6


def test_a_picture_that_cannot_be_used_costs_a_resume_no_other_ones(embedder, own, tmp_path, monkeypatch):
    path = tmp_path / "part.parquet"
    first = unreadable([Path(own[number].path) for number in (1, 4)])

    def embedded(**how):
        told = []
        facts = embed_part(path, embedder, own, on_done=lambda *now: told.append(now), **how)
        return facts, sum(done for done, _ in told), [picture for _, left_out in told for picture in left_out]

    fresh = embedded()
    assert (fresh[0].count, len(fresh[0].left_out), fresh[1], len(fresh[2])) == (4, 2, 6, 2)
    was, computed = path.stat().st_mtime_ns, []
    compute = embedder.compute
    monkeypatch.setattr(embedder, "compute", lambda pixels: computed.append(len(pixels)) or compute(pixels))
    assert embedded() == fresh
    with refused("1.png.*cannot be decoded"):
        embedded(strict=True)
    assert (computed, path.stat().st_mtime_ns) == ([], was)
    readable({name: pixels for name, pixels in first.items() if name.name == "4.png"})
    facts, done, left_out = embedded()
    assert (facts.count, done, [picture.name for picture in left_out]) == (5, 6, [own[1].path])
    assert [item for batch in ParquetFiles.open(path).batches() for item in batch.items] == [own[0], *own[2:]]


def test_what_somebody_else_wrote_in_the_meantime_stays(embedder, own, tmp_path):
    path = tmp_path / "part.parquet"
    for usable in (5, 0):
        path.unlink(missing_ok=True)
        embed_part(tmp_path / "other", embedder, own)
        others = (tmp_path / "other").read_bytes()
        was = unreadable([Path(item.path) for item in own[usable:]])
        facts = embed_part(path, embedder, own, on_done=lambda *now, others=others: path.write_bytes(others))
        readable(was)
        assert path.read_bytes() == others
        assert (facts.count, facts.left_out) == (6, [])


def test_a_slow_writer_is_not_taken_for_a_killed_one(embedder, tmp_path):
    path = tmp_path / "v.parquet"

    def slow():
        for batch in batches_of(embedder, [1, 1, 1]):
            yield batch
            (temporary,) = tmp_path.glob(".writing-*")
            write_parquet(path, embedder, batches_of(embedder, [2]), overwrite=True)
            os.utime(temporary, (0, 0))  # the next batch takes hours

    assert write_parquet(path, embedder, slow()).count == 3
    assert len(StoredEmbeddings.open(path)) == 3


def test_files_of_something_else_are_refused_and_stay(embedder, grown, pictures, tmp_path):
    folder = tmp_path / "parts"
    embed_parts(folder, embedder, pictures[:20], rows=8)
    was = {path.name: path.read_bytes() for path in folder.iterdir()}
    with refused("part-00000.parquet: is there already and holds vectors of another network"):
        embed_parts(folder, Embedder.load(grown.folder, 2), pictures[:20], rows=8)
    with refused("part-00000.parquet: is there already and holds other pictures"):
        embed_parts(folder, embedder, pictures[1:21], rows=8)
    with refused("holds part-00002.parquet, which is none of the 2 files", ExitCode.USAGE):
        embed_parts(folder, embedder, pictures[:16], rows=8)
    (folder / "part-00001.parquet").write_bytes(was["part-00001.parquet"][:-9])
    with refused("part-00001.parquet: cannot be read"):
        embed_parts(folder, embedder, pictures[:20], rows=8)
    (tmp_path / "file").touch()
    with refused("cannot be a folder of files", ExitCode.USAGE):
        embed_parts(tmp_path / "file", embedder, pictures[:20], rows=8)
    assert (folder / "part-00000.parquet").read_bytes() == was["part-00000.parquet"]


KILLED_AT_EVERY_BATCH = """
import os, signal, sys
from pathlib import Path
from ke_metric import Embedder
from ke_metric.retrieval.parquet_files import ParquetFiles, embed_parts
from ke_metric.retrieval.picture_list import list_pictures

lineage, pictures, folder = sys.argv[1:]
embedder, items = Embedder.load(lineage, 1), list_pictures([pictures]).items
for last in range(5):  # batches of 8 before a process is killed, which is within the next one
    child = os.fork()
    if not child:
        done = []
        def tell(count, left_out):
            done.append(count)
            if len(done) > last:
                os.kill(os.getpid(), signal.SIGKILL)
        embed_parts(Path(folder), embedder, items, rows=16, batch_size=8, on_done=tell)
        os._exit(0)
    os.waitpid(child, 0)
    for path in Path(folder).glob("part-*"):
        rows = sum(len(batch.items) for batch in ParquetFiles.open(path).batches())
        assert rows == [16, 16, 8][int(path.stem[-1])], path
    print(len(list(Path(folder).glob("part-*"))))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_file_is_whole_or_absent_when_the_process_is_killed(embedder, grown, pictures, tmp_path):
    folder = tmp_path / "parts"
    arguments = [grown.folder, Path(pictures[0].path).parent, folder]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_BATCH, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    # A file that is there is told of once, so that each process comes further than the one before it.
    assert done.stdout.split() == ["0", "0", "1", "2", "3"]


def test_the_command_makes_a_folder_of_files(grown, pictures, tmp_path, monkeypatch):
    network = ("--lineage", grown.folder, "--gen", "1", "--network", "dense")
    source, folder = Path(pictures[0].path).parent, tmp_path / "parts"

    def run(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    for _ in range(2):
        result = run("embed", source, "-o", folder, "--rows-per-file", 16, *network, "--json")
        assert result.exit_code == ExitCode.OK, result.output
        assert json.loads(result.stdout)["count"] == 40
    assert len(list(folder.iterdir())) == 3
    result = run("embed", source, "-o", folder, "--rows-per-file", 16, *network, "--overwrite")
    assert (result.exit_code, "delete" in result.output) == (ExitCode.USAGE, True)
    assert run("index", "build", "--from", f"{folder}/part-*.parquet", "-o", tmp_path / "a").exit_code == ExitCode.OK
    with Index.open(tmp_path / "a") as index:
        assert [item.id for item in next(index.store.read())[0]] == [item.id for item in pictures]
    monkeypatch.setattr(parquet_files, "MOST_PARTS", 2)
    result = run("embed", source, "-o", folder, "--rows-per-file", 16, *network)
    assert result.exit_code == ExitCode.USAGE
    assert "--rows-per-file = 16: makes 3 files, must be at most 2: 20 or more in each" in result.output
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no picture")
    result = run("embed", tmp_path / "bad", "-o", tmp_path / "b", "--rows-per-file", 16, *network)
    assert (result.exit_code, "none of the 1 pictures" in result.output) == (ExitCode.DATA, True)
    assert list((tmp_path / "b").iterdir()) == []
