"""A lineage's table fits a terminal and shows no number that was not computed."""

import io
import json
import re

import pytest
from rich.console import Console, Group

from ke_metric.generation import BestEpoch, ClassScores, Scorecard, SlimScores
from ke_metric.lineage.report import (
    is_share,
    mistakes_table,
    scorecard_document,
    scorecards_table,
    untrained_document,
)

OTHERS = {"map@r": 0.21, "r_precision": 0.32, "queries": 120, "queries_without_match": 3, "nmi_std": 0.01, "ami": 0.4}


def scores(first, ranks=(1, 2, 4, 8), **others):
    recalls = {f"recall@{k}": min(1.0, first + 0.1 * position) for position, k in enumerate(ranks)}
    return {**recalls, **OTHERS, "nmi": 0.6049, **others}


def lines_of(shown, width=80, *, empty=False):
    console = Console(file=io.StringIO(), width=width)
    console.print(Group(shown), crop=False)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if empty or line.strip()]


def printed(title, cards, width=80):
    return lines_of(scorecards_table(title, cards), width)


def test_the_table_to_the_letter():
    cards = {
        1: Scorecard(scores(0.4567), None, 11_235_904, None),
        10: Scorecard(scores(0.5), scores(0.25, nmi=0.5), 11_235_904, 2_820_000),
    }
    assert printed("lineages/cub-s0", cards) == [
        "lineages/cub-s0, R@K, MAP@R and R-prec in percent",
        " generation  network  parameters   R@1   R@2   R@4   R@8  MAP@R  R-prec    NMI",
        " ──────────────────────────────────────────────────────────────────────────────",
        "          1    dense  11,235,904  45.7  55.7  65.7  75.7   21.0    32.0  0.605",
        "         10    dense  11,235,904  50.0  60.0  70.0  80.0   21.0    32.0  0.605",
        "                slim   2,820,000  25.0  35.0  45.0  55.0   21.0    32.0  0.500",
    ]


RECALLS = ["R@1", "R@2", "R@4", "R@8"]


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (80, ["parameters", *RECALLS, "MAP@R", "R-prec", "NMI"]),
        (79, ["parameters", *RECALLS, "MAP@R", "NMI"]),
        (72, ["parameters", *RECALLS, "MAP@R", "NMI"]),
        (71, ["parameters", *RECALLS, "NMI"]),
        (60, ["parameters", "R@1", "R@4", "R@8", "NMI"]),
        (40, ["R@1", "NMI"]),
        (30, ["R@1"]),
        (9, ["R@1"]),
    ],
)
def test_a_narrow_terminal_has_fewer_columns(width, shown):
    lines = printed("x", {1: Scorecard(scores(0.4567), None, 11_235_904, None)}, width)
    # Below what the rest takes the line goes on, and no number is torn.
    assert max(map(len, lines[1:])) <= max(width, 30)
    assert lines[1].split() == ["generation", "network", *shown]
    assert [lines[-1].split()[position] for position in (0, 1)] == ["1", "dense"]
    assert len(lines[-1].split()) == len(lines[1].split())
    assert "…" not in "".join(lines)


UNTRAINED = Scorecard({"recall@1": 0.812, "recall@2": 0.9, "map@r": 0.3}, None, 4, None)


def test_the_untrained_network_is_generation_0_and_worse_ones_are_named():
    cards = {
        1: Scorecard({"recall@1": 0.804, "recall@2": 0.95, "map@r": 0.35, "nmi": 0.5}, {"recall@1": 0.1}, 4, 2),
        2: Scorecard({"recall@1": 0.813}, None, 4, None),
    }
    console = Console(file=io.StringIO(), width=80)
    console.print(scorecards_table("x", cards, untrained=UNTRAINED))
    lines = [line.split() for line in console.file.getvalue().splitlines() if line.strip()]
    assert lines[3] == ["0", "dense", "4", "81.2", "90.0", "30.0", "-"]
    assert lines[4] == ["1", "dense", "4", "80.4", "95.0", "35.0", "0.500"]
    assert "training made it worse: R@1 81.2 untrained, 80.4 in generation 1" in " ".join(
        word for line in lines for word in line
    )
    assert untrained_document(UNTRAINED, cards) == {
        "untrained": {"generation": 0, "dense": UNTRAINED.dense, "better_than_generations": [1]}
    }


def test_nothing_is_said_where_nothing_is_known_or_worse():
    cards = {1: Scorecard({"recall@1": 0.9, "recall@10": 0.1}, None, 4, None)}
    assert untrained_document(None, cards) == {}
    assert untrained_document(UNTRAINED, cards)["untrained"]["better_than_generations"] == []
    console = Console(file=io.StringIO(), width=80)
    console.print(scorecards_table("x", cards, untrained=UNTRAINED))
    assert "worse" not in console.file.getvalue()


def test_a_classification_goes_by_top_1():
    untrained = Scorecard({"top1": 0.4, "top5": 0.9}, None, 4, None)
    cards = {1: Scorecard({"top1": 0.3, "top5": 0.95}, None, 4, None)}
    assert untrained_document(untrained, cards)["untrained"]["better_than_generations"] == [1]


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


@pytest.mark.parametrize("width", [80, 60])
def test_no_cell_of_a_classification_is_torn(width):
    dense = {"top1": 0.625, "top5": 0.9, "balanced_accuracy": 0.5, "validation_top1": 0.5, "validation_top5": 0.75}
    lines = printed("x", {100: Scorecard(dense, None, 1_011_242_176, None)}, width)
    assert max(map(len, lines)) <= width
    assert len(lines) == 4
    headings, cells = (re.split("  +", line.strip()) for line in (lines[1], lines[3]))
    assert len(headings) == len(cells)
    assert set(cells) <= {"100", "dense", "1,011,242,176", "62.5", "50.0", "90.0", "75.0"}
    assert set(headings) >= {"generation", "network", "top-1", "val top-1"}


def test_a_classification_to_the_letter():
    """Validation accuracies where there are any; shares in percent."""
    dense = {"top1": 0.625, "top5": 0.9, "balanced_accuracy": 0.5, "majority_baseline": 0.354}
    dense |= {"validation_top1": 0.5, "validation_top5": 0.75, "validation_balanced_accuracy": 0.25}
    cards = {
        1: Scorecard({"top1": 0.5, "top5": 1.0}, None, 1000, None),
        2: Scorecard(dense, {"top1": 0.25}, 11_242_176, 300),
    }
    assert printed("lineages/flowers-s0", cards) == [
        "lineages/flowers-s0, accuracies in percent",
        " generation  network  parameters  top-1  balanced  top-5  val top-1  val top-5",
        " ──────────────────────────────────────────────────────────────────────────────",
        "          1    dense       1,000   50.0         -  100.0          -          -",
        "          2    dense  11,242,176   62.5      50.0   90.0       50.0       75.0",
        "                slim         300   25.0         -      -          -          -",
        "always answering the largest class of the test part: top-1 35.4",
    ]


def test_the_worst_pairs_are_named_with_their_numbers():
    dense = ClassScores({}, {"a": {"a": 3, "b": 1}, "b": {"a": 4, "b": 1}, "c": {"c": 2}})
    slim = ClassScores({}, {"c": {chr(letter): letter - 96 for letter in range(ord("a"), ord("i"))}})
    card = Scorecard({"top1": 0.5}, {"top1": 0.5}, 9, 3, {"dense": dense, "slim": slim})
    assert [line.split() for line in lines_of(mistakes_table(2, card))[3:]] == [
        ["dense", "b", "a", "4", "5", "80.0"],
        ["a", "b", "1", "4", "25.0"],
        ["slim", "c", "h", "8", "36", "22.2"],
        *([*f"c{letter}", str(ord(letter) - 96), "36", share] for letter, share in
          (("g", "19.4"), ("f", "16.7"), ("e", "13.9"), ("d", "11.1"))),
    ]  # fmt: skip
    assert len(lines_of(mistakes_table(2, card, networks=["dense"]))) == 5


def test_where_nothing_was_mistaken_or_recorded_nothing_is_printed():
    right = ClassScores({"a": 1.0}, {"a": {"a": 3}})
    for classes in (None, {"dense": right}):
        assert lines_of(mistakes_table(1, Scorecard({"top1": 1.0}, None, 9, None, classes)), empty=True) == []


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
     ("validation_recall@1", True),
     ("balanced_accuracy", True), ("validation_majority_baseline", True),
     ("map@r", True), ("r_precision", True), ("queries", False)],
)  # fmt: skip
def test_shares_are_what_is_told_in_percent(name, expected):
    assert is_share(name) is expected


def test_the_document_has_every_score_as_it_was_computed():
    dense, slim = scores(1 / 3), scores(1 / 7)
    document = scorecard_document(3, Scorecard(dense, slim, 4, 2))
    assert json.loads(json.dumps(document)) == {"generation": 3, "dense": dense, "slim": slim}


def test_the_best_epoch_is_told_below_the_table_and_in_the_document():
    dense = {"recall@2": 0.5, "recall@4": 0.75, "validation_recall@2": 0.625}
    cards = {1: Scorecard(dense, None, 9, None), 2: Scorecard(dense, None, 9, None, best_epoch=BestEpoch(3, 8))}
    lines = printed("x", cards, width=100)
    assert lines[1].split() == ["generation", "network", "parameters", "R@2", "R@4", "val", "R@2"]
    told = " ".join(line.strip() for line in lines)
    assert "weights of the epoch that was best on the validation part: 3 of 8 in generation 2" in told
    assert scorecard_document(2, cards[2])["best_epoch"] == {"epoch": 3, "trained": 8}
    assert "best_epoch" not in scorecard_document(1, cards[1])


def test_the_document_of_a_classification_has_every_class():
    found = ClassScores({"a": 0.75}, {"a": {"a": 3, "b": 1}})
    document = scorecard_document(1, Scorecard({"top1": 0.5}, None, 4, None, {"dense": found}))
    assert document["classes"] == {"dense": {"accuracy": {"a": 0.75}, "confusion": {"a": {"a": 3, "b": 1}}}}


def test_a_document_without_a_slim_network_does_not_mention_it():
    assert scorecard_document(1, Scorecard({"nmi": 0.5}, None, 4, None)) == {"generation": 1, "dense": {"nmi": 0.5}}


FAMILY = Scorecard(
    {"recall@1": 0.9}, {"recall@1": 0.8}, 1000, 300,
    slim_as_cut={"recall@1": 0.439}, slim_repair="both",
    narrow={
        "0.75": SlimScores({"recall@1": 0.85}, 600, None, "none"),
        "0.25": SlimScores({"recall@1": 0.7}, 100, {"recall@1": 0.25}, "statistics"),
    },
)  # fmt: skip


def test_every_slim_network_has_a_row_and_repaired_ones_are_told():
    lines = printed("x", {1: FAMILY, 2: FAMILY})
    row = [["1", "dense", "1,000", "90.0"], ["slim", "300", "80.0"], ["slim", "0.25", "100", "70.0"]]
    row += [["slim", "0.75", "600", "85.0"]]
    assert [line.split() for line in lines[3:7]] == row
    told = " ".join(" ".join(line.split()) for line in lines[11:])
    assert "slim repaired: generation 1 statistics + whitening (R@1 43.9 as cut), generation 2" in told
    assert "slim 0.25 repaired: generation 1 statistics (R@1 25.0 as cut), generation 2" in told
    assert "0.75" not in told
    only = lines_of(scorecards_table("x", {1: FAMILY}, networks=["slim 0.25"]))
    assert only[3].split() == ["1", "slim", "0.25", "100", "70.0"]
    assert " ".join(" ".join(only[4:]).split()) == "slim 0.25 repaired: generation 1 statistics (R@1 25.0 as cut)"


def test_the_document_tells_of_every_slim_network():
    assert scorecard_document(1, FAMILY) == {
        "generation": 1,
        "dense": {"recall@1": 0.9},
        "slim": {"recall@1": 0.8},
        "slim_repair": "both",
        "slim_as_cut": {"recall@1": 0.439},
        "narrow": {"0.75": {"recall@1": 0.85}, "0.25": {"recall@1": 0.7}},
        "narrow_repair": {"0.75": "none", "0.25": "statistics"},
        "narrow_as_cut": {"0.25": {"recall@1": 0.25}},
    }


def test_a_refitted_layer_is_called_so():
    card = Scorecard({"top1": 0.5}, {"top1": 0.4}, 9, 3, slim_as_cut={"top1": 0.1}, slim_repair="refit")
    told = " ".join(" ".join(printed("x", {1: card})[5:]).split())
    assert told == "slim repaired: generation 1 last layer refitted (top-1 10.0 as cut)"
