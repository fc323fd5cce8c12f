"""`ke-metric eval --on`: other labelled pictures, scored by any lineage or bundle, and what is refused."""

import csv
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ke_metric import Embedder, Lineage
from ke_metric.cli import main
from ke_metric.errors import ExitCode
from ke_metric.evaluation.retrieval import Scoring, score_retrieval
from ke_metric.generation import DataFingerprint, Generation, PartFingerprint, Provenance, Scorecard
from ke_metric.images.image_set import FolderSource
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.recipe.schema import Recipe

FIELDS = {
    "generations": 1,
    "data": {"benchmark": "folder", "image_size": 32, "store_size": 32},
    "network": {"backbone": "timm/test_resnet"},
    "evaluation": {"resize": 32, "recall_at": [1, 3], "kmeans_seeds": 1},
}
RETRIEVAL = {"name": "r", "network": {"backbone": "timm/test_resnet", "embedding_size": 8}}
CLASSIFICATION = {
    "name": "c", "task": "classification", "loss": {"name": "CrossEntropyLoss"}, "batches": {"sampler": "shuffled"},
}  # fmt: skip


def run(*arguments):
    return CliRunner().invoke(main, ["eval", *map(str, arguments)])


def expect(code, *arguments):
    result = run(*arguments)
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result.stderr if code else result.stdout


def scored(*arguments):
    return json.loads(expect(ExitCode.OK, "--json", *arguments))


def grow(folder, fields, class_names=()):
    """Store a lineage of one generation whose network was drawn, not trained."""
    recipe = Recipe.model_validate(FIELDS | fields)
    lineage = Lineage.create(folder, recipe, text="x", command="ke-metric train x.yaml")
    networks = LineageNetworks(recipe, len(class_names))
    network = networks.build(1)
    plan = networks.plan(network, 1)
    score = {"top1": 0.5} if class_names else {"recall@1": 0.5}
    provenance = Provenance("x", None, 0, {"versions": {"torch": "1"}}, {"device": "cpu"}, {}, class_names)
    lineage.append(
        Generation(1, network.state_dict(), {}, plan.to_json(), plan.to_tensors(), Scorecard(score, score, 9, 3), (),
                   {}, provenance)
    )  # fmt: skip
    return lineage.folder


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory):
    return grow(tmp_path_factory.mktemp("retrieval") / "lineage", RETRIEVAL)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return grow(tmp_path_factory.mktemp("classifier") / "lineage", CLASSIFICATION, ("crow", "jay", "wren"))


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """Five crows, four jays, three owls: coarse noise, a little brighter from class to class."""
    root = tmp_path_factory.mktemp("birds")
    generator = np.random.default_rng(0)
    for shade, (name, count) in enumerate({"crow": 5, "jay": 4, "owl": 3}.items()):
        (root / name).mkdir()
        for number in range(count):
            pixels = (
                generator.integers(9 * shade, 9 * shade + 99, (4, 3, 3))
                .repeat(10, axis=0)
                .repeat(12, axis=1)
                .astype(np.uint8)
            )
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_a_lineage_scores_pictures_that_it_has_never_seen(retrieval, birds):
    """The numbers of `score_retrieval` on what the embedder gives, for both networks."""
    found = scored("--on", birds, "--lineage", retrieval)
    paths = sorted(birds.glob("*/*.png"))
    labels = [("crow", "jay", "owl").index(path.parent.name) for path in paths]
    for network in ("dense", "slim"):
        vectors = Embedder.load(retrieval, 1, network)(paths)
        assert found[network] == score_retrieval(vectors, labels, (1, 3), scoring=Scoring(kmeans_seeds=(0,)))
    assert found["dense"] != found["slim"]
    assert {name: found[name] for name in ("on", "pictures", "left_out", "lineage", "generation")} == {
        "on": str(birds), "pictures": 12, "left_out": [], "lineage": str(retrieval), "generation": 1,
    }  # fmt: skip


def test_pictures_that_were_trained_on_are_told(retrieval, birds, tmp_path):
    folder = tmp_path / "lineage"
    shutil.copytree(retrieval, folder)
    assert "trained_on" not in scored("--on", birds, "--lineage", folder, "--network", "dense")
    source = FolderSource(birds)
    crows = tuple(f"crow/{number}.png" for number in range(4))
    trained = PartFingerprint(crows, (0,) * 4, ("crow",), tuple(map(source.content, crows)))
    (folder / "data.json").write_text(json.dumps(DataFingerprint({"train": trained}).to_json()))
    result = run("--on", birds, "--lineage", folder, "--network", "dense")
    assert f"4 of these 12 pictures are ones that {folder} was trained on" in result.stderr
    assert scored("--on", birds, "--lineage", folder, "--network", "dense")["trained_on"] == 4


def test_a_csv_says_the_labels_and_a_bundle_is_a_network_too(retrieval, birds, tmp_path):
    Embedder.load(retrieval, 1, "slim").save(tmp_path / "bundle")
    table = birds / "labels.csv"
    with table.open("w", newline="") as file:
        rows = [(str(path.relative_to(birds)), path.parent.name) for path in sorted(birds.glob("*/*.png"))]
        csv.writer(file).writerows([("path", "label"), *rows])
    found = scored("--on", table, "--bundle", tmp_path / "bundle")
    expected = scored("--on", birds, "--lineage", retrieval, "--gen", "all")["generations"][0]["slim"]
    assert found["network"]["recall@1"] == expected["recall@1"]
    assert found["network"]["map@r"] == pytest.approx(expected["map@r"])
    assert found["network"].keys() >= {"recall@1", "recall@2", "recall@4", "recall@8", "nmi"}
    assert "lineage" not in found
    told = expect(ExitCode.GATE, "--on", birds, "--bundle", tmp_path / "bundle", "--min", "map@r=99.9%")
    assert "bundle" in told
    assert "below the minimum" in told


def test_a_classifier_scores_the_classes_that_it_knows(classifier, birds):
    """Owls it has never heard of: they are found like the others, and count in no accuracy."""
    result = run("--json", "--on", birds, "--lineage", classifier, "--network", "dense")
    assert result.exit_code == ExitCode.OK, result.output
    found = json.loads(result.stdout)
    assert found["dense"].keys() >= {"recall@1", "map@r", "top1", "balanced_accuracy"}
    assert found["dense"]["majority_baseline"] == 5 / 9
    assert found["unknown_classes"] == {"owl": 3}
    assert sum(sum(others.values()) for others in found["classes"]["dense"]["confusion"].values()) == 9
    assert "no class named owl; it knows crow, jay, wren: top-1 is of the others" in result.stderr


def test_a_classifier_of_other_classes_says_why_there_is_no_top_1(birds, tmp_path):
    folder = grow(tmp_path / "lineage", CLASSIFICATION, ("0", "1"))
    result = run("--json", "--on", birds, "--lineage", folder)
    assert result.exit_code == ExitCode.OK, result.output
    assert "no top-1: not one class is known" in result.stderr
    assert "top1" not in json.loads(result.stdout)["dense"]
    assert "R@1" in expect(ExitCode.OK, "--on", birds, "--lineage", folder)


def test_what_cannot_be_scored_is_told_before_a_network_is_loaded(retrieval, birds, tmp_path):
    lone = birds / "crow" / "0.png"
    assert "1 of 1 pictures have no label" in expect(ExitCode.DATA, "--on", lone, "--lineage", retrieval)
    parts = tmp_path / "parts"
    for part, name in (("train", "crow"), ("test", "crow"), ("test", "jay")):
        (parts / part / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(parts / part / name / "a.png")
    assert "below folders named test and train: name one" in expect(
        ExitCode.DATA, "--on", parts, "--lineage", retrieval
    )
    told = expect(ExitCode.DATA, "--on", parts / "test", "--lineage", retrieval)
    assert "none of the 2 classes has a second picture to find: crow, jay" in told
    Image.new("RGB", (40, 40)).save(parts / "test" / "loose.png")
    told = expect(ExitCode.DATA, "--on", parts / "test", "--lineage", retrieval)
    assert "1 of 3 pictures have no label: " in told
    assert "loose.png" in told


def test_a_csv_may_name_its_columns_otherwise(retrieval, birds, tmp_path):
    rows = "".join(f"{path};{path.parent.name}\n" for path in sorted(birds.glob("*/*.png")))
    (birds / "list.csv").write_text("file;species\n" + rows.replace(f"{birds}/", ""))
    named = ("--path-column", "file", "--label-column", "species")
    found = scored("--on", birds / "list.csv", *named, "--lineage", retrieval)
    (birds / "list.csv").unlink()
    expected = scored("--on", birds, "--lineage", retrieval)
    assert found["dense"] == expected["dense"]
    assert "need --on" in expect(ExitCode.USAGE, *named, "--lineage", retrieval)


def test_a_minimum_of_no_score_is_refused_before_the_pictures_are_listed(retrieval, classifier, tmp_path):
    for lineage, name in ((retrieval, "recall@2"), (retrieval, "top1"), (classifier, "validation_top1")):
        told = expect(ExitCode.USAGE, "--on", tmp_path / "nowhere", "--lineage", lineage, "--min", f"{name}=0.1")
        assert f"--min {name}: there is no such score" in told
    told = expect(ExitCode.DATA, "--on", tmp_path / "nowhere", "--lineage", classifier, "--min", "top1=0.1")
    assert "no such file or folder" in told


def test_a_broken_picture_is_left_out_and_named(retrieval, birds, tmp_path):
    root = tmp_path / "birds"
    for name in ("crow", "jay"):
        (root / name).mkdir(parents=True)
        for number in range(2):
            (root / name / f"{number}.png").write_bytes((birds / name / f"{number}.png").read_bytes())
    (root / "jay" / "broken.png").write_bytes(b"no picture")
    result = run("--json", "--on", root, "--lineage", retrieval)
    assert json.loads(result.stdout)["pictures"] == 4
    assert [each["path"] for each in json.loads(result.stdout)["left_out"]] == [str(root / "jay" / "broken.png")]
    assert result.stderr.count("warning: ") == 1
    for path in root.glob("*/?.png"):
        path.write_bytes(b"neither")
    assert "none of the 5 pictures can be used" in expect(ExitCode.DATA, "--on", root, "--lineage", retrieval)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bundle", "x"], "--bundle needs --on"),
        (["--on", "x", "--store", "memmap"], "--on and --store exclude each other"),
        (["--on", "x", "--bundle", "y", "--gen", "last"], "it excludes --lineage, --gen and --network"),
    ],
)
def test_usage_errors(arguments, words):
    assert words in expect(ExitCode.USAGE, *arguments)
