"""The table of better ranking: defaults are chosen on classes that nobody trained or tested on, by the rule told."""

import numpy as np
import pytest

from eval.ranking import run as ranking
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.evaluation.embeddings import Embeddings
from ke_metric.images.image_set import ImageSet
from ke_metric.recipe.schema import Recipe
from ke_metric.retrieval.ranking import Expansion, Reranking


def scores(recall, mean_precision):
    return {"recall@1": recall, "map@r": mean_precision, "r_precision": mean_precision}


def document(*, test, held_out):
    networks = {"networks": {"dense": held_out}}
    return {"parts": {"test": {"networks": {"dense": test}}, "held out": networks}}


def test_a_default_is_the_best_that_costs_no_network_much_recall():
    held_out = {
        "": scores(90, 50),
        "expand 1:0": scores(89.6, 52),
        "expand 2:0": scores(89.4, 70),
        "expand 4:0": scores(91, 51),
        "rerank 5:1:0.3": scores(80, 99),
        "expand 1:0 rerank 5:1:0.3": scores(95, 99),
    }
    test = {text: scores(99, 99 if text == "expand 4:0" else 0) for text in held_out}
    documents = [document(test=test, held_out=held_out)]
    assert ranking.choose(documents, "expand") == "expand 1:0"
    assert ranking.choose(documents, "rerank") == ""
    other = held_out | {"expand 1:0": scores(80, 90)}
    assert ranking.choose([*documents, document(test=test, held_out=other)], "expand") == "expand 4:0"


def test_every_setting_of_the_grid_is_one():
    for text in ranking.settings():
        expand, rerank = ranking.parsed(text)
        assert (expand is not None) == ("expand" in text)
        assert (rerank is not None) == ("rerank" in text)
    assert ranking.parsed("expand 2:3 rerank 10:3:0.3") == (Expansion(2, 3), Reranking(10, 3, 0.3))
    assert ranking.parsed("") == (None, None)


def test_held_out_classes_are_in_no_other_part():
    recipe = Recipe.model_validate(
        {"data": {"benchmark": "glyphs", "train_classes": 30, "test_classes": 20}, "name": "x", "generations": 1}
    )
    benchmark = load_benchmark(recipe.data, recipe.task)
    rest = ranking.held_out(recipe, benchmark)
    assert len(np.unique(rest.labels)) == ranking.HELD_OUT_CLASSES
    assert not set(rest.keys) & (set(benchmark.train.keys) | set(benchmark.query.keys))
    names = {rest.class_names[label] for label in np.unique(rest.labels)}
    trained, tested = (
        {part.class_names[n] for n in np.unique(part.labels)} for part in (benchmark.train, benchmark.query)
    )
    assert not names & (trained | tested)


def test_without_such_classes_nothing_is_chosen():
    recipe = Recipe.model_validate(
        {"data": {"benchmark": "glyphs", "test_classes": 20}, "name": "x", "generations": 1}
    )
    with pytest.raises(SystemExit, match="every class of the training part was trained on"):
        ranking.held_out(recipe, load_benchmark(recipe.data, recipe.task))


def test_the_table_tells_plain_scores_and_what_is_added():
    lines = ranking.table({"dense": {"": scores(90, 50), "expand 1:0": scores(89.5, 52.04)}})
    assert lines[2:] == ["| plain | 90.0 | 50.0 | 50.0 |", "| expand 1:0 | -0.5 | +2.0 | +2.0 |"]


def test_thinned_classes_have_so_many_pictures_and_their_scores_are_those_of_a_search():
    """Four classes of 5, 4, 3 and 1 pictures at right angles; each class a heap of its own."""
    labels = np.array([0] * 5 + [1] * 4 + [2] * 3 + [3])
    images = ImageSet(tuple(map(str, range(13))), labels, tuple("abcd"), None)
    noise = np.random.default_rng(0).normal(size=(13, 4)) / 100
    vectors = Embeddings(np.eye(4)[labels] + noise, labels).vectors
    for size in (1, 2, 3):
        found = ranking.thinned_scores(images, vectors, size, np.random.default_rng(0))
        assert found[""] == scores(100, 100)
        assert found.keys() == {"", *(f"rerank {text}" for text in ranking.THINNED)}
    # Three pictures that look alike and are of two classes: of two, one of them alone has something to find.
    labels = np.array([0, 0, 1])
    images = ImageSet(("a", "b", "c"), labels, ("x", "y"), None)
    found = ranking.thinned_scores(images, np.ones((3, 4), np.float32) / 2, 2, np.random.default_rng(0))
    assert found[""] == scores(50, 50)


def test_tables_of_class_sizes_stand_without_the_rest():
    sizes = {"1": {"dense": {"": scores(90, 50), "rerank 5:3:0.3": scores(80, 51)}}}
    found = {"classes": 300, "draws": 5, "provenance": ["- here"], "sizes": sizes}
    lines = ranking.report([{"lineage": "x", "class_sizes": found}])
    assert "#### 1 a class, queried by another picture of each class" in lines
    assert "| rerank 5:3:0.3 | -10.0 | +1.0 | +1.0 |" in lines
    assert not any("Chosen" in line for line in lines)
