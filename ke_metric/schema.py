"""What everything that is stored as JSON or YAML rests on: closed schemas, fields that came later, problems in words.

What is stored goes on as it was made: a field that a stored recipe, bundle or export does not have takes the value
that was in effect before there was a choice, whatever the default is now; and a digest leaves a field out that has
this value, so that it stays what it was. Whoever adds a field to a recipe or to the preparation of pictures writes
it down here. A recipe that a user wrote gets the default of today instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    Strict,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from ke_metric.errors import ExitCode, KeMetricError, either

FieldPath = tuple[int | str, ...]
Added = Mapping[str, JsonValue]
"""Dotted name of a field to the value that was in effect before the field existed."""

RECIPE_FIELDS: Added = {
    "augmentation.where": "loader",
    "augmentation.policy": "none",
    "augmentation.policy_operations": 2,
    "augmentation.policy_magnitude": 9,
    "augmentation.saturation": 0.0,
    "augmentation.hue": 0.0,
    "augmentation.grayscale": 0.0,
    "augmentation.blur": 0.0,
    "augmentation.blur_sigma": [0.1, 2.0],
    "augmentation.erasing": 0.0,
    "augmentation.mixup": 0.0,
    "augmentation.cutmix": 0.0,
    "data.background": "keep",
    "data.exif_orientation": False,
    "data.path_column": "path",
    "data.label_column": "label",
    "embedding.views": 1,
    "network.blur": "none",
    "network.nested_sizes": [],
    "training.compile": False,
    "network.weights": None,
    "network.freeze": [],
    "optimizer.backbone_factor": 1.0,
    "training.norm_statistics": "batch",
    "training.average": None,
    "training.average_last": None,
    "training.patience": None,
    "method.inherit_average": True,
    "split.rates": [],
    "split.joint": "all",
    "split.joint_teacher": 0.0,
    "evaluation.slim_repair": "none",
    "evaluation.keep_vectors": False,
}
FORMER_RECIPE_FIELDS: Added = {"method.fit_steps": 0.0}
"""Fields that are gone, and the only value a recipe may still have there: digests go on counting them."""
PREPARATION_FIELDS: Added = {"background": "keep", "exif_orientation": False, "views": 1}
ARCHITECTURE_FIELDS: Added = {
    "network.blur": "none",
    "network.nested_sizes": [],
    "network.weights": None,
    "network.freeze": [],
}
"""Of a recipe's network as a bundle stores it; the default of each is the value before."""
# Of a stored network of 5,000 tensors, config.json has 0.5 MB.
LARGEST_DOCUMENT = 16 * 2**20
LONGEST_VALUE = 80
# Of an embedding: on one number, two unit vectors are equal or opposite.
SMALLEST_SIZE = 2
_ABSENT = object()


class ConflictError(ValueError):
    """Fields that are allowed one by one but not together.

    Args:
        message: Begins with the name of a field, as seen from the section that refuses.
        fields: Names of the fields, as seen from the section that refuses; dotted where they lie deeper.
    """

    def __init__(self, message: str, fields: tuple[str, ...]) -> None:
        super().__init__(message)
        self.fields = fields


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
Triple = Annotated[tuple[float, float, float], Strict(False)]
WholeNumbers = Annotated[tuple[int, ...], Strict(False)]
Names = Annotated[tuple[str, ...], Strict(False)]
Ground = Annotated[str, BeforeValidator(_ground)]
"""What shows through transparent parts of a picture: `white`, `#rrggbb`, or `keep` (the colours hidden there)."""


class Section(BaseModel):
    """A frozen group of fields; unknown keys, loose types, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Stored = TypeVar("Stored", bound=Section)


def not_a_bool(value: object) -> object:
    """Refuse `true` where 1 is allowed: Python holds them for equal, and so does Literal."""
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


Views = Annotated[Literal[1, 2, 5], BeforeValidator(not_a_bool)]
"""How many views of a picture the network's outputs are averaged over."""


class Network(Section):
    """Backbone and head: a section of a recipe, and what is stored of a network that a recipe built."""

    backbone: str = "resnet50"
    """A torchvision classifier (`resnet50`, `googlenet`, ...) or a timm one (`timm/convnext_tiny`)."""
    embedding_size: int = Field(128, ge=SMALLEST_SIZE, le=8192)
    """retrieval: length D of the embedding."""
    nested_sizes: WholeNumbers = ()
    """retrieval: how many of its first numbers shall be an embedding by themselves, ascending: [16, 32, 64]. The loss
    is computed for each of these sizes too; none when empty."""
    head: Literal["linear", "cosine"] = "linear"
    """classification: a linear layer with bias, or the cosines of feature and class weights (AdaCosLoss)."""
    stem: Literal["standard", "small"] = "standard"
    """`small`: the first convolution becomes 3x3 and the pooling after it goes, for images of 32 to 64 pixels."""
    stem_stride: Annotated[Literal[1, 2], BeforeValidator(not_a_bool)] = 1
    """Stride of the small stem's convolution."""
    blur: Literal["none", "stem", "strides"] = "none"
    """`strides`: before every convolution and max pooling of stride 2 leaves out positions, blur (3x3, binomial), so
    that an embedding depends less on where its picture lies by a pixel. `stem`: only in the first layers."""
    pretrained: bool = False
    """Start generation 1 from the library's own ImageNet weights; Knowledge Evolution starts from random ones."""
    weights: str | None = Field(None, min_length=1)
    """Start generation 1 from the backbone that a file holds: safetensors, or what `torch.save` wrote of a state
    dict, whatever it is wrapped in; its classifier is left out. Random weights when left out."""
    freeze: Names = ()
    """Modules that keep the weights and norm statistics they start from, in every generation, by name:
    backbone.layer1, for example, or backbone for all of it. Needs `weights` or `pretrained`."""

    @field_validator("nested_sizes")
    @classmethod
    def _ascending(cls, sizes: WholeNumbers) -> WholeNumbers:
        if list(sizes) != sorted(set(sizes)) or any(size < SMALLEST_SIZE for size in sizes):
            raise ValueError(f"must be whole numbers of at least {SMALLEST_SIZE}, ascending, each once")
        return sizes

    @field_validator("freeze")
    @classmethod
    def _frozen_lies_in_the_backbone(cls, names: Names) -> Names:
        if any(name != "backbone" and not name.startswith("backbone.") for name in names):
            raise ValueError(
                "must be backbone or modules in it, such as backbone.layer1: the head is new, and trains"
            )
        return names

    @model_validator(mode="after")
    def _starts_are_one(self) -> Self:
        if self.weights is not None and self.pretrained:
            message = f"weights = {self.weights!r}, does not go with pretrained = true: they are two starts"
            raise ConflictError(message, ("weights", "pretrained"))
        if self.freeze and not self.starts_from:
            message = (
                f"freeze = {list(self.freeze)}, needs weights or pretrained = true: random layers that never train "
                "stay random"
            )
            raise ConflictError(message, ("freeze", "weights", "pretrained"))
        return self

    @property
    def starts_from(self) -> str:
        """The field that gives generation 1 its weights, and its value; empty where they are random."""
        if self.weights is not None:
            return f"network.weights = {self.weights!r}"
        return "network.pretrained = true" if self.pretrained else ""

    def require_fit(self, norm_statistics: str, backbone_factor: float, rates: tuple[float, ...]) -> None:
        """Check what it starts from against how its recipe trains.

        Raises:
            ConflictError: They do not go together.
        """
        if norm_statistics == "stored" and (rates or not self.starts_from):
            why = "needs network.weights or network.pretrained = true: those of a random network are 0 and 1"
            if rates:
                why = f"does not go with split.rates = {list(rates)}: narrow networks learn with their own statistics"
            message = f"training.norm_statistics = 'stored', {why}"
            raise ConflictError(message, ("training.norm_statistics", "split.rates" if rates else "network.weights"))
        if backbone_factor != 1 and "backbone" in self.freeze:
            raise ConflictError(
                f"optimizer.backbone_factor = {backbone_factor}, has no effect where network.freeze has the backbone",
                ("optimizer.backbone_factor", "network.freeze"),
            )

    def is_frozen(self, name: str) -> bool:
        """Whether a module or parameter of this name in the network lies in one of `freeze`."""
        return any(name == frozen or name.startswith(f"{frozen}.") for frozen in self.freeze)

    @model_validator(mode="after")
    def _sizes_lie_inside(self) -> Self:
        if self.nested_sizes and self.nested_sizes[-1] >= self.embedding_size:
            sizes = list(self.nested_sizes)
            message = f"nested_sizes = {sizes}, must be smaller than embedding_size = {self.embedding_size}"
            raise ConflictError(message, ("nested_sizes", "embedding_size"))
        return self


def dotted(path: FieldPath) -> str:
    """Return ("data", "mean", 1) as `data.mean[1]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def shown(value: Any) -> str:
    """Return a value as a recipe would write it, cut off after 80 characters."""
    in_yaml = {None: "null", True: "true", False: "false"}
    text = in_yaml[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def in_words(error: ValidationError, most: int = 1) -> str:
    """Return the first things that are wrong with a stored document: field, value, and what pydantic says of it."""
    return "; ".join(_in_words(details) for details in error.errors(include_url=False)[:most])


def _in_words(details: ErrorDetails) -> str:
    where, said = dotted(details["loc"]), details["msg"].removeprefix("Value error, ")
    if details["type"] == "extra_forbidden":
        return f"unknown field {where!r}"
    if details["type"] == "missing":
        return f"{where} is missing"
    if details["type"] in ("union_tag_invalid", "union_tag_not_found"):
        tag = details["ctx"]["discriminator"].strip("'")
        given = details["input"].get(tag) if isinstance(details["input"], dict) else details["input"]
        allowed = [name.strip("'") for name in details["ctx"].get("expected_tags", "").split(", ") if name]
        return f"{where}.{tag} = {shown(given)}, must be {either(allowed) or 'one that there is'}"
    return f"{where} = {shown(details['input'])}: {said}" if where else said


def read_object(path: Path, missing: str) -> dict[str, Any]:
    """Return the object in a JSON file, which anybody may have made; no more than 16 MiB are read.

    Raises:
        KeMetricError: DATA: there is no such file, which `missing` says, or it cannot be read or holds no object.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_DOCUMENT + 1)
        if len(content) > LARGEST_DOCUMENT:
            raise ValueError(f"larger than {LARGEST_DOCUMENT:,} bytes")
        document = json.loads(content.decode())
    except FileNotFoundError:
        raise KeMetricError(missing, ExitCode.DATA) from None
    except (OSError, RecursionError, ValueError) as error:
        raise KeMetricError(f"{path}: cannot be read: {type(error).__name__}: {error}", ExitCode.DATA) from error
    if not isinstance(document, dict):
        raise KeMetricError(f"{path}: holds {type(document).__name__}, not an object", ExitCode.DATA)
    return document


def validated(kind: type[Stored], document: Any, path: Path, most: int = 1) -> Stored:
    """Return what a file holds as a record of a kind; a KeMetricError (DATA) in words where it is none."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise KeMetricError(f"{path}: {in_words(error, most)}", ExitCode.DATA) from error


def require_version(path: Path, document: Mapping[str, Any], version: int) -> None:
    """Refuse a document of another format version, before anything else: what that one writes has other fields.

    Raises:
        KeMetricError: DATA.
    """
    found = document.get("format_version")
    if type(found) is not int or found != version:
        raise KeMetricError(
            f"{path}: format_version = {shown(found)}, this version of ke_metric reads {version}", ExitCode.DATA
        )


def with_values_before(document: Mapping[str, Any], added: Added) -> dict[str, Any]:
    """Return a stored document with the fields that it lacks because they did not exist when it was written.

    A section that is no mapping stays as it is, for the schema to refuse.
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

    A field that has another value stays. A section that has no other fields goes with them.
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
