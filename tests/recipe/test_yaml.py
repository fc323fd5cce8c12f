"""Recipes are read by YAML 1.2's plain values, and written so that a YAML 1.1 reader agrees."""

import contextlib
import json
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.yaml import MAX_DEPTH, read_yaml, write_yaml

PRINTABLE = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Cn"], exclude_characters="\u2028\u2029\ufeff"), max_size=40
)
AMBIGUOUS = st.sampled_from(["no", "on", "1e-3", "010", "1:30", "1_000", "0x1F", "2024-01-01", "~", "", "null", ".5"])
FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers() | FINITE | PRINTABLE | AMBIGUOUS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(PRINTABLE | AMBIGUOUS, inner))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("+1.5e+3", 1500.0),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("010", 10),
        ("-7", -7),
        (".inf", math.inf),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"),
        ("1.5.2", "1.5.2"),
        ("2024-01-01", "2024-01-01"),
        ("'1e-3'", "1e-3"),
        ("=", "="),
        ("{<<: {a: 1}}", {"<<": {"a": 1}}),
        ("", None),
        ("# a comment", None),
        ("a: [1, 2]\nb:\n- c\n", {"a": [1, 2], "b": ["c"]}),
    ],
)
def test_plain_values(text, expected):
    value = read_yaml(text, "x")
    assert value == expected
    assert type(value) is type(expected)


@given(VALUES)
def test_reading_gives_what_was_written(value):
    assert read_yaml(write_yaml(value), "x") == value


@given(VALUES)
def test_a_reader_of_yaml_1_1_agrees(value):
    assert yaml.safe_load(write_yaml(value)) == value


@given(VALUES)
def test_json_is_yaml(value):
    assert read_yaml(json.dumps(value, ensure_ascii=False), "x") == value


def test_a_value_that_occurs_twice_is_written_twice():
    shared = [1, 2]
    assert read_yaml(write_yaml({"a": shared, "b": shared}), "x") == {"a": [1, 2], "b": [1, 2]}


def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: the key 'a' is given twice"),
        ('{a: 1, "a": 2}', "line 1, column 8: the key 'a' is given twice"),
        ("x: {a: {b: 1, b: 1}}", "the key 'b' is given twice"),
        ("a: &x [1]\nb: *x\n", "line 1, column 4: anchors and aliases are not allowed"),
        ("a: *x\n", "anchors and aliases are not allowed"),
        ("a: !!str 5", "line 1, column 4: tags are not allowed in a recipe: leave 'tag:yaml.org,2002:str' out"),
        ("a: ! 5", "tags are not allowed"),
        ("!!python/object/apply:os.getcwd []", "tags are not allowed"),
        ("1: a", "line 1, column 1: a key must be text"),
        ("? [a]\n: 1", "a key must be text"),
        ("true: a", "a key must be text"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("a: [1, 2", "while parsing a flow sequence expected ',' or ']'"),
        ("a: 'b", "line 1, column 6: while scanning a quoted scalar found unexpected end of stream"),
        ("a:\n\t- b", "line 2, column 1: while scanning for the next token found character '\\t'"),
        ("a: \x00", "the character U+0000 at position 4 is not allowed"),
        ("a: 1\n---\nb: 1", "expected a single document in the stream but found another document"),
        ('a: "\\ud800"', "line 1, column 4: not valid Unicode"),
        ('"\\ud800": a', "line 1, column 1: not valid Unicode"),
        ("9" * 5000, "line 1, column 1: Exceeds the limit"),
        (nested(MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} levels deep"),
        (nested(100_000), f"nested more than {MAX_DEPTH} levels deep"),
    ],
)
def test_what_a_recipe_may_not_contain(text, words):
    with pytest.raises(KeMetricError) as caught:
        read_yaml(text, "recipes/x.yaml")
    assert caught.value.exit_code is ExitCode.RECIPE
    message = str(caught.value)
    assert message.startswith("recipes/x.yaml: ")
    assert words in message
    assert "\n" not in message


def test_nesting_up_to_the_limit_is_read():
    assert str(read_yaml(nested(MAX_DEPTH), "x")) == nested(MAX_DEPTH)


@given(st.text())
def test_any_text_is_either_read_or_refused(text):
    with contextlib.suppress(KeMetricError):
        read_yaml(text, "x")
