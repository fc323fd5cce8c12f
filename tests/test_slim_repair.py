"""What is repaired of a slim network: by training pictures alone, chosen by how it recognises them, and kept."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from ke_metric.errors import KeMetricError
from ke_metric.evaluation.embeddings import embed
from ke_metric.evolution import evolve
from ke_metric.generation import SlimRepair
from ke_metric.images.batches import evaluation_batches
from ke_metric.images.image_set import Benchmark, ImageSet
from ke_metric.images.pixel_store import Pictures, PixelStore
from ke_metric.lineage.files import read_generation, write_generation
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.recipe.schema import Recipe
from ke_metric.scoring import Scorer
from ke_metric.slim_repair import SlimRepairer
from ke_metric.split.hypotheses import extract_slim
from ke_metric.training.engine import Engine

SIZE = 32
CPU = torch.device("cpu")


def part(name, classes, each, seed):
    labels = np.repeat(np.arange(classes), each).astype(np.int64)
    tint = 20 * np.stack([labels, labels % 2, -labels], axis=1)[:, None, None, :]
    pixels = np.random.default_rng(seed).integers(110, 170, (len(labels), SIZE, SIZE, 3)) + tint
    sides = np.full(len(labels), SIZE, np.int64)
    keys = tuple(f"{name}-{number}" for number in range(len(labels)))
    images = ImageSet(keys, labels, tuple("abcdefgh"[:classes]), None)
    return images, PixelStore(pixels.clip(0, 255).astype(np.uint8).reshape(-1), sides, widths=sides)


@pytest.fixture(scope="module")
def pictures():
    (train, train_store), (test, test_store) = part("train", 4, 6, 0), part("test", 4, 3, 1)
    return Pictures(Benchmark("noise", train, test, test), train_store, test_store, test_store)


def recipe_of(repair, task="retrieval", **fields):
    evaluation = {"recall_at": [1], "resize": SIZE, "kmeans_seeds": 1, "backend": "torch", "slim_repair": repair}
    sizes = {"embedding_size": 8} if task == "retrieval" else {}
    return Recipe.model_validate(
        {
            "name": "noise",
            "task": task,
            "generations": 1,
            "data": {"image_size": SIZE, "store_size": SIZE},
            "network": {"backbone": "timm/test_resnet", **sizes},
            "loss": {"name": "ProxyAnchorLoss" if task == "retrieval" else "CrossEntropyLoss"},
            "batches": {"size": 8, "images_per_class": 2},
            "optimizer": {"learning_rate": 0.01},
            "training": {"epochs": 1, "precision": "fp32"},
            "evaluation": evaluation,
            **fields,
        }
    )


@pytest.fixture(scope="module")
def grown(pictures):
    """A generation with slim networks of two rates, repaired."""
    recipe = recipe_of("both", split={"rates": [0.25, 0.5]})
    return recipe, next(evolve(recipe, pictures, device="cpu"))


def networks_of(recipe, generation):
    return LineageNetworks(recipe, 4).restore(generation)


def score(pictures, recipe, network):
    return Scorer(pictures, recipe, Engine("fp32", "cpu")).score(network)


def test_stored_repairs_give_the_numbers_of_the_scorecard(grown, pictures, tmp_path):
    recipe, generation = grown
    write_generation(tmp_path / "generation-001", generation)
    stored = read_generation(tmp_path / "generation-001", 1)
    assert stored.scorecard == generation.scorecard
    assert stored.narrow_splits == generation.narrow_splits
    dense, plan = networks_of(recipe, stored)
    networks = LineageNetworks(recipe, 4)
    card = stored.scorecard
    assert score(pictures, recipe, networks.slim(dense, stored)) == card.slim
    assert score(pictures, recipe, networks.slim(dense, stored, 0.25)) == card.narrow["0.25"].scores
    # As cut, it is what it always was: the exactness of the cut is that of `extract_slim`.
    assert score(pictures, recipe, extract_slim(dense, plan)) == card.slim_as_cut
    # Where all scores are 1, the vectors still tell.
    vectors = [
        Scorer(pictures, recipe, Engine("fp32", "cpu")).vectors(network)[0]
        for network in (extract_slim(dense, plan), networks.slim(dense, stored))
    ]
    assert not np.allclose(*vectors, atol=1e-2)
    assert (card.slim_repair, card.narrow["0.25"].repair) == ("both", "both")
    assert card.narrow.keys() == {"0.25"}
    with pytest.raises(KeMetricError, match=r"rate = 0\.75: generation 1 has slim networks of rate 0\.25, 0\.5"):
        networks.slim(dense, stored, 0.75)


def test_both_is_statistics_first_and_then_the_layer(grown, pictures):
    """Dense features would give another layer: the one that is stored whitens what the slim network computes."""
    recipe, generation = grown
    dense, _ = networks_of(recipe, generation)
    slim = LineageNetworks(recipe, 4).slim(dense, generation).eval()
    batches = evaluation_batches(pictures.train, range(24), recipe=recipe, device=CPU)
    features = embed(slim.backbone, batches)
    outputs = features @ slim.head.weight.detach().numpy().T + slim.head.bias.detach().numpy()
    covariance = np.cov(outputs.T, bias=True)
    np.testing.assert_allclose(outputs.mean(0), 0, atol=1e-3)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-2
    repaired = generation.repairs["0.5"].tensors
    assert {"head.weight", "head.bias"} < repaired.keys()
    assert {name for name in repaired if name.endswith("running_var")}


@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_auto_takes_what_recognises_the_training_pictures_best(task, pictures):
    kinds = ("statistics", "whiten" if task == "retrieval" else "refit", "both")
    recipe = recipe_of("auto", task)
    generation = next(evolve(recipe, pictures, device="cpu"))
    dense, plan = networks_of(recipe, generation)
    dense.eval()
    found = {"none": SlimRepair("none")}
    for kind in kinds:
        repairer = SlimRepairer(pictures, recipe_of(kind, task), device=CPU, number=1)
        found[kind] = repairer.repair(dense, extract_slim(dense, plan).eval())
        assert found[kind].kind == kind
    on_train = Pictures(
        Benchmark("noise", *[pictures.benchmark.train] * 3), pictures.train, pictures.train, pictures.train
    )
    name = "recall@1" if task == "retrieval" else "top1"
    worth = {}
    for kind, repair in found.items():
        slim = extract_slim(dense, plan)
        slim.load_state_dict({**slim.state_dict(), **repair.tensors})
        worth[kind] = score(on_train, recipe, slim)[name]
    chosen = generation.repairs["0.5"]
    assert worth[chosen.kind] == max(worth.values())
    assert generation.scorecard.slim_repair == chosen.kind


def test_test_pictures_are_never_looked_at(pictures):
    other, other_store = part("test", 4, 3, 9)
    changed = Pictures(
        Benchmark("noise", pictures.benchmark.train, other, other), pictures.train, other_store, other_store
    )
    recipe = recipe_of("auto")
    one, two = (next(evolve(recipe, each, device="cpu")) for each in (pictures, changed))
    assert one.repairs["0.5"].kind == two.repairs["0.5"].kind
    for name, value in one.repairs["0.5"].tensors.items():
        assert torch.equal(value, two.repairs["0.5"].tensors[name]), name


class WithoutNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4, 8)

    def forward(self, images):
        return nn.functional.normalize(self.head(self.backbone(images)), dim=1)


@pytest.mark.parametrize(("wanted", "expected"), [("statistics", "none"), ("both", "whiten"), ("whiten", "whiten")])
def test_without_batch_norm_there_are_no_statistics_to_repair(wanted, expected, pictures):
    network = WithoutNorms().eval()
    repair = SlimRepairer(pictures, recipe_of(wanted), device=CPU, number=1).repair(network, copy.deepcopy(network))
    assert repair.kind == expected
    assert set(repair.tensors) == ({"head.weight", "head.bias"} if expected == "whiten" else set())


def test_of_many_training_pictures_whole_classes_are_drawn(monkeypatch, pictures):
    monkeypatch.setattr("ke_metric.slim_repair.MOST_PICTURES", 13)
    drawn = SlimRepairer(pictures, recipe_of("auto"), device=CPU, number=1)._positions
    labels, counts = np.unique(pictures.benchmark.train.labels[drawn], return_counts=True)
    assert len(drawn) == 13
    assert len(labels) == 3
    assert sorted(counts.tolist()) == [1, 6, 6]
    again = SlimRepairer(pictures, recipe_of("auto"), device=CPU, number=1)._positions
    assert np.array_equal(drawn, again)


def test_nothing_is_repaired_where_the_recipe_asks_for_nothing(pictures):
    generation = next(evolve(recipe_of("none"), pictures, device="cpu"))
    card = generation.scorecard
    assert (generation.repairs, card.slim_as_cut, card.slim_repair, card.narrow) == ({}, None, None, None)
