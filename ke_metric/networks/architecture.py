"""Architectures: how to build a dense network from a few plain words, so that a stored network needs no pickle.

The builders are a closed set: the embedding network or the classifier of a recipe, and the classifiers of torchvision
and timm by name. Nothing is importable by a path, and no argument can make a builder fetch or read a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torchvision
from pydantic import Field, JsonValue, ValidationError, field_validator
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.networks.backbones import AUXILIARY_HEADS, imported_timm
from ke_metric.networks.heads import build_classifier, build_network
from ke_metric.networks.widths import is_plain
from ke_metric.randomness import default_streams
from ke_metric.schema import Network, Section, in_words

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
        network, image_size = recipe.network, recipe.data.image_size
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
                with torch.device("cpu"), default_streams(0, 1, "architecture"):
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


AnyArchitecture = Annotated[
    EmbeddingArchitecture | ClassifierArchitecture | TorchvisionArchitecture | TimmArchitecture,
    Field(discriminator="builder"),
]
