"""One error for the user, stable exit codes, and the closest name."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ke_metric.errors import ExitCode, KeMetricError, closest, either, readable, some_of

WORDS = st.text(string.ascii_lowercase + "_", min_size=1, max_size=12)


def test_exit_codes_are_the_documented_ones():
    codes = {code.name: int(code) for code in ExitCode}
    assert codes == {
        "OK": 0,
        "UNEXPECTED": 1,
        "USAGE": 2,
        "RECIPE": 3,
        "DATA": 4,
        "ENVIRONMENT": 5,
        "DIVERGED": 6,
        "GATE": 7,
        "LINEAGE": 8,
        "INTERRUPTED": 130,
    }


def test_the_error_carries_message_and_exit_code():
    error = KeMetricError("recipes/x.yaml: is empty", ExitCode.RECIPE)
    assert str(error) == "recipes/x.yaml: is empty"
    assert error.exit_code is ExitCode.RECIPE


def test_an_error_without_exit_code_is_unexpected():
    assert KeMetricError("what?").exit_code is ExitCode.UNEXPECTED


def test_callers_that_know_nothing_of_us_can_catch_a_value_error():
    with pytest.raises(ValueError, match="nothing"):
        raise KeMetricError("nothing")


@pytest.mark.parametrize(
    ("name", "candidates", "expected"),
    [
        ("rat", ["kind", "rate"], "; did you mean 'rate'?"),
        ("proxyncaloss", ["ArcFaceLoss", "ProxyNCALoss"], "; did you mean 'ProxyNCALoss'?"),
        ("EPOCHS", ["epochs"], "; did you mean 'epochs'?"),
        ("rate", ["rates", "rate"], "; did you mean 'rate'?"),
        ("zork", ["kind", "rate"], ""),
        ("rate", [], ""),
        ("", ["rate"], ""),
    ],
)
def test_closest(name, candidates, expected):
    assert closest(name, candidates) == expected


@given(st.lists(WORDS, min_size=1), st.data())
def test_a_name_that_exists_is_its_own_closest(candidates, data):
    name = data.draw(st.sampled_from(candidates))
    assert closest(name.upper(), iter(candidates)) == f"; did you mean {name!r}?"


def test_only_the_first_names_are_spelled_out():
    assert some_of(["a", "b"]) == "a, b"
    assert some_of([str(number) for number in range(2005)]) == "0, 1, 2, 3, 4 and 2,000 more"
    assert some_of(["a", "b", "c"], 2, "; ") == "a; b and 1 more"


@pytest.mark.parametrize(("count", "words"), [(0, ""), (1, "a"), (2, "a or b"), (3, "a, b or c")])
def test_choices_are_joined_by_or(count, words):
    assert either(["a", "b", "c"][:count]) == words


def test_control_characters_are_written_out():
    assert readable("z\x1b[2J\r\x9b\u202e ä 猫 😀\nnext") == r"z\x1b[2J\r\x9b\u202e ä 猫 😀" + "\nnext"
