"""What config.json says of a stored network, and how it is read: never trusted, never executed.

A closed schema (unknown fields, other types and other versions are errors), bounded in size, with a checksum over
itself and one over the weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, ValidationInfo, field_validator

from ke_metric.environment import package_versions
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.preparation import Preparation
from ke_metric.networks.architecture import AnyArchitecture, Architecture
from ke_metric.schema import (
    PREPARATION_FIELDS,
    Names,
    Section,
    WholeNumbers,
    read_object,
    require_version,
    validated,
    with_values_before,
)

if TYPE_CHECKING:
    from ke_metric.recipe.schema import Recipe

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FORMAT_VERSION: Literal[1] = 1
PACKAGES = ("ke_metric", "torch", "torchvision", "timm")
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class StoredSplit(Section):
    """The split that a slim network was cut by; anything with these two attributes gives one."""

    model_config = ConfigDict(from_attributes=True)

    kind: Literal["kels", "wels"]
    """kels: whole channels. wels: single weights."""
    rate: float = Field(gt=0, le=1)
    """Split rate."""


class NetworkCard(Section):
    """What a user has to know of a network besides its tensors."""

    split: StoredSplit | None = None
    """The split it was cut by: a split plan, a recipe's split section; None for a network that was not split."""
    normalization: Preparation | None = None
    """How its images are prepared; None: nobody said."""
    class_names: Names | None = None
    """Names of the classes in the order of its logits; None for embeddings."""
    logit_scale: float | None = Field(None, gt=0)
    """What the cosines of a classifier with a cosine head are multiplied by before a softmax makes probabilities of
    them, as the loss did in the training; None for all others, and where nobody said."""
    origin: str | None = None
    """Which generation of which lineage it is, dense or slim, and its score, in words; None: nobody said."""

    @classmethod
    def of_recipe(cls, recipe: Recipe, *, class_names: Sequence[str] | None = None) -> Self:
        """Return the card of the slim networks that a recipe grows; class names as in `NetworkCard`."""
        return cls(
            split=StoredSplit(kind=recipe.split.kind, rate=recipe.split.rate),
            normalization=Preparation.of_recipe(recipe),
            class_names=None if class_names is None else tuple(class_names),
        )


class TensorFacts(Section):
    """How one parameter or buffer lies in memory."""

    shape: WholeNumbers
    """Its widths: [out, in, ...] for a weight."""
    dtype: str
    """Name of its type in torch, without `torch.`."""
    channels_last: bool = False
    """Whether its memory format is torch's channels_last (4-d) or channels_last_3d (5-d)."""
    frozen: bool = False
    """A parameter that does not require a gradient."""


class WeightsFile(Section):
    """The file with the values."""

    bytes: int = Field(ge=0)
    """Its size."""
    sha256: Sha256
    """Of its content."""


class Description(Section):
    """All of config.json but its checksum."""

    format_version: Literal[1]
    versions: dict[str, str]
    """Of the packages that the network was built by; for people and error messages."""
    architecture: AnyArchitecture
    """How the dense network is built."""
    split: StoredSplit | None
    normalization: Preparation | None
    embedding_size: int | None
    """Length D of the embedding; None for a classifier."""
    class_names: Names | None
    logit_scale: float | None = Field(None, gt=0)
    origin: str | None = None
    settings: dict[str, dict[str, JsonValue]]
    """Module -> attribute -> value, where they are not those of the dense network."""
    tensors: dict[str, TensorFacts]
    """Every parameter and buffer; the shapes are the widths of the layers."""
    weights: WeightsFile

    @field_validator("class_names")
    @classmethod
    def _one_for_each_class(cls, class_names: Names | None, info: ValidationInfo) -> Names | None:
        if "architecture" in info.data:
            require_names_fit(class_names, info.data["architecture"])
        return class_names

    def to_json(self) -> str:
        """Return the text of config.json, one line for every module and tensor."""
        document = self.model_dump(mode="json")
        for name in ("logit_scale", "origin"):
            if document[name] is None:
                del document[name]
        for facts in document["tensors"].values():
            for name in ("channels_last", "frozen"):
                if not facts[name]:
                    del facts[name]
        return _lines(document | {"sha256": _digest(document)})

    @property
    def card(self) -> NetworkCard:
        """What a user has to know besides the tensors."""
        return NetworkCard(**{name: getattr(self, name) for name in NetworkCard.model_fields})

    @property
    def other_versions(self) -> str:
        """Packages that are not here in the version that built the network, in words; empty when all are."""
        here = installed_versions()
        differing = [
            f"{name} {then}, here {here.get(name, 'missing')}"
            for name, then in self.versions.items()
            if here.get(name) != then
        ]
        return f" (stored with {'; '.join(differing)})" if differing else ""


def require_names_fit(class_names: Sequence[str] | None, architecture: Architecture) -> None:
    """Raise a ValueError if class names are not one for each class of an architecture that tells how many it has."""
    classes = architecture.class_count
    if class_names is not None and classes is not None and len(class_names) != classes:
        raise ValueError(f"{len(class_names)} class names for {classes} classes, must be one for each")


def installed_versions() -> dict[str, str]:
    """Return the versions of what builds networks, of the packages that are installed."""
    return package_versions(PACKAGES)


def read_description(folder: Path) -> Description:
    """Read config.json of a stored network.

    Raises:
        KeMetricError: It is missing, too large, no JSON, of another format version, has an unknown or a missing
            field or a value that is not allowed, or was changed since it was written.
    """
    path = folder / CONFIG
    document = read_object(path, f"{path}: no such file; a stored network is a folder with {CONFIG} and {WEIGHTS}")
    require_version(path, document, FORMAT_VERSION)
    checksum = document.pop("sha256", None)
    description = validated(Description, with_preparation(document, "normalization"), path, most=3)
    if checksum != _digest(document):
        raise KeMetricError(
            f"{path}: was changed since it was written (its SHA-256 is not the one it states); save the network "
            "again rather than edit its files",
            ExitCode.DATA,
        )
    return description


def with_preparation(document: dict[str, Any], field: str) -> dict[str, Any]:
    """Return a stored document whose field with a `Preparation` is complete, whichever version wrote it."""
    how = document.get(field)
    return document | {field: with_values_before(how, PREPARATION_FIELDS)} if isinstance(how, dict) else document


def _digest(document: dict[str, Any]) -> str:
    """Return the SHA-256 of a JSON document, whatever its line breaks and the order of its keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _lines(document: dict[str, Any]) -> str:
    """Return JSON with one line for each entry of a mapping of mappings, and for every other value."""
    entries = []
    for name, value in document.items():
        text = json.dumps(value, allow_nan=False)
        if value and isinstance(value, dict) and all(isinstance(entry, dict) for entry in value.values()):
            rows = (f"    {json.dumps(key)}: {json.dumps(entry, allow_nan=False)}" for key, entry in value.items())
            text = "{\n" + ",\n".join(rows) + "\n  }"
        entries.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n}\n"
