"""The YAML of a recipe: read with YAML 1.2's plain values, and written so that every reader agrees.

PyYAML speaks YAML 1.1, where `1e-3` is text, `no` is false, `010` is 8 and `1:30` is 90. A recipe is read by the
core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema) without octal and hexadecimal numbers:
null, true, false, decimal numbers; everything else is text. Anchors, aliases, tags, repeated keys, keys that are
not text and deep nesting are refused: a recipe needs none of them, and each can hide a mistake or an attack.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from ke_metric.errors import ExitCode, KeMetricError

MAX_DEPTH = 32
UNICODE_LINE_BREAKS = {"\x85", "\u2028", "\u2029"}
TEXT_TAG = "tag:yaml.org,2002:str"
NUMBER = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
PLAIN_VALUES = {
    "tag:yaml.org,2002:null": re.compile(r"(?:~|null|Null|NULL|)$"),
    "tag:yaml.org,2002:bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"),
    "tag:yaml.org,2002:int": re.compile(r"[-+]?[0-9]+$"),
    "tag:yaml.org,2002:float": re.compile(rf"(?:{NUMBER.pattern}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
}


def read_yaml(text: str, source: str) -> Any:
    """Return what one YAML document says; None when it says nothing.

    Args:
        text: The document.
        source: What an error blames: a file, or the text of an override.

    Raises:
        KeMetricError: A syntax error, or something a recipe may not contain, with line and column.
    """
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise KeMetricError(f"{source}: {_sentence(error)}", ExitCode.RECIPE) from error


def write_yaml(value: Any) -> str:
    """Return `value` as one YAML document that `read_yaml`, and any YAML 1.1 reader, reads as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _sentence(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        return f"the character U+{error.character:04X} at position {error.position + 1} is not allowed in YAML"
    assert isinstance(error, yaml.MarkedYAMLError)
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return where + " ".join(part for part in (error.context, error.problem) if part)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the plain values above and without what a recipe needs not."""

    yaml_implicit_resolvers = {None: list(PLAIN_VALUES.items())}  # noqa: RUF012 -- PyYAML's own way of declaring
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._refuse_what_hides_mistakes(self.peek_event())  # type: ignore[no-untyped-call]  # missing in its stubs
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _refuse_what_hides_mistakes(self, event: Any) -> None:
        refused = None
        if event.anchor is not None:
            refused = "anchors and aliases are not allowed in a recipe: write the value out"
        elif event.tag is not None:
            refused = f"tags are not allowed in a recipe: leave {event.tag!r} out"
        elif self.depth == MAX_DEPTH:
            refused = f"nested more than {MAX_DEPTH} levels deep"
        if refused:
            raise yaml.composer.ComposerError(None, None, refused, event.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != TEXT_TAG:
                refused = "a key must be text, in quotes where it looks like something else"
                raise yaml.constructor.ConstructorError(None, None, refused, key.start_mark)
            if key.value in seen:
                refused = f"the key {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, refused, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Read decimal digits: PyYAML would take 010 for octal."""
        try:
            return int(node.value)
        except ValueError as error:  # Python converts at most 4300 digits
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        """Read text; an escape can write half a surrogate pair, which no file can hold."""
        try:
            node.value.encode()
        except UnicodeEncodeError as error:
            raise yaml.constructor.ConstructorError(None, None, "not valid Unicode", node.start_mark) from error
        return super().construct_yaml_str(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor(TEXT_TAG, _Loader.construct_yaml_str)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes whatever YAML 1.1 or 1.2 would not read as text, and never writes an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        """Write text; PyYAML folds the line breaks of Unicode in single quotes, which loses them."""
        style = '"' if UNICODE_LINE_BREAKS & set(data) else None
        return self.represent_scalar(TEXT_TAG, data, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)
for tag, pattern in PLAIN_VALUES.items():
    _Dumper.add_implicit_resolver(tag, pattern, None)
