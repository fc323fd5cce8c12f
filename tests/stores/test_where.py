"""Conditions: what is read, what is refused, and for which items they hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.stores.contract import FIELDS, LONGEST, LONGEST_TEXT, MOST_CONDITIONS, Condition, Item, Where

ITEM = Item("a/1.jpg", "/x/a/1.jpg", "crow")


def refused(text):
    with pytest.raises(KeMetricError) as caught:
        Where.parse(text)
    assert caught.value.exit_code == ExitCode.USAGE
    message = str(caught.value)
    assert message.startswith("where = ")
    assert "must be FIELD ==" in message
    assert "<unknown>" not in message
    return message


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ('label == "crow"', [Condition("label", True, ("crow",))]),
        ("  label=='crow'  ", [Condition("label", True, ("crow",))]),
        ('label != "crow"', [Condition("label", False, ("crow",))]),
        ('label in ["crow", "jay"]', [Condition("label", True, ("crow", "jay"))]),
        ('label in ("crow",)', [Condition("label", True, ("crow",))]),
        ('label == ""', [Condition("label", True, ("",))]),
        ('path == "a \\"b\\" \\u00e9"', [Condition("path", True, ('a "b" é',))]),
        (
            'label == "crow" and id != "a" and path in ["b"]',
            [Condition("label", True, ("crow",)), Condition("id", False, ("a",)), Condition("path", True, ("b",))],
        ),
        # As json.dumps writes it.
        ('label == "\\ud83e\\udd9c"', [Condition("label", True, ("🦜",))]),
        ('label != "\\ud83e\\udd9c"', [Condition("label", False, ("🦜",))]),
        ('label in ["a\\ud83e\\udd9cb", "🦜"]', [Condition("label", True, ("a🦜b", "🦜"))]),
        ('(label == "crow") and (id == "a")', [Condition("label", True, ("crow",)), Condition("id", True, ("a",))]),
    ],
)
def test_what_is_read(text, conditions):
    assert Where.parse(text).conditions == tuple(conditions)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "invalid syntax"),
        ("label", "'label' is no condition"),
        ('lable == "crow"', "no field 'lable'; did you mean 'label'?"),
        ("label == crow", "crow is no text in quotes"),
        ("label == 3", "3 is no text in quotes"),
        ('label == b"crow"', "is no text in quotes"),
        ('label == f"crow"', "is no text in quotes"),
        ('label = "crow"', "invalid syntax"),
        ('label < "crow"', "is no condition"),
        ('"crow" == label', "is no condition"),
        ('label == "a" or label == "b"', "is no condition"),
        ('not label == "a"', "is no condition"),
        ('"a" == label == "b"', "is no condition"),
        ("label in []", "is no condition"),
        ('label in "crow"', "is no condition"),
        ('label not in ["crow"]', "is no condition"),
        ('label in ["crow", 1]', "1 is no text"),
        ('label == "crow" and True', "'True' is no condition"),
        ('__import__("os").system("true") == "x"', "is no condition"),
        ('label == "a" and (id == "b" and path == "c")', "is no condition"),
        ("(" * 5000, "where"),
        ("-" * 900 + "1", "is no condition"),
        ("a" + ".b" * 1500, "is no condition"),
        ("label == (" + "-" * 900 + "1)", "is no text"),
        ("label == 0x" + "f" * 6000, "is no text"),
        ('label == "' + "a" * LONGEST + '"', "at most 10,000"),
        ('label == "\0"', "null bytes"),
        ('label == "\\ud83e"', "half a surrogate pair, which no item can have"),
        ('label != "\\udd9c\\ud83e"', "half a surrogate pair, which no item can have"),
        ('label in ["crow", "\ud800"]', "surrogate"),
        ('label != "a\\x00b"', "a NUL, which no item can have"),
        (f'label != "{"x" * (LONGEST_TEXT + 1)}"', "1,025 characters, of at most 1,024, which no item can have"),
        (" and ".join(['label != "a"'] * (MOST_CONDITIONS + 1)), "101 conditions, at most 100"),
    ],
)
def test_what_is_refused(text, words):
    assert words in refused(text)


@pytest.mark.parametrize(
    ("field", "values", "words"),
    [
        ("label", "crow", "must be a tuple of at least one text"),
        ("label", (), "must be a tuple of at least one text"),
        ("label", (3,), "must be a tuple of at least one text"),
        ("lable", ("crow",), "no field 'lable'; did you mean 'label'?"),
    ],
)
def test_a_condition_of_something_else_is_refused(field, values, words):
    with pytest.raises(KeMetricError) as caught:
        Condition(field, True, values)
    assert words in str(caught.value)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=10)


def written(condition):
    """A condition as Python writes it."""
    if condition.within and len(condition.values) > 1:
        return f"{condition.field} in {list(condition.values)!r}"
    return f"{condition.field} {'==' if condition.within else '!='} {condition.values[0]!r}"


CONDITIONS = st.builds(
    Condition, st.sampled_from(FIELDS), st.just(True), st.lists(TEXT, min_size=1, max_size=3).map(tuple)
) | st.builds(Condition, st.sampled_from(FIELDS), st.just(False), TEXT.map(lambda text: (text,)))


@given(st.lists(CONDITIONS, min_size=1, max_size=4))
def test_every_condition_comes_back(conditions):
    assert Where.parse(" and ".join(map(written, conditions))).conditions == tuple(conditions)


@given(
    st.lists(CONDITIONS, min_size=1, max_size=4),
    st.builds(Item, TEXT, TEXT, TEXT) | st.just(ITEM),
)
def test_an_item_is_meant_when_python_says_so(conditions, item):
    fields = {"id": item.id, "path": item.path, "label": item.label}
    text = " and ".join(map(written, conditions))
    assert Where.parse(text).holds(item) == eval(text, {}, fields)


@given(st.text())
def test_any_text_is_a_condition_or_refused_in_words(text):
    # Text by chance is hardly ever a condition; what matters is that nothing but the one error comes out.
    try:
        made = Where.parse(text)
    except KeMetricError:
        refused(text)
    else:
        assert any(operator in text for operator in ("==", "!=", "in")), made


@pytest.mark.parametrize("text", ['id==""', "label!=''", 'path in [""]'])
def test_an_empty_text_is_one_that_can_be_asked_for(text):
    (condition,) = Where.parse(text).conditions
    assert condition.values == ("",)
