"""Scoring: every picture once, in fp32, with the network left as it was."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from ke_metric.evaluation.embeddings import Embeddings, embed
from ke_metric.evaluation.retrieval import Scoring, score_retrieval
from ke_metric.images.batches import evaluation_batches
from ke_metric.images.image_set import Benchmark, ImageSet
from ke_metric.images.pixel_store import Pictures, PixelStore
from ke_metric.recipe.schema import Recipe
from ke_metric.scoring import Scorer, count_parameters
from ke_metric.split.hypotheses import extract_slim
from ke_metric.split.planning import plan_split
from ke_metric.training.engine import Engine

SIZE = 16
CPU = torch.device("cpu")


def part(name, counts, seed):
    """Noise whose tint depends a little on the class: neither all hits nor none."""
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    tint = 12 * np.stack([labels, -labels, labels % 2], axis=1)[:, None, None, :]
    noise = np.random.default_rng(seed).integers(60, 190, (len(labels), SIZE, SIZE, 3))
    sides = np.full(len(labels), SIZE, np.int64)
    keys = tuple(f"{name}-{label}-{number}" for label, count in enumerate(counts) for number in range(count))
    images = ImageSet(keys, labels, tuple("abcdefghijkl"[: len(counts)]), None)
    return images, PixelStore((noise + tint).astype(np.uint8).reshape(-1), sides, widths=sides)


def classes_of(counts=(5, 4, 6, 3), validation=None):
    """A benchmark of known classes, whose gallery is its test part."""
    nothing, nothing_stored = part("train", (), 0)
    test, test_stored = part("test", counts, 1)
    held_out, held_out_stored = (None, None) if validation is None else part("validation", validation, 2)
    nothing = ImageSet((), nothing.labels, test.class_names, None)
    benchmark = Benchmark("noise", nothing, test, test, validation=held_out)
    return Pictures(benchmark, nothing_stored, test_stored, test_stored, held_out_stored)


def pictures_of(counts=(5, 4, 6), gallery_counts=None):
    nothing, nothing_stored = part("train", (), 0)
    query, query_stored = part("test", counts, 1)
    gallery, gallery_stored = query, query_stored
    if gallery_counts is not None:
        # Of a class, items with one number have one key: they are the same picture.
        gallery, gallery_stored = part("test", gallery_counts, 1)
    return Pictures(Benchmark("noise", nothing, query, gallery), nothing_stored, query_stored, gallery_stored)


class Network(nn.Module):
    """Remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(6 * 49, 4)
        self.given = []

    def forward(self, images):
        maps = self.dropout(torch.relu(self.norm(self.convolution(images))))
        self.given.append((images, maps.dtype))
        return normalize(self.head(maps.flatten(1)).float(), dim=1)


@pytest.fixture
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network()
    nn.init.uniform_(network.norm.running_mean, generator=torch.Generator().manual_seed(1))
    return network


def scorer_of(pictures=None, *, slim=True, engine=None, **fields):
    recipe = Recipe.model_validate(
        {
            "name": "noise",
            **fields,
            "data": {"image_size": SIZE, "store_size": SIZE},
            "evaluation": {
                "recall_at": [1, 3],
                "resize": SIZE,
                "batch_size": 4,
                "kmeans_seeds": 2,
                "backend": "torch",
                "slim": slim,
            },
        }
    )
    return Scorer(pictures or pictures_of(), recipe, engine or Engine("fp32", "cpu"))


def plan_of(network, kind="kels"):
    return plan_split(network, torch.zeros(1, 3, SIZE, SIZE), rate=0.5, kind=kind, seed=0)


def vectors_of(network, store, scorer):
    """Return embeddings, worked out picture by picture."""
    batches = evaluation_batches(store, range(len(store)), recipe=scorer.recipe, device=CPU)
    with torch.no_grad():
        return torch.cat([network.eval()(image[None]) for batch in batches for image in batch]).numpy()


def same(found, expected):
    return found == pytest.approx(expected, abs=1e-6)


def test_scores_are_those_of_the_embeddings(network):
    scorer = scorer_of()
    scores = scorer.score(network)
    vectors = vectors_of(network, scorer.pictures.query, scorer)
    labels = scorer.pictures.benchmark.query.labels
    assert same(scores, score_retrieval(vectors, labels, (1, 3), scoring=Scoring("torch", CPU, (0, 1))))
    assert 0 < scores["recall@1"] < 1


def test_a_gallery_is_searched_without_the_query_itself(network):
    scorer = scorer_of(pictures_of((5, 4, 6), gallery_counts=(5, 4, 6, 3)))
    scores = scorer.score(network)
    query, gallery = (
        vectors_of(network, store, scorer) for store in (scorer.pictures.query, scorer.pictures.gallery)
    )
    benchmark = scorer.pictures.benchmark
    expected = score_retrieval(
        query,
        benchmark.query.labels,
        (1, 3),
        gallery=Embeddings(gallery, benchmark.gallery.labels, benchmark.gallery.keys),
        ids=benchmark.query.keys,
        scoring=Scoring("torch", CPU, (0, 1)),
    )
    assert same(scores, expected)
    assert scores["recall@1"] < 1, "a query has found itself"


def test_dense_and_slim_side_by_side(network):
    scorer, plan = scorer_of(), plan_of(network)
    card = scorer.scorecard(network, plan)
    slim = extract_slim(network, plan)
    assert card.dense == scorer.score(network)
    assert card.slim == scorer.score(slim)
    assert card.dense != card.slim
    assert (card.dense_parameters, card.slim_parameters) == (count_parameters(network), count_parameters(slim))
    assert card.dense_parameters == 6 * 27 + 12 + 6 * 49 * 4 + 4
    assert card.slim_parameters == 3 * 27 + 6 + 3 * 49 * 4 + 4


@pytest.mark.parametrize(("kind", "slim"), [("wels", True), ("kels", False)])
def test_no_slim_network(kind, slim, network):
    card = scorer_of(slim=slim).scorecard(network, plan_of(network, kind))
    assert card.slim is None
    assert card.slim_parameters is None
    assert card.dense["recall@1"] > 0


def test_scores_do_not_depend_on_the_trainings_precision(network):
    one, other = (scorer_of(engine=Engine(precision, "cpu")).score(network) for precision in ("fp32", "bf16"))
    assert one == other
    assert {dtype for _, dtype in network.given} == {torch.float32}


def test_two_calls_give_the_same_scorecard(network):
    scorer, plan = scorer_of(), plan_of(network)
    assert scorer.scorecard(network, plan) == scorer.scorecard(network, plan)


@pytest.mark.parametrize("training", [True, False])
def test_every_module_keeps_its_mode_and_its_statistics(training, network):
    network.train(training)
    network.norm.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    scorer_of().scorecard(network, plan_of(network))
    modes = {name: module.training for name, module in network.named_modules()}
    assert modes == dict.fromkeys(modes, training) | {"norm": False}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_mode_comes_back_after_an_error(network):
    def stop(*_):
        raise KeyboardInterrupt

    network.head.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        scorer_of().score(network)
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("gallery_counts", [None, (2, 2, 2)])
def test_every_picture_is_embedded_once(gallery_counts, network):
    scorer = scorer_of(pictures_of(gallery_counts=gallery_counts))
    for look in (scorer.score, scorer.untrained):
        network.given.clear()
        look(network)
        assert sum(len(images) for images, _ in network.given) == 15 + sum(gallery_counts or ())
        assert max(len(images) for images, _ in network.given) == 4


def test_untrained_has_no_clusters_and_a_spread(network):
    scorer = scorer_of()
    scores, spread = scorer.untrained(network)
    trained = scorer.score(network)
    assert not {"nmi", "ami"} & set(scores)
    assert dict(scores) == {name: value for name, value in trained.items() if name[1:3] != "mi"}
    vectors = vectors_of(network, scorer.pictures.query, scorer).astype(float)
    distances = [1 - a @ b for i, a in enumerate(vectors) for j, b in enumerate(vectors) if i != j]
    assert spread == pytest.approx(sum(distances) / len(distances), abs=1e-6)


def test_the_backend_is_told_by_its_own_name():
    scorer = scorer_of()
    assert scorer.backend == "torch"
    evaluation = scorer.recipe.evaluation.model_copy(update={"backend": "auto"})
    anywhere = Scorer(scorer.pictures, scorer.recipe.model_copy(update={"evaluation": evaluation}), scorer.engine)
    assert anywhere.backend in {"faiss-cpu", "torch"}


def accuracies(network, store, labels, scorer):
    """Return top-1 and top-5, item by item: how many classes have a higher logit than the right one."""
    ranks = [
        int((logits > logits[label]).sum())
        for logits, label in zip(vectors_of(network, store, scorer), labels, strict=True)
    ]
    return {f"top{k}": sum(rank < k for rank in ranks) / len(ranks) for k in (1, 5)}


@pytest.mark.parametrize("validation", [None, (2, 3, 1, 2)])
def test_classes_are_scored_on_the_test_part_and_on_what_was_held_out(validation, network):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network.head = nn.Linear(6 * 49, 10)
    rest = (1, 0, 2, 1, 1, 2)
    parts = classes_of((5, 4, 6, 3, *rest), validation=validation and (*validation, *rest))
    scorer = scorer_of(parts, task="classification")
    benchmark, pictures = scorer.pictures.benchmark, scorer.pictures
    expected = accuracies(network, pictures.query, benchmark.query.labels, scorer)
    if validation:
        held_out = accuracies(network, pictures.validation, benchmark.validation.labels, scorer)
        expected |= {f"validation_{name}": value for name, value in held_out.items()}
    card = scorer.scorecard(network, plan_of(network))
    assert same({name: value for name, value in card.dense.items() if "top" in name}, expected)
    assert card.slim.keys() == card.dense.keys()
    assert card.dense["majority_baseline"] == 6 / 25
    assert card.classes.keys() == {"dense", "slim"}
    for name, scores in (("dense", card.dense), ("slim", card.slim)):
        found = card.classes[name]
        assert {own: sum(others.values()) for own, others in found.confusion.items()} == {
            "a": 5, "b": 4, "c": 6, "d": 3, "e": 1, "g": 2, "h": 1, "i": 1, "j": 2,
        }  # fmt: skip
        right = sum(others.get(own, 0) for own, others in found.confusion.items())
        assert right / 25 == pytest.approx(scores["top1"])
        assert np.mean(list(found.accuracy.values())) == pytest.approx(scores["balanced_accuracy"])
    assert same(card.slim, scorer.score(extract_slim(network, plan_of(network))))
    assert 0 < expected["top1"] < expected["top5"] < 1


def test_top_5_of_few_classes_is_absent(network):
    scores = scorer_of(classes_of(), task="classification").score(network)
    assert set(scores) == {"top1", "balanced_accuracy", "majority_baseline"}


def test_an_untrained_classifier_has_scores_and_no_spread(network):
    scorer = scorer_of(classes_of(), task="classification")
    network.train()
    scores, spread = scorer.untrained(network)
    assert scores == scorer.score(network)
    assert spread is None
    assert all(module.training for module in network.modules())


def test_slim_alone_has_no_slim_network(network):
    card = scorer_of(method={"name": "slim_alone"}).scorecard(network, plan_of(network))
    assert card.slim is None
    assert card.dense_parameters == count_parameters(network)


class Crowd:
    """An engine whose other processes did their share, at once and by themselves."""

    def __init__(self, rank, processes, network, scorer):
        self.rank, self.processes, self.is_main, self.device = rank, processes, rank == 0, CPU
        self._network, self._scorer = network, scorer

    def gather_records(self, records):
        if not records or isinstance(records[0], dict):
            return records
        store = self._scorer.pictures.query
        shares = [range(rank, len(store), self.processes) for rank in range(self.processes)]
        recipe = self._scorer.recipe
        return [
            (share, embed(self._network, evaluation_batches(store, share, recipe=recipe, device=CPU)))
            for share in shares
        ]


@pytest.mark.parametrize(("counts", "processes"), [((5, 4, 6), 2), ((5, 4, 6), 4), ((2,), 3)])
def test_shares_of_processes_make_one_whole(counts, processes, network):
    """Also where some processes get no picture at all."""
    alone = scorer_of(pictures_of(counts))
    expected = alone.score(network)
    scorer = scorer_of(alone.pictures, engine=Crowd(0, processes, network.eval(), alone))
    assert same(scorer.score(network), expected)


@pytest.mark.parametrize("gallery", [None, (3, 3, 3)])
def test_sizes_are_scored_by_the_first_numbers_alone(network, gallery):
    pictures = pictures_of(gallery_counts=gallery)
    scorer = scorer_of(pictures, network={"embedding_size": 4, "nested_sizes": [2, 3]})
    seen = {}
    card = scorer.scorecard(
        network, plan_of(network), seen=lambda name, query, found: seen.update({name: (query, found)})
    )
    assert {name: list(found) for name, found in card.sizes.items()} == {"dense": ["2", "3"], "slim": ["2", "3"]}
    for name, (query, found) in seen.items():
        for size, scores in card.sizes[name].items():
            parts = {}
            if gallery:
                images = pictures.benchmark.gallery
                parts["gallery"] = Embeddings(found[:, : int(size)], images.labels, images.keys)
                parts["ids"] = pictures.benchmark.query.keys
            labels = pictures.benchmark.query.labels
            scoring = Scoring("torch", CPU, ())
            assert same(scores, score_retrieval(query[:, : int(size)], labels, (1, 3), scoring=scoring, **parts))
    assert scorer.scorecard(network, plan_of(network)).sizes == card.sizes
    assert scorer_of(pictures).scorecard(network, plan_of(network)).sizes is None
