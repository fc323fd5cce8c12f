"""What config.json says of a stored network, and how its dense network is built: never trusted, never executed.

A closed schema (unknown fields, other types and other versions are errors), bounded in size, with a checksum over
itself and one over the weights. The builders are a closed set as well: the embedding network or the classifier of a
recipe, and the classifiers of torchvision and timm by name. Nothing is importable by a path, and no argument can
make a builder fetch or read a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
import torchvision
from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, ValidationInfo, field_validator
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.images.preparation import Preparation
from ke_metric.networks.dense import AUXILIARY_HEADS, build_classifier, build_network, imported_timm
from ke_metric.networks.widths import is_plain
from ke_metric.schema import (
    ARCHITECTURE_FIELDS,
    PREPARATION_FIELDS,
    Names,
    Network,
    Section,
    WholeNumbers,
    in_words,
    read_object,
    require_version,
    validated,
    with_values_before,
    without_values_before,
)

if TYPE_CHECKING:
    from ke_metric.recipe.schema import Recipe


# These arguments of the libraries' builders name a file or an address to read weights from.
FETCHING = frozenset({"weights", "weights_backbone", "checkpoint_path", "cache_dir", "progress"})
# The libraries raise these for arguments that they do not know or cannot take.
_REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Architecture(Section):
    """How to build a dense network. Made by `of_recipe`, `torchvision` or `timm`."""

    @staticmethod
    def of_recipe(recipe: Recipe, *, classes: int | None = None) -> Architecture:
        """Return the architecture of the embedding network or classifier that a recipe grows.

        The number of training classes of a classification, which a recipe does not tell, is None for retrieval.

        Raises:
            KeMetricError: The number is missing, less than 2, or given for retrieval.
        """
        # What the loss saw of an embedding is no part of the network that gives it, nor is how it was trained.
        network = recipe.network.model_copy(update={"nested_sizes": (), "weights": None, "freeze": ()})
        image_size = recipe.data.image_size
        if recipe.task == "retrieval" and classes is None:
            return EmbeddingArchitecture(network=network, image_size=image_size)
        if recipe.task == "classification" and classes is not None and classes >= 2:
            return ClassifierArchitecture(network=network, image_size=image_size, classes=classes)
        raise KeMetricError(
            f"architecture of a recipe with task = {recipe.task!r}: classes = {classes}, must be a number from 2 on "
            "for classification and None for retrieval",
            ExitCode.RECIPE,
        )

    @staticmethod
    def torchvision(name: str, **arguments: Any) -> Architecture:
        """Return that of a classifier of torchvision: `Architecture.torchvision("resnet50", num_classes=7)`.

        The library's builder is given the arguments: numbers, text, True, False, None, or lists of them.

        Raises:
            KeMetricError: An argument of another type, or one that would make the builder read weights.
        """
        return _classifier(TorchvisionArchitecture, name, arguments)

    @staticmethod
    def timm(name: str, **arguments: Any) -> Architecture:
        """Return that of a model of timm, as `torchvision` does: `Architecture.timm("convnext_tiny")`."""
        return _classifier(TimmArchitecture, name, arguments)

    @property
    def embedding_size(self) -> int | None:
        """Length D of the embedding; None for a classifier."""
        return None

    @property
    def class_count(self) -> int | None:
        """Number of classes of a recipe's classifier; None for an embedding network, and where a library knows."""
        return None

    def build(self) -> nn.Module:
        """Build the dense network for its structure: its tensors have no values, or arbitrary ones.

        Its tensors are on torch's meta device and take no memory, but for the few architectures (RegNet) that work
        out their widths with tensors. Nothing is fetched or read, and no default generator of torch is moved on.

        Raises:
            KeMetricError: An unknown name, arguments that the library refuses, or timm missing.
        """
        try:
            try:
                with torch.device("meta"):
                    return self._build()
            except NotImplementedError:  # torch's answer to who wants to know the value of a tensor that has none
                with torch.device("cpu"), torch.random.fork_rng(devices=[]):
                    return self._build()
        except KeMetricError:
            raise
        except _REFUSALS as error:
            raise KeMetricError(
                f"architecture {self.model_dump_json()}: cannot be built ({type(error).__name__}: {error})",
                ExitCode.RECIPE,
            ) from error

    def _build(self) -> nn.Module:
        raise NotImplementedError


class EmbeddingArchitecture(Architecture):
    """The embedding network of a recipe."""

    builder: Literal["ke_metric"] = "ke_metric"
    network: Network
    image_size: int = Field(ge=16, le=1024)

    @property
    def embedding_size(self) -> int:
        """Length D of the embedding."""
        return self.network.embedding_size

    def _build(self) -> nn.Module:
        return build_network(self.network, self.image_size, load_pretrained=False)


class ClassifierArchitecture(Architecture):
    """The classifier of a recipe."""

    builder: Literal["ke_metric_classifier"] = "ke_metric_classifier"
    network: Network
    image_size: int = Field(ge=16, le=1024)
    classes: int = Field(ge=2)

    @property
    def class_count(self) -> int:
        """Number of classes."""
        return self.classes

    def _build(self) -> nn.Module:
        return build_classifier(self.network, self.image_size, self.classes, load_pretrained=False)


class _LibraryClassifier(Architecture):
    """A network of a library, by name."""

    name: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)

    @field_validator("arguments", mode="before")
    @classmethod
    def _plain(cls, arguments: Any) -> Any:
        if not isinstance(arguments, dict):
            return arguments
        for name, value in arguments.items():
            if name in FETCHING or "pretrained" in name:
                raise ValueError(f"{name!r} would make the builder read weights; the weights are stored here")
            items = value if isinstance(value, list | tuple) else [value]
            if not all(map(is_plain, items)):
                raise ValueError(f"{name} must be a finite number, text, True, False, None, or a list of these")
        # JSON gives lists back.
        return {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}


def _classifier(kind: type[_LibraryClassifier], name: str, arguments: dict[str, Any]) -> Architecture:
    try:
        return kind(name=name, arguments=arguments)
    except ValidationError as error:
        raise KeMetricError(f"architecture of {name!r}: {in_words(error)}", ExitCode.RECIPE) from error


class TorchvisionArchitecture(_LibraryClassifier):
    """A classifier of torchvision. Its other models fetch the weights of their backbones unasked."""

    builder: Literal["torchvision"] = "torchvision"

    def _build(self) -> nn.Module:
        names = torchvision.models.list_models(module=torchvision.models)
        if self.name not in names:
            raise KeMetricError(
                f"architecture: {self.name!r} is no classifier of torchvision{closest(self.name, names)}",
                ExitCode.RECIPE,
            )
        # They complain when not told; without values it makes no difference.
        told = {"init_weights": False} if self.name in AUXILIARY_HEADS else {}
        network: nn.Module = torchvision.models.get_model(self.name, weights=None, **(told | self.arguments))
        return network


class TimmArchitecture(_LibraryClassifier):
    """A model of timm."""

    builder: Literal["timm"] = "timm"

    def _build(self) -> nn.Module:
        timm = imported_timm(f"architecture: {self.name!r} is a model of timm, which is missing")
        # Names with a scheme (hf-hub:, local-dir:), which timm would follow, are no models of its registry.
        if not timm.is_model(self.name):
            raise KeMetricError(
                f"architecture: {self.name!r} is no model of timm{closest(self.name, timm.list_models())}",
                ExitCode.RECIPE,
            )
        arguments: dict[str, Any] = self.arguments
        network: nn.Module = timm.create_model(self.name, pretrained=False, **arguments)
        return network


def _with_builder(architecture: object) -> object:
    """Return an architecture that names no builder as one whose builder is null: its refusal says which there are."""
    return {"builder": None} | architecture if isinstance(architecture, dict) else architecture


AnyArchitecture = Annotated[
    EmbeddingArchitecture | ClassifierArchitecture | TorchvisionArchitecture | TimmArchitecture,
    Field(discriminator="builder"),
    BeforeValidator(_with_builder),
]


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
        document["architecture"] = without_values_before(document["architecture"], ARCHITECTURE_FIELDS)
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
    # Imported where it is needed: whoever only reads what is stored asks for no versions.
    from ke_metric.environment import package_versions

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
