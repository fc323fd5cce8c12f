"""What pydantic finds in a stored document is said in the words of the project: field, value, what is allowed."""

import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.schema import (
    LARGEST_DOCUMENT,
    Section,
    dotted,
    in_words,
    read_object,
    require_version,
    shown,
    validated,
)


class Circle(Section):
    kind: Literal["circle"]
    radius: float = Field(1.0, gt=0)


class Square(Section):
    kind: Literal["square"]


class Drawing(Section):
    name: str
    shape: Annotated[Circle | Square, Field(discriminator="kind")] = Circle(kind="circle")
    sizes: dict[str, tuple[int, int]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_a_name(self):
        if not self.name:
            raise ValueError("a drawing needs a name")
        return self


def said_of(most=1, **fields):
    with pytest.raises(ValidationError) as caught:
        Drawing.model_validate(fields)
    return in_words(caught.value, most)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": 7}, "name = 7: Input should be a valid string"),
        ({}, "name is missing"),
        ({"name": "x", "colour": "red"}, "unknown field 'colour'"),
        ({"name": "x", "sizes": {"a": (1, "b")}}, "sizes.a[1] = 'b': Input should be a valid integer"),
        ({"name": "x", "shape": {"kind": "circle", "radius": 0}}, "shape.circle.radius = 0: Input should be greater"),
        ({"name": "x", "shape": {"kind": "star"}}, "shape.kind = 'star', must be circle or square"),
        ({"name": "x", "shape": {}}, "shape.kind = null, must be one that there is"),
        ({"name": "x", "shape": 3}, "shape = 3: "),
    ],
)
def test_a_problem_names_field_and_value(fields, words):
    assert said_of(**fields).startswith(words)


def test_what_is_wrong_with_the_whole_document_has_no_field():
    assert said_of(name="") == "a drawing needs a name"


def test_so_many_problems_are_told():
    assert said_of(name=7, colour="red", flavour="sweet") == "name = 7: Input should be a valid string"
    assert said_of(2, colour="red", flavour="sweet") == "name is missing; unknown field 'colour'"


@pytest.mark.parametrize("version", [None, 2, "1", True, 1.0])
def test_another_version_is_refused(version):
    words = f"x.json: format_version = {shown(version)}, this version of ke_metric reads 1"
    with pytest.raises(KeMetricError, match=re.escape(words)) as raised:
        require_version(Path("x.json"), {"format_version": version}, 1)
    assert raised.value.exit_code is ExitCode.DATA


def test_a_document_without_a_version_is_refused():
    with pytest.raises(KeMetricError, match=r"x\.json: format_version = null, this"):
        require_version(Path("x.json"), {}, 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "none here"),
        (b"", "x.json: cannot be read: JSONDecodeError"),
        (b"\xff{}", "x.json: cannot be read: UnicodeDecodeError"),
        (b"[" * 100_000, "x.json: cannot be read: RecursionError"),
        (b" " * (LARGEST_DOCUMENT + 1), "x.json: cannot be read: ValueError: larger than 16,777,216 bytes"),
        (b"[1]", "x.json: holds list, not an object"),
    ],
)
def test_a_file_that_holds_no_object_is_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(KeMetricError, match=words) as raised:
        read_object(tmp_path / "x.json", "none here")
    assert raised.value.exit_code is ExitCode.DATA


def test_a_record_is_read_or_refused_in_words():
    assert validated(Drawing, {"name": "x"}, Path("x.json")) == Drawing(name="x")
    with pytest.raises(KeMetricError, match=r"^x\.json: name is missing; unknown field 'colour'$") as raised:
        validated(Drawing, {"colour": "red", "flavour": "sweet"}, Path("x.json"), most=2)
    assert raised.value.exit_code is ExitCode.DATA


def test_the_own_version_is_read():
    require_version(Path("x.json"), {"format_version": 1}, 1)


def test_paths_and_values_are_written_as_in_a_recipe():
    assert dotted(("data", "mean", 1)) == "data.mean[1]"
    assert (shown(None), shown(True), shown("a")) == ("null", "true", "'a'")
    assert len(shown("a" * 100)) == 80
