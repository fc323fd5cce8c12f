"""`ke-metric slim`: which generation, where to, what is printed, and what is refused."""

import json

import pytest
import torch
from click.testing import CliRunner

from ke_metric import Lineage, extract_slim, load_network
from ke_metric.cli import main
from ke_metric.errors import ExitCode
from ke_metric.generation import Generation, Provenance, Scorecard
from ke_metric.networks.bundle_config import read_description
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.recipe.schema import Recipe

FIELDS = {
    "name": "x",
    "generations": 3,
    "keep": "best",
    "data": {"image_size": 32, "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]},
    "network": {"backbone": "timm/test_resnet", "embedding_size": 8},
    "evaluation": {"resize": 48},
}
CLASSES = ("crow", "jay", "rook")
RECALLS = (0.5, 0.75, 0.25)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def run(*arguments):
    return CliRunner().invoke(main, ["slim", *map(str, arguments)])


def expect(code, *arguments):
    result = run(*arguments)
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result.stderr if code else result.stdout


def grow(folder, *, scored=True, scores=None, **fields):
    """Store a lineage whose generations were drawn, not trained; return it and the slim networks."""
    recipe = Recipe.model_validate(FIELDS | fields)
    lineage = Lineage.create(folder, recipe, text="x", command="ke-metric train x.yaml")
    class_names = CLASSES if recipe.task == "classification" else ()
    networks, slims = LineageNetworks(recipe, len(class_names)), {}
    for number, recall in enumerate(RECALLS, start=1):
        network = networks.build(number).eval()
        plan = networks.plan(network, number)
        if plan.kind == "kels":
            slims[number] = extract_slim(network, plan)
        lineage.append(
            Generation(
                number=number,
                weights=network.state_dict(),
                loss_weights={},
                split=plan.to_json(),
                split_bits=plan.to_tensors(),
                scorecard=Scorecard(
                    scores or {"recall@1": recall},
                    (scores or {"recall@1": recall / 2}) if scored else None,
                    9,
                    3 if scored else None,
                ),
                training_log=(),
                magnitudes={},
                provenance=Provenance("x", None if number == 1 else "x", 0, {}, {}, {}, class_names),
            )
        )
    return lineage, slims


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    return grow(tmp_path_factory.mktemp("grown") / "lineage")


@pytest.mark.parametrize(("which", "number"), [(3, 3), ("best", 2)])
def test_the_generation_asked_for_is_stored_and_told(which, number, grown, tmp_path):
    lineage, slims = grown
    folder = tmp_path / "slim"
    arguments = ("--lineage", lineage.folder, "--gen", which, "-o", folder)
    document = json.loads(expect(ExitCode.OK, *arguments, "--json"))
    loaded = load_network(folder)
    for ours, theirs in zip(slims[number].state_dict().values(), loaded.state_dict().values(), strict=True):
        assert ours.equal(theirs)
    weights = lineage.generation_folder(number) / "weights.safetensors"
    assert document == {
        "lineage": str(lineage.folder),
        "generation": number,
        "network": "slim",
        "folder": str(folder),
        "dense": {"recall@1": RECALLS[number - 1]},
        "dense_parameters": 469688 - 96 * 1000 - 1000 + 96 * 8 + 8,
        "slim_parameters": sum(parameter.numel() for parameter in loaded.parameters()),
        "dense_bytes": pytest.approx(weights.stat().st_size, rel=0.02),
        "slim_bytes": (folder / "model.safetensors").stat().st_size,
        "slim": {"recall@1": RECALLS[number - 1] / 2},
    }
    table = expect(ExitCode.OK, *arguments, "--overwrite")
    assert f"{document['slim_parameters']:,}" in table
    assert f"{50 * RECALLS[number - 1]:.1f} %" in table
    assert "slim, stored" in table


def test_the_stored_network_says_how_its_images_are_prepared(grown, tmp_path):
    expect(ExitCode.OK, "--lineage", grown[0].folder, "--gen", 3, "-o", tmp_path / "n")
    described = read_description(tmp_path / "n")
    assert described.normalization.model_dump() == {
        "background": "white", "exif_orientation": True, "views": 1,
        "store_size": 256, "store_shape": "keep", "resize": 48, "image_size": 32,
        "mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3),
    }  # fmt: skip
    assert described.split.model_dump() == {"kind": "kels", "rate": 0.5}
    assert described.embedding_size == 8


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_network_is_laid_out_as_it_was_when_it_was_scored(channels_last, tmp_path):
    lineage, _ = grow(tmp_path / "l", training={"channels_last": channels_last})
    expect(ExitCode.OK, "--lineage", lineage.folder, "--gen", 3, "-o", tmp_path / "n")
    weight = load_network(tmp_path / "n").get_parameter("backbone.layer1.0.conv2.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last


def test_scores_that_were_not_computed_are_absent(tmp_path):
    lineage, _ = grow(tmp_path / "l", scored=False)
    document = json.loads(
        expect(ExitCode.OK, "--lineage", lineage.folder, "--gen", 3, "-o", tmp_path / "n", "--json")
    )
    assert "slim" not in document


def test_the_newest_lineage_is_taken_and_named(grown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grow(tmp_path / "lineages" / "newest")
    result = run("--gen", 3, "-o", "n")
    assert result.exit_code == 0, result.output
    assert "newest lineage: lineages/newest" in result.stderr
    assert load_network("n")


def test_an_existing_folder_is_replaced_only_when_asked(grown, tmp_path):
    lineage, _ = grown
    arguments = ("--lineage", lineage.folder, "-o", tmp_path / "n")
    expect(ExitCode.OK, *arguments, "--gen", 3)
    assert "--overwrite" in expect(ExitCode.USAGE, *arguments, "--gen", 2)
    expect(ExitCode.OK, *arguments, "--gen", 2, "--overwrite")
    # Told before anything is looked for or loaded.
    assert "--overwrite" in expect(ExitCode.USAGE, "--lineage", tmp_path / "none", "-o", tmp_path / "n", "--gen", 2)
    (tmp_path / "n" / "notes.txt").write_text("mine")
    assert "never replaced" in expect(ExitCode.USAGE, *arguments, "--gen", 2, "--overwrite")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--gen", 4), ExitCode.LINEAGE, "no generation 4; there are generations 1 to 3"),
        (("--gen", 1), ExitCode.LINEAGE, "weights of this generation were not kept"),
        (("--gen", "bset"), ExitCode.USAGE, "must be a number, last or best; did you mean 'best'"),
        (("--gen", "all"), ExitCode.USAGE, "must be a number, last or best"),
    ],
)
def test_generations_that_cannot_be_stored(arguments, code, words, grown, tmp_path):
    assert words in expect(code, "--lineage", grown[0].folder, "-o", tmp_path / "n", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_best_generation_kept_is_taken_and_told(grown, tmp_path):
    result = run("--lineage", grown[0].folder, "-o", tmp_path / "n")
    assert result.exit_code == ExitCode.OK, result.output
    assert f"network: {grown[0].folder}, generation 2, slim (Recall@1 37.5 %, dense 75.0 %)" in result.stderr
    origin = read_description(tmp_path / "n").origin
    assert origin == f"{grown[0].folder.name}, generation 2, slim (Recall@1 37.5 %, dense 75.0 %)"


@pytest.mark.parametrize("kind", ["kels", "wels"])
def test_the_dense_network_is_stored_too(kind, tmp_path):
    lineage, _ = grow(tmp_path / "l", split={"kind": kind}, scored=kind == "kels")
    arguments = ("--lineage", lineage.folder, "--gen", 3, "--network", "dense", "-o", tmp_path / "n", "--json")
    document = json.loads(expect(ExitCode.OK, *arguments))
    assert document["network"] == "dense"
    assert document["dense"] == {"recall@1": RECALLS[2]}
    assert ("slim_parameters" in document) == (kind == "kels")
    assert document["dense_bytes"] == (tmp_path / "n" / "model.safetensors").stat().st_size
    assert read_description(tmp_path / "n").split is None
    dense, _ = LineageNetworks(lineage.recipe, 0).restore(lineage.load(3))
    assert torch.equal(load_network(tmp_path / "n")(IMAGES), dense.eval()(IMAGES))


def test_counts_are_whole_numbers_and_shares_percent(tmp_path):
    scores = {"recall@1": 0.8125, "map@r": 0.5, "queries": 750, "queries_without_match": 0}
    lineage, _ = grow(tmp_path / "l", scores=scores)
    table = expect(ExitCode.OK, "--lineage", lineage.folder, "--gen", 3, "-o", tmp_path / "n")
    rows = (line.strip("│").split("│") for line in table.splitlines() if line.startswith("│"))
    cells = {name.strip(): [value.strip() for value in values] for name, *values in rows}
    assert cells["queries"] == ["750", "750"]
    assert (cells["queries_without_match"], cells["map@r"]) == (["0", "0"], ["50.0 %", "50.0 %"])
    assert "81.2 %" in table


def test_single_weights_make_no_slim_network(tmp_path):
    lineage, _ = grow(tmp_path / "l", split={"kind": "wels"}, scored=False)
    told = expect(ExitCode.LINEAGE, "--lineage", lineage.folder, "--gen", 3, "-o", tmp_path / "n")
    assert "no slim network: split.kind = 'wels'" in told
    assert not (tmp_path / "n").exists()


def test_slim_alone_leaves_nothing_to_be_cut_out(tmp_path):
    lineage, _ = grow(tmp_path / "l", method={"name": "slim_alone"}, scored=False)
    told = expect(ExitCode.LINEAGE, "--lineage", lineage.folder, "--gen", 3, "-o", tmp_path / "n")
    assert "no slim network: method.name = 'slim_alone' trains the slim architecture itself" in told
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_a_slim_classifier_knows_its_classes(head, tmp_path):
    network = {"backbone": "timm/test_resnet", "head": head}
    lineage, slims = grow(tmp_path / "l", task="classification", network=network)
    expect(ExitCode.OK, "--lineage", lineage.folder, "--gen", 3, "-o", tmp_path / "n")
    described = read_description(tmp_path / "n")
    assert described.class_names == CLASSES
    assert described.embedding_size is None
    loaded = load_network(tmp_path / "n").eval()
    assert loaded(IMAGES).shape == (2, 3)
    torch.testing.assert_close(loaded(IMAGES), slims[3].eval()(IMAGES))


def test_no_lineage(tmp_path):
    assert "no lineage here" in expect(ExitCode.LINEAGE, "--lineage", tmp_path, "--gen", 1, "-o", tmp_path / "n")
