"""What an earlier version stored goes on as it was made: `written_before/` was written by commit 059f433.

Its pictures are drawings whose transparent parts hide the colour of their class, and photographs that lie on their
side: seen by today's default, they are other pictures. The recipe is beside them; the commands were `train
recipe.yaml`, `slim --gen 2 -o slim`, `embed pictures --bundle slim -o vectors` and `index build --from vectors -o
index`.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ke_metric import Embedder, Lineage, load_recipe
from ke_metric.cli import main
from ke_metric.errors import KeMetricError
from ke_metric.images.preparation import Preparation
from ke_metric.lineage.folder import as_continued
from ke_metric.networks.bundle_config import CONFIG, ClassifierArchitecture, EmbeddingArchitecture
from ke_metric.recipe.schema import Network, Recipe
from ke_metric.retrieval.index import Index
from ke_metric.retrieval.picture_list import list_pictures
from ke_metric.schema import (
    ARCHITECTURE_FIELDS,
    FORMER_RECIPE_FIELDS,
    PREPARATION_FIELDS,
    RECIPE_FIELDS,
    with_values_before,
    without_values_before,
)

BEFORE = Path(__file__).parent / "written_before"
FIELDS = (BEFORE.parent / "recipe_fields_059f433.txt").read_text(encoding="utf-8").split()
# Stored are those of a k-means that was drawn item by item.
CLUSTERS_IN_BLOCKS = {
    "dense": {"nmi": 0.6251629167387823, "ami": 0.4789463118076099},
    "slim": {"nmi": 0.5832810815786883, "ami": 0.4308183360419873},
}
DIGEST = json.loads((BEFORE / "lineage" / "lineage.json").read_text(encoding="utf-8"))["recipe_digest"]


def fields_of(document, prefix=""):
    """Dotted names of the fields of a recipe; the arguments of losses and miners are the user's own."""
    for name, value in document.items():
        if isinstance(value, dict) and name != "arguments":
            yield from fields_of(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_field_that_was_added_says_what_it_was_before():
    """Whoever adds a field must think of the recipes that are stored: write it into `RECIPE_FIELDS`."""
    now = set(fields_of(Recipe(name="x", miner={"name": "x"}).model_dump(mode="json")))
    assert now - set(FIELDS) == set(RECIPE_FIELDS)
    assert set(FIELDS) - set(FORMER_RECIPE_FIELDS) <= now
    assert all(field.count(".") == 1 for field in RECIPE_FIELDS), "as_continued knows fields of sections"
    where = "config.json has the section `network` too: fill it there, and leave it out of the digest of an Embedder"
    of_networks = {field: value for field, value in RECIPE_FIELDS.items() if field.startswith("network.")}
    assert of_networks == ARCHITECTURE_FIELDS, where
    defaults = Network().model_dump(mode="json")
    for field, value in ARCHITECTURE_FIELDS.items():
        assert defaults[field.removeprefix("network.")] == value, "what config.json lacks"


@pytest.mark.parametrize("kind", [EmbeddingArchitecture, ClassifierArchitecture])
def test_what_a_stored_network_lacks_is_the_value_before(kind):
    """config.json has the section `network` too, and the digest of an Embedder covers it."""
    classes = {"classes": 3} if kind is ClassifierArchitecture else {}
    whole = kind.model_validate({"network": {}, "image_size": 32, **classes}).model_dump(mode="json")
    before = without_values_before(whole, ARCHITECTURE_FIELDS)
    assert len(before["network"]) == len(whole["network"]) - len(ARCHITECTURE_FIELDS)
    assert kind.model_validate(before).model_dump(mode="json") == whole


def test_a_continued_recipe_has_values_of_the_types_of_a_recipe():
    """A list in the place of a tuple is another recipe, and pydantic warns whenever it is written."""
    stored = Recipe.model_validate(with_values_before({"name": "x"}, RECIPE_FIELDS))
    continued = as_continued(stored, Recipe(name="x"))
    assert continued == stored
    assert continued.split.rates == ()
    assert continued.network.nested_sizes == ()
    assert not continued.data.exif_orientation


def test_every_added_field_of_the_preparation_too():
    before = {"store_size", "store_shape", "resize", "image_size", "mean", "std"}
    assert set(Preparation.model_fields) - before == set(PREPARATION_FIELDS)


def test_filling_and_leaving_out_are_opposites():
    added = {"a.b": 1, "a.c": False, "d": None}
    stored = {"a": {"x": 2}, "e": [1]}
    assert with_values_before(stored, added) == {"a": {"x": 2, "b": 1, "c": False}, "d": None, "e": [1]}
    assert stored == {"a": {"x": 2}, "e": [1]}
    assert without_values_before(with_values_before(stored, added), added) == stored
    changed = {"a": {"x": 2, "b": True, "c": 0}, "d": 0, "e": [1]}
    assert without_values_before(changed, added) == changed, "true is not 1, and 0 is not false"
    new_section = {"n.x": 1, "n.y": None, "m.z": 0}
    assert without_values_before({"n": {"x": 1, "y": None}, "m": {"z": 0, "old": {}}}, new_section) == {
        "m": {"old": {}}
    }
    assert without_values_before({"n": None}, new_section) == {"n": None}, "a section that is left out"
    assert with_values_before({"a": 3}, added) == {"a": 3, "d": None}, "the schema refuses it, in words"


@pytest.fixture
def before(tmp_path, monkeypatch):
    """A copy of all that was stored, in which the stored paths are right."""
    shutil.copytree(BEFORE, tmp_path / "before")
    monkeypatch.chdir(tmp_path / "before")
    return tmp_path / "before"


def run(*words):
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_its_recipe_is_prepared_as_before_and_keeps_its_digest(before):
    recipe = Lineage("lineage").recipe
    assert (recipe.data.background, recipe.data.exif_orientation) == ("keep", False)
    assert recipe.digest == DIGEST
    assert load_recipe("lineage/recipe.resolved.yaml").digest == DIGEST
    anew = load_recipe("recipe.yaml")
    assert (anew.data.background, anew.data.exif_orientation) == ("white", True)
    assert anew.digest != DIGEST


def test_it_evaluates_to_its_scorecard(before):
    stored = json.loads(Path("lineage/generation-002/scorecard.json").read_text(encoding="utf-8"))
    scored = run("eval", "--lineage", "lineage", "--gen", 2, "--device", "cpu", "--json")
    for network in ("dense", "slim"):
        assert scored[network] == pytest.approx(stored[network] | CLUSTERS_IN_BLOCKS[network])


def test_clusters_of_before_are_said_to_be_others(before):
    result = CliRunner().invoke(main, ["eval", "--lineage", "lineage", "--gen", "2", "--device", "cpu"])
    assert "clusters by k-means drawn item by item then, k-means drawn in blocks now" in result.stderr


def test_other_pictures_would_score_otherwise(before):
    """Or the test above could not fail."""
    path = before / "lineage" / "recipe.resolved.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("data:\n", "data:\n  background: white\n", 1))
    stored = json.loads(Path("lineage/generation-002/scorecard.json").read_text(encoding="utf-8"))
    scored = run("eval", "--lineage", "lineage", "--gen", 2, "--device", "cpu", "--json")
    for network in ("dense", "slim"):
        assert abs(scored[network]["map@r"] - stored[network]["map@r"]) > 0.05


def test_it_resumes_with_the_users_own_recipe(before):
    run(
        "train",
        "recipe.yaml",
        "--lineage",
        "lineage",
        "--resume",
        "--set",
        "generations=3",
        "--device",
        "cpu",
        "--json",
    )
    lineage = Lineage("lineage")
    assert lineage.numbers == [1, 2, 3]
    assert lineage.recipe.data.background == "keep"
    assert lineage.recipe.digest == Lineage(BEFORE / "lineage").recipe.model_copy(update={"generations": 3}).digest
    assert lineage.load(3).provenance.recipe_digest == lineage.recipe.digest == lineage.facts["recipe_digest"]


def test_a_field_that_is_set_is_asked_for(before):
    """Only what the recipe leaves out is taken from the lineage."""
    recipe = load_recipe("recipe.yaml", ["generations=3", "data.exif_orientation=true"])
    with pytest.raises(KeMetricError, match=r"data\.exif_orientation = True, the lineage has False"):
        Lineage("lineage").require_recipe(recipe)


def test_its_bundle_and_its_index_go_on(before):
    embedder = Embedder.load("slim", device="cpu")
    assert (embedder.normalization.background, embedder.normalization.exif_orientation) == ("keep", False)
    listed = list_pictures([Path("pictures")]).items
    with Index.open("index", device="cpu") as index:
        assert embedder.digest == index.digest == index.embedder.digest
        ((items, rows),) = index.store.read()
    stored = {item.id: row for item, row in zip(items, rows, strict=True)}
    assert [item.id for item in listed] == sorted(stored)
    vectors = embedder([item.path for item in listed])
    np.testing.assert_allclose(vectors, [stored[item.id] for item in listed], atol=1e-5)

    embedder.save("again")
    assert Embedder.load("again").digest == embedder.digest
    assert json.loads(Path("again", CONFIG).read_text(encoding="utf-8"))["normalization"]["background"] == "keep"
    seen_otherwise = Embedder.load("slim", device="cpu")
    seen_otherwise._normalization = seen_otherwise.normalization.model_copy(update={"background": "white"})
    assert not np.allclose(seen_otherwise([item.path for item in listed]), vectors, atol=1e-2)
