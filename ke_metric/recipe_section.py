"""What all sections of a recipe have in common: frozen, closed, strict; and the kinds of value they share."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Strict


class ConflictError(ValueError):
    """Fields that are allowed one by one but not together.

    Args:
        message: Begins with the name of a field, as seen from the section that refuses.
        fields: Names of the fields, as seen from the section that refuses; dotted where they lie deeper.
    """

    def __init__(self, message: str, fields: tuple[str, ...]) -> None:
        super().__init__(message)
        self.fields = fields


def folder_name(name: str) -> str:
    """Refuse a name that is no plain folder name, or that would lead out of its parent folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise ValueError("must be 1 to 100 letters, digits, '_', '.' or '-', the first one a letter or a digit")
    return name


def not_a_bool(value: object) -> object:
    """Refuse `true` where 1 is allowed: Python holds them for equal, and so does Literal."""
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


def _ground(value: object) -> object:
    """Return the name of a ground in the one way it is compared: `white`, `keep`, or `#rrggbb` in small letters."""
    if value in ("white", "keep"):
        return value
    if not isinstance(value, str) or not re.fullmatch("#[0-9a-fA-F]{6}", value):
        raise ValueError(
            "must be white, keep or a colour '#rrggbb', in quotes: without them, YAML takes it for a comment"
        )
    return "white" if value.lower() == "#ffffff" else value.lower()


# Strict types would refuse the list that a YAML file has for a tuple; what is inside stays strict.
Pair = Annotated[tuple[float, float], Strict(False)]
Triple = Annotated[tuple[float, float, float], Strict(False)]
WholeNumbers = Annotated[tuple[int, ...], Strict(False)]
Names = Annotated[tuple[str, ...], Strict(False)]
Ground = Annotated[str, BeforeValidator(_ground)]
"""What shows through transparent parts of a picture: `white`, `#rrggbb`, or `keep` (the colours hidden there)."""


class Section(BaseModel):
    """A frozen group of fields; unknown keys, loose types, NaN and infinity are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
