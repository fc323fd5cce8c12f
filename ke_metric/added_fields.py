"""Fields that came after the first files were written, and what a file that lacks one of them means by that.

What is stored goes on as it was made: a field that a stored recipe, bundle or export does not have takes the value
that was in effect before there was a choice, whatever the default is now; and a digest leaves a field out that has
this value, so that it stays what it was. Whoever adds a field to a recipe or to the preparation of pictures writes
it down here. A recipe that a user wrote gets the default of today instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import JsonValue

Added = Mapping[str, JsonValue]
"""Dotted name of a field to the value that was in effect before the field existed."""

RECIPE_FIELDS: Added = {
    "data.background": "keep",
    "data.exif_orientation": False,
    "data.path_column": "path",
    "data.label_column": "label",
}
PREPARATION_FIELDS: Added = {"background": "keep", "exif_orientation": False}
_ABSENT = object()


def with_values_before(document: Mapping[str, Any], added: Added) -> dict[str, Any]:
    """Return a stored document with the fields that it lacks because they did not exist when it was written.

    Args:
        document: As read. A section that is no mapping stays as it is, for the schema to refuse.
        added: The fields.
    """
    filled = _copied(document)
    for field, value in added.items():
        *parents, name = field.split(".")
        section: Any = filled
        for parent in parents:
            section = section.setdefault(parent, {}) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.setdefault(name, value)
    return filled


def without_values_before(document: Mapping[str, Any], added: Added) -> dict[str, Any]:
    """Return a document as it would have been written before the fields existed, where they change nothing.

    Args:
        document: With all its sections.
        added: The fields; one that has another value stays. A section that has no others goes with them.
    """
    left = _copied(document)
    for field in unchanged_fields(document, added):
        *parents, name = field.split(".")
        sections = [left]
        for parent in parents:
            sections.append(sections[-1][parent])
        del sections[-1][name]
        for parent, above, section in zip(parents[::-1], sections[-2::-1], sections[:0:-1], strict=True):
            if not section:
                del above[parent]
    return left


def unchanged_fields(document: Mapping[str, Any], added: Added) -> Iterator[str]:
    """Yield the fields that have the value which was in effect before they existed."""
    for field, value in added.items():
        found: Any = document
        for part in field.split("."):
            found = found.get(part, _ABSENT) if isinstance(found, Mapping) else _ABSENT
        # Not `==` alone: to Python, false equals 0.
        if type(found) is type(value) and found == value:
            yield field


def _copied(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _copied(value) if isinstance(value, Mapping) else value for name, value in document.items()}
