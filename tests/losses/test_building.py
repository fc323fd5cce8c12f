from __future__ import annotations

import pytest
from pytorch_metric_learning import distances, reducers, regularizers

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.losses.building import allowed_keywords, build_part
from ke_metric.losses.library import EMBEDDING_LOSSES, MINERS

SIZES = {"num_classes": 7, "embedding_size": 3}


def loss(name, **arguments):
    return build_part(EMBEDDING_LOSSES, name, arguments, field="loss.arguments", sizes=SIZES)


def miner(name, **arguments):
    return build_part(MINERS, name, arguments, field="miner.arguments", sizes=SIZES)


def refusal(build, name, **arguments):
    with pytest.raises(KeMetricError) as caught:
        build(name, **arguments)
    assert caught.value.exit_code is ExitCode.RECIPE
    return str(caught.value)


def test_keywords_reach_the_class_and_sizes_are_filled_in():
    built = loss("ProxyAnchorLoss", margin=0.3, alpha=16)
    assert (built.margin, built.alpha) == (0.3, 16)
    assert built.proxies.shape == (7, 3)


def test_sizes_may_be_given_as_they_are():
    assert loss("ProxyNCALoss", num_classes=7, embedding_size=3).proxies.shape == (7, 3)


def test_an_optional_number_of_classes_is_left_to_the_recipe():
    assert loss("MarginLoss").beta.shape == (1,)
    assert loss("MarginLoss", num_classes=7).beta.shape == (7,)


def test_nested_parts_are_built_by_name():
    built = loss(
        "TripletMarginLoss",
        distance={"name": "LpDistance", "power": 2},
        reducer={"name": "ThresholdReducer", "low": 0.1},
        embedding_regularizer={"name": "LpRegularizer", "reducer": {"name": "SumReducer"}},
    )
    assert isinstance(built.distance, distances.LpDistance)
    assert built.distance.power == 2
    assert isinstance(built.reducer.reducers["loss"], reducers.ThresholdReducer)
    assert isinstance(built.embedding_regularizer, regularizers.LpRegularizer)
    assert isinstance(
        miner("TripletMarginMiner", distance={"name": "CosineSimilarity"}).distance, distances.CosineSimilarity
    )


def test_keywords_are_found_in_the_parents_a_class_passes_them_on_to():
    assert {"softmax_scale", "distance", "reducer", "embedding_regularizer", "weight_regularizer"} <= set(
        allowed_keywords(EMBEDDING_LOSSES["ProxyNCALoss"])
    )
    assert set(allowed_keywords(EMBEDDING_LOSSES["ClassicProxyNCALoss"])) == {
        "num_classes",
        "embedding_size",
        "softmax_scale",
    }
    assert "mat_based_loss" not in allowed_keywords(EMBEDDING_LOSSES["MultiSimilarityLoss"])


@pytest.mark.parametrize(
    ("build", "name", "arguments", "words"),
    [
        (
            loss,
            "proxyanchor",
            {},
            ("loss.name = 'proxyanchor'", "did you mean 'ProxyAnchorLoss'", "ClassicProxyNCALoss"),
        ),
        (miner, "TripletMiner", {}, ("miner.name = 'TripletMiner'", "did you mean 'TripletMarginMiner'")),
        (loss, "CrossBatchMemory", {}, ("CrossBatchMemory cannot be built", "'loss'")),
        (loss, "ProxyAnchorLoss", {"alfa": 3}, ("loss.arguments.alfa", "did you mean 'alpha'", "distance", "margin")),
        (
            loss,
            "ProxyAnchorLoss",
            {"num_classes": 9},
            ("loss.arguments.num_classes = 9", "make it 7", "leave it out"),
        ),
        (loss, "ProxyAnchorLoss", {"margin": "wide"}, ("loss.arguments.margin = 'wide'", "finite number")),
        (loss, "ProxyAnchorLoss", {"margin": float("nan")}, ("margin = nan", "finite number")),
        (loss, "ProxyAnchorLoss", {"alpha": True}, ("alpha = True", "finite number")),
        (loss, "TripletMarginLoss", {"swap": 1}, ("loss.arguments.swap = 1", "true or false")),
        (loss, "RankedListLoss", {"margin": 0.4}, ("RankedListLoss cannot be built", "Tn")),
        (
            miner,
            "TripletMarginMiner",
            {"type_of_triplets": "semi-hard"},
            ("'semi-hard'", "did you mean 'semihard'", "easy"),
        ),
        (
            miner,
            "BatchEasyHardMiner",
            {"pos_strategy": "odd"},
            ("miner.arguments = {'pos_strategy': 'odd'}", "cannot be built"),
        ),
        (
            loss,
            "TripletMarginLoss",
            {"distance": "LpDistance"},
            ("loss.arguments.distance = 'LpDistance'", "mapping", "LpDistance"),
        ),
        (loss, "TripletMarginLoss", {"distance": {"power": 2}}, ("loss.arguments.distance = {'power': 2}", "a name")),
        (
            loss,
            "TripletMarginLoss",
            {"distance": {"name": "LDistance"}},
            ("loss.arguments.distance.name = 'LDistance'", "did you mean 'LpDistance'"),
        ),
        (
            loss,
            "TripletMarginLoss",
            {"distance": {"name": "LpDistance", "pow": 2}},
            ("loss.arguments.distance.pow", "did you mean 'power'"),
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_allowed(build, name, arguments, words):
    message = refusal(build, name, **arguments)
    assert [word for word in words if word not in message] == [], message
