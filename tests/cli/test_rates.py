"""Slim networks of several rates: what a scorecard says, eval scores again and a bundle gives, is the same."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from scored_lineages import CLASSES, FIELDS, grow_scored

from ke_metric import Embedder, Predictor, score_retrieval
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.cli import main
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.classification import score_classification
from ke_metric.evaluation.retrieval import Scoring
from ke_metric.networks.bundle_config import read_description
from ke_metric.retrieval.network_choice import choose_network
from ke_metric.retrieval.scikit_learn import EmbeddingTransformer

RATES = {"split": {"rates": [0.25, 0.5]}, "generations": 1, "batches": {"size": 20}}
NAMES = {"dense": None, "slim": 0.5, "slim 0.25": 0.25}


def expect(code, *arguments):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result.stderr if code else result.stdout


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A lineage of one generation with two slim networks, both repaired."""
    fields = {
        "data": FIELDS["data"] | {"train_classes": 5},
        "evaluation": FIELDS["evaluation"] | {"slim_repair": "both"},
    }
    return grow_scored(tmp_path_factory.mktemp("family") / "lineage", **RATES, **fields)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """The same of a classification."""
    fields = CLASSES | {"evaluation": FIELDS["evaluation"] | {"slim_repair": "both"}}
    fields["data"] = CLASSES["data"] | {"train_classes": 5}
    return grow_scored(tmp_path_factory.mktemp("classes") / "lineage", **RATES, **fields)


@pytest.mark.parametrize("name", NAMES)
def test_scorecard_eval_and_bundle_have_the_same_numbers(name, family, tmp_path):
    card, rate = family.scorecard(1), NAMES[name]
    document = json.loads(expect(ExitCode.OK, "eval", "--lineage", family.folder, "--json"))
    again = {"dense": document["dense"], "slim": document["slim"], "slim 0.25": document["narrow"]["0.25"]}
    assert again == card.networks
    assert document["slim_as_cut"] == card.slim_as_cut != card.slim
    assert document["narrow_as_cut"] == {"0.25": card.narrow["0.25"].as_cut}
    assert (document["slim_repair"], document["narrow_repair"]) == ("both", {"0.25": "both"})

    chosen = ("--network", "dense") if rate is None else ("--rate", rate)
    stored = json.loads(
        expect(ExitCode.OK, "slim", "--lineage", family.folder, *chosen, "-o", tmp_path / "n", "--json")
    )
    assert stored[name.split()[0]] == card.networks[name]
    benchmark = load_benchmark(family.recipe.data, family.recipe.task)
    bundle = Embedder.load(tmp_path / "n", device="cpu")
    assert bundle.digest == Embedder.load(family.folder, 1, name.split()[0], rate=rate, device="cpu").digest
    images = [benchmark.query.read(number) for number in range(len(benchmark.query))]
    vectors = np.concatenate([batch.vectors for batch in bundle.stream(images, batch_size=16)])
    scoring = Scoring(backend="torch", kmeans_seeds=(0,))
    assert score_retrieval(vectors, benchmark.query.labels, (1, 2, 4), scoring=scoring) == card.networks[name]


def test_a_classifier_of_another_rate(classes, tmp_path):
    card = classes.scorecard(1)
    document = json.loads(expect(ExitCode.OK, "eval", "--lineage", classes.folder, "--json"))
    assert document["narrow"] == {"0.25": card.narrow["0.25"].scores}
    assert set(document["classes"]) == {"dense", "slim", "slim 0.25"}
    benchmark = load_benchmark(classes.recipe.data, classes.recipe.task)
    predictor = Predictor.load(classes.folder, rate=0.25, device="cpu")
    images = [benchmark.query.read(number) for number in range(len(benchmark.query))]
    logits = np.concatenate([batch.logits for batch in predictor.stream(images)])
    assert score_classification(logits, benchmark.query.labels) == card.narrow["0.25"].scores
    table = expect(ExitCode.OK, "eval", "--lineage", classes.folder, "--network", "slim")
    assert "slim 0.25 repaired: generation 1 statistics + last layer refitted (top-1 " in table


def test_the_bundle_says_its_rate(family, tmp_path):
    expect(ExitCode.OK, "slim", "--lineage", family.folder, "--rate", 0.25, "-o", tmp_path / "quarter")
    described = read_description(tmp_path / "quarter")
    assert described.split.model_dump() == {"kind": "kels", "rate": 0.25}
    share = 100 * family.scorecard(1).narrow["0.25"].scores["recall@1"]
    assert described.origin.startswith(f"lineage, generation 1, slim 0.25 (Recall@1 {share:.1f} %, dense ")
    expect(ExitCode.OK, "slim", "--lineage", family.folder, "--rate", 0.5, "-o", tmp_path / "half")
    described = read_description(tmp_path / "half")
    assert described.split.rate == 0.5
    assert described.origin.startswith("lineage, generation 1, slim (Recall@1 ")


def test_only_dense_and_slim_are_chosen_by_themselves(family):
    assert choose_network(family).name in ("dense", "slim")
    assert choose_network(family, network="slim").name == "slim"
    assert choose_network(family, rate=0.5).rate is None
    assert choose_network(family, rate=0.25).name == "slim 0.25"


def test_a_transformer_of_another_rate(family):
    transformer = EmbeddingTransformer(family.folder, rate=0.25, device="cpu").fit()
    assert transformer.digest_ == Embedder.load(family.folder, rate=0.25, device="cpu").digest
    assert transformer.get_params()["rate"] == 0.25


def test_rates_that_there_are_not(family, tmp_path):
    there = "rate = 0.3: generation 1 has slim networks of split rate 0.25, 0.5 (split.rate and split.rates"
    assert there in expect(ExitCode.USAGE, "slim", "--lineage", family.folder, "--rate", 0.3, "-o", tmp_path / "n")
    assert there in expect(ExitCode.USAGE, "eval", "--lineage", family.folder, "--rate", 0.3)
    with pytest.raises(KeMetricError, match=r"rate = 0\.25, is the split rate of a slim network: network = 'dense'"):
        Embedder.load(family.folder, network="dense", rate=0.25)
    told = expect(ExitCode.USAGE, "embed", tmp_path, "--bundle", tmp_path, "--rate", 0.25, "-o", tmp_path / "n")
    assert "--bundle is one network: it excludes --lineage, --gen and --network, --rate too" in told


def test_single_weights_have_no_rates(tmp_path):
    lineage = grow_scored(tmp_path / "lineage", split={"kind": "wels"}, generations=1)
    with pytest.raises(KeMetricError, match=r"there is no slim network: split\.kind = 'wels'"):
        choose_network(lineage, rate=0.5)


def test_one_rate_can_be_scored_and_gated_by_itself(family):
    asked = ("eval", "--lineage", family.folder, "--rate", 0.25, "--json")
    document = json.loads(expect(ExitCode.OK, *asked))
    assert {"narrow", "narrow_repair", "narrow_as_cut"} == {*document} - {"lineage", "generation"}
    share = document["narrow"]["0.25"]["recall@1"]
    expect(ExitCode.OK, *asked, "--min", f"recall@1={share}")
    assert "generation 1 slim 0.25: recall@1" in expect(ExitCode.GATE, *asked, "--min", "recall@1=1.0")


def test_other_pictures_are_scored_by_all_of_them(family, glyph_files):
    arguments = ("eval", "--on", glyph_files / "gallery", "--lineage", family.folder)
    document = json.loads(expect(ExitCode.OK, *arguments, "--json"))
    assert {"dense", "slim"} <= document.keys()
    assert list(document["narrow"]) == ["0.25"]
    one = json.loads(expect(ExitCode.OK, *arguments, "--rate", 0.25, "--json"))
    assert "slim" not in one
    assert one["narrow"] == document["narrow"]


def test_a_store_loses_nothing_of_any_of_them(family):
    arguments = ("eval", "--lineage", family.folder, "--store", "memmap")
    document = json.loads(expect(ExitCode.OK, *arguments, "--json"))
    assert set(document["store"]["loss"]) == set(NAMES)
    assert "slim 0.25" in expect(ExitCode.OK, *arguments)
