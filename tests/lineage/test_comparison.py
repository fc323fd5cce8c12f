"""Lineages side by side: grouped by recipe, averaged over seeds, differences paired by seed."""

import itertools
import json
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import (
    BestEpoch,
    DataFingerprint,
    Generation,
    PartFingerprint,
    Provenance,
    Scorecard,
    SlimScores,
)
from ke_metric.lineage.comparison import gather, mean_and_spread, paired_difference, seen_differently
from ke_metric.lineage.store import Lineage
from ke_metric.recipe.schema import Recipe

SCORES = st.floats(0, 1)


@pytest.fixture
def grow(tmp_path):
    """Store a lineage with the Recall@1 given, generation by generation."""
    count = itertools.count()

    def grown(recalls, **fields):
        recipe = Recipe.model_validate({"name": "x", "generations": max(2, len(recalls)), **fields})
        lineage = Lineage.create(tmp_path / str(next(count)), recipe, text="x", command="ke-metric train x.yaml")
        for number, recall in enumerate(recalls, start=1):
            slim = {"recall@1": recall / 2} if recipe.has_slim else None
            narrow = {
                f"{rate:g}": SlimScores({"recall@1": recall / 4}, 2) for rate in recipe.split.rates if rate != 0.5
            }
            card = Scorecard({"recall@1": recall}, slim, 9, 3 if recipe.has_slim else None, narrow=narrow or None)
            provenance = Provenance("x", None if number == 1 else "x", recipe.seed, {}, {}, {})
            weights = {"w": torch.zeros(1)}
            lineage.append(Generation(number, weights, {}, "{}", {}, card, (), {}, provenance))
        return lineage

    return grown


def test_what_differs_in_the_seed_alone_is_one_strategy(grow):
    lineages = [grow([0.1, 0.2], seed=1), grow([0.3, 0.4], seed=0), grow([0.5], split={"rate": 0.8})]
    half, more = gather(lineages)
    assert (half.name, more.name) == ("x (split.rate=0.5)", "x (split.rate=0.8)")
    assert list(half.scorecards) == [0, 1]
    assert {seed: scores["recall@1"] for seed, scores in half.scores(2, "dense").items()} == {0: 0.4, 1: 0.2}
    assert half.scores(1, "slim") == {0: {"recall@1": 0.15}, 1: {"recall@1": 0.05}}
    assert [half.epochs(number) for number in (1, 2)] == [100, 200]


def test_where_the_data_lie_and_what_is_kept_make_no_other_strategy(grow):
    lineages = [grow([0.1], data={"root": "a"}, keep="all"), grow([0.2], data={"root": "b"}, seed=1)]
    (strategy,) = gather(lineages)
    assert (strategy.name, len(strategy.scorecards)) == ("x", 2)


def test_a_generation_is_averaged_over_the_seeds_that_have_it(grow):
    (strategy,) = gather([grow([0.1], seed=0), grow([0.3, 0.4], seed=1)])
    assert strategy.generations == 2
    assert [sorted(strategy.scores(number, "dense")) for number in (1, 2)] == [[0, 1], [1]]


def test_another_folder_is_another_test(grow):
    folders = [{"data": {"benchmark": "folder", "root": root}, "seed": seed} for seed, root in enumerate("ab")]
    with pytest.raises(KeMetricError, match=r"data\.root = 'b'"):
        gather([grow([0.1], **folders[0]), grow([0.2], **folders[1])])


def test_the_slim_architecture_alone_is_a_slim_network(grow):
    alone = gather([grow([0.4], method={"name": "slim_alone"})])[0]
    assert alone.networks == ("slim",)
    assert alone.scores(1, "slim") == {0: {"recall@1": 0.4}}
    assert alone.parameters("slim", 1) == 9


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({}, {}, "of one recipe and one seed"),
        ({}, {"task": "classification", "loss": {"name": "CrossEntropyLoss"}}, "task = 'classification'"),
        ({}, {"data": {"test_fraction": 0.25}}, r"data\.test_fraction = 0\.25"),
        (
            {"task": "classification"},
            {"task": "classification", "data": {"train_classes": 20}},
            r"data\.train_classes = 20",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(one, other, message, grow):
    with pytest.raises(KeMetricError, match=message) as refused:
        gather([grow([0.1], **one), grow([0.2], **other)])
    assert refused.value.exit_code == ExitCode.LINEAGE


def fingerprint(*contents, train="t"):
    keys, labels = tuple(f"owl/{n}" for n in range(len(contents))), (0,) * len(contents)
    return DataFingerprint({
        "train": PartFingerprint(("crow/0",), (0,), ("crow",), (train,)),
        "query": PartFingerprint(keys, labels, ("owl",), contents),
    })  # fmt: skip


def begun_on(lineage, data):
    (lineage.folder / "data.json").write_text(json.dumps(data.to_json()))


def test_other_resolutions_are_compared_and_told(grow):
    small, large = {"image_size": 32, "store_size": 40}, {"image_size": 64, "store_size": 80}
    lineages = [
        grow([0.1], data=small, evaluation={"resize": 36}),
        grow([0.2], data=large, evaluation={"resize": 72}),
    ]
    one, other = gather(lineages)
    assert list(seen_differently([one, other]).values()) == [
        {"data.image_size": 32, "data.store_size": 40, "evaluation.resize": 36},
        {"data.image_size": 64, "data.store_size": 80, "evaluation.resize": 72},
    ]
    assert seen_differently([one, one]) == {}


def test_the_pictures_decide_where_they_are_known(grow):
    folders = [{"data": {"benchmark": "folder", "root": root}, "seed": seed} for seed, root in enumerate("ab")]
    lineages = [grow([0.1], **folders[0]), grow([0.2], **folders[1])]
    for lineage in lineages:
        begun_on(lineage, fingerprint("x", "y"))
    (strategy,) = gather(lineages)
    assert (strategy.name, list(strategy.scorecards)) == ("x", [0, 1])
    other = grow([0.3], **folders[0] | {"seed": 7})
    begun_on(other, fingerprint("x", "z"))
    with pytest.raises(KeMetricError, match=r"test part: 1 picture with other content \(owl/1\)") as refused:
        gather([*lineages, other])
    assert refused.value.exit_code == ExitCode.LINEAGE


def test_other_training_pictures_make_another_strategy_of_another_name(grow):
    one, other, third = (
        grow([0.1], data={"benchmark": "folder", "root": root}, seed=seed)
        for seed, root in enumerate(("a", "b", "b"))
    )
    for lineage, train in ((one, "t"), (other, "u"), (third, "v")):
        begun_on(lineage, fingerprint("x", "y", train=train))
    names = [strategy.name for strategy in gather([one, other, third])]
    assert names == ["x (data.root=a)", "x (data.root=b)", "x (data.root=b) #2"]


def test_a_fingerprint_that_was_taken_later_proves_nothing_of_the_generations_before(grow):
    folders = [{"data": {"benchmark": "folder", "root": root}, "seed": seed} for seed, root in enumerate("ab")]
    lineages = [grow([0.1], **folders[0]), grow([0.2], **folders[1])]
    for lineage in lineages:
        lineage.record_data(fingerprint("x", "y"))
    assert [lineage.data.since for lineage in lineages] == [2, 2]
    with pytest.raises(KeMetricError, match=r"data\.root = 'b'"):
        gather(lineages)


def held_out(data, *contents):
    """The same data with a validation part."""
    keys, labels = tuple(f"jay/{n}" for n in range(len(contents))), (0,) * len(contents)
    return replace(data, parts={**data.parts, "validation": PartFingerprint(keys, labels, ("jay",), contents)})


def test_a_validation_part_that_only_some_have_is_no_matter(grow):
    lineages = [grow([0.1 * number], seed=number) for number in range(3)]
    for lineage, data in zip(
        lineages, (fingerprint("x", "y"), *[held_out(fingerprint("x", "y"), "v")] * 2), strict=True
    ):
        begun_on(lineage, data)
    assert [list(strategy.scorecards) for strategy in gather(lineages)] == [[0], [1, 2]]


def test_two_different_validation_parts_do_not_belong_into_one_table(grow):
    lineages = [grow([0.1 * number], seed=number) for number in range(3)]
    bare = fingerprint("x", "y")
    for lineage, data in zip(lineages, (bare, held_out(bare, "v"), held_out(bare, "v", "w")), strict=True):
        begun_on(lineage, data)
    with pytest.raises(
        KeMetricError, match=r"2 was not tested on the pictures of .*1: validation part: 1 picture added"
    ):
        gather(lineages)


def test_epochs_are_those_that_were_trained(grow):
    """The mean over the seeds that have a generation; planned ones where none ended by itself."""
    (strategy,) = gather([grow([0.1, 0.2], seed=0), grow([0.3], seed=1)])
    ended = {
        0: [replace(card, best_epoch=BestEpoch(1, 7 + number)) for number, card in enumerate(strategy.scorecards[0])],
        1: [replace(card, best_epoch=BestEpoch(5, 10)) for card in strategy.scorecards[1]],
    }
    shorter = replace(strategy, scorecards=ended)
    assert [shorter.epochs(number) for number in (1, 2)] == [round(17 / 2), 15]
    assert [strategy.epochs(number) for number in (1, 2)] == [100, 200]


def test_nothing_to_compare(grow):
    with pytest.raises(KeMetricError, match="no complete generation"):
        gather([grow([])])
    with pytest.raises(KeMetricError, match="no lineage"):
        gather([])


@given(st.lists(SCORES, min_size=2, max_size=9))
def test_mean_and_spread_are_those_of_the_library(values):
    mean, spread = mean_and_spread(values)
    assert mean == pytest.approx(statistics.fmean(values))
    assert spread == pytest.approx(statistics.stdev(values), abs=1e-12)
    assert mean_and_spread(values[:1]) == (values[0], None)


def test_differences_are_paired_by_seed():
    """Unpaired, the spread of the seeds would hide a difference that every seed shows."""
    theirs = {0: 0.1, 1: 0.5, 2: 0.9, 7: 0.0}
    ours = {0: 0.12, 1: 0.52, 2: 0.92, 8: 1.0}
    found = paired_difference(ours, theirs)
    assert (found.seeds, found.mean, found.low, found.high) == (3, *[pytest.approx(0.02)] * 3)


def test_one_pair_has_no_interval_and_none_no_difference():
    found = paired_difference({0: 0.5}, {0: 0.25})
    assert (found.mean, found.low, found.high, found.seeds) == (0.25, None, None, 1)
    assert paired_difference({0: 0.5}, {1: 0.25}) is None


@settings(deadline=None)
@given(st.lists(st.tuples(SCORES, SCORES), min_size=2, max_size=5))
def test_the_interval_holds_the_middle_of_all_means(pairs):
    """The slow way: every way to draw n of n pairs, up to 5 of them, instead of 10,000 random ones."""
    found = paired_difference(*({seed: pair[side] for seed, pair in enumerate(pairs)} for side in (0, 1)))
    differences = [one - other for one, other in pairs]
    means = np.array([np.mean(drawn) for drawn in itertools.product(differences, repeat=len(pairs))])
    # Shares of at least 2 and at most 3 % of all means lie below the lower end, and above the upper one.
    for end, sign in ((found.low, 1), (found.high, -1)):
        loose, tight = (
            np.quantile(sign * means, 0.015, method="lower"),
            np.quantile(sign * means, 0.035, method="higher"),
        )
        assert loose - 1e-9 <= sign * end <= tight + 1e-9
    assert min(differences) - 1e-9 <= found.low <= found.mean + 1e-9
    assert found.mean - 1e-9 <= found.high <= max(differences) + 1e-9


def test_slim_networks_of_other_rates_are_networks_of_their_own(grow):
    repaired = {"evaluation": {"slim_repair": "auto"}}
    family = grow([0.4], split={"rates": [0.25, 0.5, 0.75]}, **repaired)
    (strategy,) = gather([family])
    assert strategy.networks == ("dense", "slim", "slim 0.25", "slim 0.75")
    assert strategy.scores(1, "slim 0.25") == {0: {"recall@1": 0.1}}
    assert [strategy.parameters(name, 1) for name in strategy.networks] == [9, 3, 2, 2]
    _, alone = gather([family, grow([0.4], split={"rates": [0.5]}, **repaired)])
    assert alone.last_networks == ("dense", "slim")


@pytest.mark.parametrize("is_scored", [True, False])
def test_the_last_generation_of_slim_last_is_the_slim_network_alone(grow, is_scored):
    """It is trained, so a scorecard has it as dense; as slim too where slim networks are scored."""
    (strategy,) = gather(
        [grow([0.2, 0.4, 0.6], generations=3, method={"slim_last": True}, evaluation={"slim": is_scored})]
    )
    assert [strategy.networks_at(number) for number in (1, 2, 3)] == [("dense", "slim"), ("dense", "slim"), ("slim",)]
    assert strategy.scores(3, "dense") == {}
    card = strategy.scorecards[0][-1]
    assert (card.slim is not None) == is_scored
    assert strategy.scores(3, "slim") == {0: card.slim if is_scored else card.dense}
    assert strategy.parameters("slim", 3) == (card.slim_parameters if is_scored else card.dense_parameters)
    assert strategy.scores(2, "slim") == ({0: {"recall@1": 0.2}} if is_scored else {})
