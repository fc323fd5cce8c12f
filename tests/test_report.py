"""A lineage's table fits a terminal and shows no number that was not computed."""

import io
import json

import pytest
from rich.console import Console

from ke_metric.generation import Scorecard
from ke_metric.report import is_share, scorecard_document, scorecards_table

OTHERS = {"map@r": 0.21, "r_precision": 0.32, "queries": 120, "queries_without_match": 3, "nmi_std": 0.01, "ami": 0.4}


def scores(first, ranks=(1, 2, 4, 8), **others):
    recalls = {f"recall@{k}": min(1.0, first + 0.1 * position) for position, k in enumerate(ranks)}
    return {**recalls, **OTHERS, "nmi": 0.6049, **others}


def printed(title, cards, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(scorecards_table(title, cards))
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


def test_the_table_to_the_letter():
    cards = {
        1: Scorecard(scores(0.4567), None, 11_235_904, None),
        10: Scorecard(scores(0.5), scores(0.25, nmi=0.5), 11_235_904, 2_820_000),
    }
    assert printed("lineages/cub-s0", cards) == [
        "lineages/cub-s0, R@K in percent",
        " generation  network  parameters   R@1   R@2   R@4   R@8    NMI",
        " ───────────────────────────────────────────────────────────────",
        "          1    dense  11,235,904  45.7  55.7  65.7  75.7  0.605",
        "         10    dense  11,235,904  50.0  60.0  70.0  80.0  0.605",
        "                slim   2,820,000  25.0  35.0  45.0  55.0  0.500",
    ]


@pytest.mark.parametrize("ranks", [(1, 2, 4, 8), (1, 10, 20, 30, 40, 50), (1, 10, 100, 1000), (1,)])
def test_eighty_columns_are_enough_for_the_customary_ranks(ranks):
    card = Scorecard(scores(0.45, ranks), scores(0.4, ranks), 88_591_464, 22_050_664)
    lines = printed("lineages/inshop_convnext_base-s0", {100: card, 1000: card})
    assert len(lines) == 1 + 2 + 4
    assert max(map(len, lines)) <= 80
    assert [f"R@{k}" for k in ranks] == [word for word in lines[1].split() if word.startswith("R@")]


def test_where_it_cannot_fit_no_digit_is_lost():
    card = Scorecard(scores(0.4567), None, 88_591_464, None)
    lines = printed("x", {1: card}, width=40)
    assert max(map(len, lines)) <= 40
    assert "…" not in "".join(lines)


def test_a_classification_to_the_letter():
    """Validation accuracies where there are any; shares in percent."""
    dense = {"top1": 0.625, "top5": 0.9, "validation_top1": 0.5, "validation_top5": 0.75}
    cards = {
        1: Scorecard({"top1": 0.5, "top5": 1.0}, None, 1000, None),
        2: Scorecard(dense, {"top1": 0.25}, 1000, 300),
    }
    assert printed("lineages/flowers-s0", cards) == [
        "lineages/flowers-s0, top-1 and top-5 in percent",
        " generation  network  parameters  top-1  top-5  val top-1  val top-5",
        " ────────────────────────────────────────────────────────────────────",
        "          1    dense       1,000   50.0  100.0          -          -",
        "          2    dense       1,000   62.5   90.0       50.0       75.0",
        "                slim         300   25.0      -          -          -",
    ]


def test_a_score_that_was_not_computed_is_a_dash():
    lines = printed("x", {1: Scorecard({"recall@1": 0.5}, {"nmi": 0.25}, 4, 2)})
    assert lines[1].split() == ["generation", "network", "parameters", "R@1", "NMI"]
    assert [line.split() for line in lines[3:]] == [["1", "dense", "4", "50.0", "-"], ["slim", "2", "-", "0.250"]]


def test_without_any_score_and_without_any_generation():
    assert printed("x", {1: Scorecard({"queries": 0}, None, 4, None)})[-1].split() == ["1", "dense", "4"]
    assert printed("x", {})[1].split() == ["generation", "network", "parameters"]


@pytest.mark.parametrize("title", ["lineages/[red]x[/red]", "/a folder/with a very long name/" * 4])
def test_the_title_is_shown_as_it_is(title):
    assert printed(title, {}, width=200)[0] == f"{title}, R@K in percent"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("recall@1", True), ("recall@100", True), ("top1", True), ("validation_top5", True), ("nmi", False),
     ("map@r", False), ("queries", False)],
)  # fmt: skip
def test_shares_are_what_is_told_in_percent(name, expected):
    assert is_share(name) is expected


def test_the_document_has_every_score_as_it_was_computed():
    dense, slim = scores(1 / 3), scores(1 / 7)
    document = scorecard_document(3, Scorecard(dense, slim, 4, 2))
    assert json.loads(json.dumps(document)) == {"generation": 3, "dense": dense, "slim": slim}


def test_a_document_without_a_slim_network_does_not_mention_it():
    assert scorecard_document(1, Scorecard({"nmi": 0.5}, None, 4, None)) == {"generation": 1, "dense": {"nmi": 0.5}}
