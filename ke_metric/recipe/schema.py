"""The recipe: one frozen, closed description of a lineage.

Everything a lineage depends on is a field here; what is left out takes the default written beside it. An unknown
key, a wrong type or a value out of range is an error. Types are strict: a quoted number is text and `true` is not
1; a whole number is welcome where a fraction may stand.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, Strict, field_validator, model_validator

from ke_metric.recipe.augmentation_section import Augmentation
from ke_metric.recipe.method_rules import Method
from ke_metric.recipe.training_section import Training
from ke_metric.recipe.yaml import write_yaml
from ke_metric.schema import (
    FORMER_RECIPE_FIELDS,
    RECIPE_FIELDS,
    ConflictError,
    Ground,
    Names,
    Network,
    Section,
    Triple,
    Views,
    WholeNumbers,
    not_a_bool,
    with_values_before,
    without_values_before,
)

__all__ = [
    "Augmentation",
    "Batches",
    "Data",
    "Embedding",
    "Evaluation",
    "Loss",
    "Method",
    "Miner",
    "Network",
    "Optimizer",
    "Recipe",
    "Split",
    "Training",
]

# Strict types would refuse the list that a YAML file has for a tuple; what is inside stays strict.
Rates = Annotated[tuple[float, ...], Strict(False)]


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise ValueError("must be 1 to 100 letters, digits, '_', '.' or '-', the first one a letter or a digit")
    return name


class Data(Section):
    """Which images, and at which size."""

    benchmark: str = "glyphs"
    """Name of a benchmark: glyphs, emoji, folder, solar, cub, cars, sop, inshop, flowers, aircraft, mit67, dogs."""
    root: str | None = None
    """Folder with the files as they lie on disk; `data/<benchmark>` when left out. Glyphs need none."""
    path_column: str = Field("path", min_length=1)
    """folder: the column of a CSV that has the path of a picture, relative to the folder of the CSV."""
    label_column: str = Field("label", min_length=1)
    """folder: the column of a CSV that has the class of a picture."""
    test_fraction: float = Field(0.5, gt=0, lt=1)
    """Share kept for testing, where the benchmark has no split of its own: of the classes in retrieval; in
    classification of the faces (glyphs), of the styles (emoji) or of the images of every class (folder, solar)."""
    train_classes: int | None = Field(None, ge=2)
    """Keep only this many training classes, drawn once and for all; all when left out. In classification the
    validation and test parts keep the same ones."""
    test_classes: int | None = Field(None, ge=2)
    """retrieval: keep only this many test classes, drawn once and for all; all when left out."""
    train_on: Literal["train", "trainval"] = "train"
    """classification: what to learn from where there is an official validation part. train: it is kept apart.
    trainval: it is joined to the training part."""
    validation_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the training part that is held out for validation, where the benchmark has no validation part of its
    own, drawn once and for all: in retrieval of its classes, in classification of the images of every class."""
    label_noise: float = Field(0.0, ge=0, lt=1)
    """Share of the training images whose labels are shuffled among them, drawn once and for all: how a method copes
    with wrong labels. Validation and test stay as they are."""
    crop_banner: bool = False
    """aircraft: cut the copyright strip, the lowest 20 pixels, off every picture."""
    verify_counts: bool = True
    """Refuse files whose image and class counts are not those of the published benchmark."""
    image_size: int = Field(224, ge=16, le=1024)
    """Height and width in pixels of what the network sees."""
    store_size: int = Field(256, ge=16, le=2048)
    """Shorter side in pixels of the decoded pictures that are kept; training crops are cut from these."""
    store_shape: Literal["keep", "square"] = "keep"
    """keep: decoded pictures keep their aspect ratio. square: they are squashed to store_size x store_size."""
    background: Ground = "white"
    """What transparent pictures are put on: white, or a colour "#rrggbb". keep: transparency is thrown away and the
    colours hidden under it show, as before there was a choice."""
    exif_orientation: bool = True
    """Turn pictures upright as their EXIF orientation says. false: they are seen as their pixels are stored."""
    workers: int = Field(0, ge=0, le=64)
    """Processes that cut and augment the training crops; 0: in the training process."""
    mean: Triple = (0.485, 0.456, 0.406)
    """Mean of red, green, blue in [0, 1] that is subtracted (default: ImageNet)."""
    std: Triple = (0.229, 0.224, 0.225)
    """Standard deviation of red, green, blue in [0, 1] that is divided by (default: ImageNet)."""

    @field_validator("std")
    @classmethod
    def _divisible(cls, std: Triple) -> Triple:
        if min(std) <= 0:
            raise ValueError("must be three numbers greater than 0")
        return std


class Split(Section):
    """Which part of every layer is the fit hypothesis."""

    kind: Literal["kels", "wels"] = "kels"
    """kels: whole channels (gives a slim network). wels: single weights drawn at random (gives none)."""
    rate: float = Field(0.5, gt=0, le=1)
    """Split rate: share of the channels (kels, rounded up per layer) or weights (wels) that is fit."""
    keep_whole: Names = ()
    """Modules that keep all their outputs (kels) or weights (wels), by name: backbone.layer4, for example."""
    channel_multiple: int = Field(1, ge=1)
    """kels: numbers of kept channels are rounded up to a multiple of this (8 suits tensor cores)."""
    rates: Rates = ()
    """kels: split rates whose slim networks learn beside the whole network, in every step and with norm statistics of
    their own, ascending: [0.5], or [0.25, 0.5, 0.75] for a family of widths; none when empty."""
    joint: Literal["all", "sandwich"] = "all"
    """Which of `rates` a step trains. all: every one. sandwich: the narrowest and one of the others, drawn."""
    joint_teacher: float = Field(0.0, ge=0)
    """Weight of the whole network's outputs in the losses of `rates`: they learn from them, too."""

    @field_validator("rates")
    @classmethod
    def _ascending(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if list(rates) != sorted(set(rates)) or not all(0 < rate < 1 for rate in rates):
            raise ValueError("must be numbers between 0 and 1, ascending, each once")
        return rates

    @model_validator(mode="after")
    def _rates_are_used(self) -> Self:
        if self.rates and self.kind != "kels":
            message = f"rates = {list(self.rates)}, needs kind = 'kels': single weights leave no narrow network"
            raise ConflictError(message, ("rates", "kind"))
        if self.joint == "sandwich" and len(self.rates) < 3:
            message = f"joint = 'sandwich', needs 3 rates or more to draw from (are {len(self.rates)})"
            raise ConflictError(message, ("joint", "rates"))
        if self.joint_teacher and not self.rates:
            message = f"joint_teacher = {self.joint_teacher}, has no effect without rates"
            raise ConflictError(message, ("joint_teacher", "rates"))
        return self


class Loss(Section):
    """The loss, by the class name of pytorch-metric-learning or one of ours."""

    name: str = "ProxyAnchorLoss"
    """Class name, for example TripletMarginLoss, ProxyNCALoss, ClassicProxyNCALoss, MultiSimilarityLoss;
    classification: CrossEntropyLoss, CSKDLoss, AdaCosLoss."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of that class; num_classes and embedding_size are filled in."""
    learning_rate_factor: float = Field(1.0, gt=0)
    """Learning rate of the loss's own parameters (proxies) over that of the network."""


class Miner(Section):
    """Picks the tuples a pair or triplet loss sees."""

    name: str
    """Class name in pytorch_metric_learning.miners, for example TripletMarginMiner."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of that class."""


class Batches(Section):
    """How an epoch is cut into batches."""

    sampler: Literal["class_balanced", "shuffled", "paired"] = "class_balanced"
    """class_balanced: P classes with M images each, every class equally often. shuffled: every image once. paired:
    every image once, each with a partner of its class (CSKDLoss)."""
    size: int = Field(64, ge=2)
    """Images in a batch, over all processes; paired: without their partners, which come on top."""
    images_per_class: int = Field(4, ge=1)
    """M of class_balanced; size / M classes share a batch. Some losses need 2: docs/recipes-and-methods.md."""

    @model_validator(mode="after")
    def _whole_classes(self) -> Self:
        if self.sampler == "class_balanced" and self.size % self.images_per_class:
            message = f"size = {self.size}, must be a multiple of images_per_class = {self.images_per_class}"
            raise ConflictError(message, ("size", "images_per_class"))
        return self


class Optimizer(Section):
    """Optimizer of the network; a new one with empty state in every generation."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    """torch.optim.SGD (with momentum), Adam or AdamW."""
    learning_rate: float = Field(0.1, gt=0)
    """Highest learning rate, reached after the warm-up."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of all network parameters; a loss's parameters have none."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of sgd."""
    backbone_factor: float = Field(1.0, gt=0)
    """Learning rate of the backbone over that of the head: 0.1 lets given weights change more slowly."""


class Embedding(Section):
    """What is computed of a picture by a trained network, in scoring and ever after; training does not know of it."""

    views: Views = 1
    """Average what the network gives over so many views: the picture (1), and moved by one pixel down and to the
    right (2), or by one pixel in each of the four directions (5). Takes as many forward passes."""


class Evaluation(Section):
    """How a generation is scored."""

    recall_at: WholeNumbers = Field((1, 2, 4, 8), min_length=1)
    """The Ks of Recall@K."""
    resize: int = Field(256, ge=16, le=2048)
    """Shorter side in pixels before the centre crop of image_size."""
    backend: Literal["auto", "faiss-cpu", "faiss-gpu", "torch"] = "auto"
    """Nearest-neighbour search. auto: torch on a GPU, else faiss-cpu when installed, else torch; it says which."""
    batch_size: int = Field(256, ge=1)
    """Images per forward pass."""
    kmeans_seeds: int = Field(3, ge=1, le=100)
    """k-means runs over which NMI and AMI are averaged."""
    slim: bool = True
    """Score the slim network beside the dense one (kels only)."""
    slim_repair: Literal["none", "statistics", "whiten", "refit", "both", "auto"] = "none"
    """What is repaired of a slim network after it is cut out, by the training pictures and without a gradient. none:
    nothing, the authors' way. statistics: its norm statistics are measured anew. whiten (retrieval): its last layer
    is changed so that embeddings use all of their dimensions. refit (classification): its last layer is fitted to
    the whole network's logits. both: statistics, then the last layer. auto: what is best among the training
    pictures."""
    keep_vectors: bool = False
    """Keep with every generation the vectors that its networks gave queries and gallery, for `ke-metric report` and
    `ke-metric explore`; else these compute them from weights that were kept."""

    @field_validator("recall_at")
    @classmethod
    def _positive(cls, recall_at: WholeNumbers) -> WholeNumbers:
        if min(recall_at) < 1:
            raise ValueError("must be whole numbers of at least 1")
        return recall_at


class Recipe(Section):
    """One lineage, completely described."""

    schema_version: Annotated[Literal[1], BeforeValidator(not_a_bool)] = 1
    """Version of this schema."""
    name: Annotated[str, AfterValidator(_folder_name)]
    """Names the lineage folder; the recipe's file name when left out."""
    task: Literal["retrieval", "classification"] = "retrieval"
    """retrieval: embeddings that are searched with, test classes unseen. classification: logits of known classes."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of everything random."""
    generations: int = Field(10, ge=1, le=1000)
    """How many generations; the first one is the plain baseline."""
    keep: Literal["last", "best", "all"] = "last"
    """Generations whose weights stay on disk (scorecards always do): the last, the last and the best, all."""
    data: Data = Data()
    """Which images, and at which size."""
    augmentation: Augmentation = Augmentation()
    """What happens to a training picture."""
    network: Network = Network()
    """Backbone and embedding head."""
    split: Split = Split()
    """Which part of every layer is the fit hypothesis."""
    method: Method = Method()
    """What a child takes from its parent."""
    loss: Loss = Loss()
    """The loss."""
    miner: Miner | None = None
    """Picks the tuples a pair or triplet loss sees; none when left out."""
    batches: Batches = Batches()
    """How an epoch is cut into batches."""
    optimizer: Optimizer = Optimizer()
    """Optimizer of the network."""
    training: Training = Training()
    """One generation of training."""
    embedding: Embedding = Embedding()
    """What is computed of a picture by a trained network."""
    evaluation: Evaluation = Evaluation()
    """How a generation is scored."""

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        warmup, epochs = self.training.warmup_epochs, self.training.epochs
        if warmup >= epochs:
            message = f"training.warmup_epochs = {warmup}, must be less than training.epochs = {epochs}"
            raise ConflictError(message, ("training.warmup_epochs", "training.epochs"))
        return self

    @model_validator(mode="after")
    def _centre_crop_fits(self) -> Self:
        resize, image_size = self.evaluation.resize, self.data.image_size
        if resize < image_size:
            message = f"evaluation.resize = {resize}, must be at least data.image_size = {image_size}"
            raise ConflictError(message, ("evaluation.resize", "data.image_size"))
        return self

    @model_validator(mode="after")
    def _method_and_start_fit(self) -> Self:
        self.method.require_fit(
            kind=self.split.kind,
            rate=self.split.rate,
            generations=self.generations,
            start=self.network.starts_from,
            freeze=self.network.freeze,
            training=self.training,
        )
        self.network.require_fit(self.training.norm_statistics, self.optimizer.backbone_factor, self.split.rates)
        return self

    @model_validator(mode="after")
    def _task_fits(self) -> Self:
        if self.task == "classification" and self.miner is not None:
            message = (
                f"miner = {self.miner.name!r}, picks tuples of embeddings and has no use where task = "
                "'classification'"
            )
            raise ConflictError(message, ("miner", "task"))
        if self.task == "retrieval" and (mixes := self.augmentation.mixes):
            message = (
                f"{mixes}, not for task = 'retrieval': losses of embeddings compare pictures of one class with those "
                "of others, and a mixed picture is of two"
            )
            names = [f"augmentation.{name}" for name in ("mixup", "cutmix") if getattr(self.augmentation, name)]
            raise ConflictError(message, (*names, "task"))
        foreign = "whiten" if self.task == "classification" else "refit"
        if self.evaluation.slim_repair == foreign:
            message = f"evaluation.slim_repair = {foreign!r}, is not for task = {self.task!r}"
            raise ConflictError(message, ("evaluation.slim_repair", "task"))
        for unread in ("embedding_size", "nested_sizes") if self.task == "classification" else ("head",):
            value = getattr(self.network, unread)
            if value != Network.model_fields[unread].default:
                shown = list(value) if isinstance(value, tuple) else value
                message = f"network.{unread} = {shown!r}, is not read where task = {self.task!r}"
                raise ConflictError(message, (f"network.{unread}", "task"))
        return self

    @model_validator(mode="after")
    def _rates_fit(self) -> Self:
        rates = list(self.split.rates)
        if rates and self.method.rules.is_slim:
            message = f"split.rates = {rates}, does not go with method.name = {self.method.name!r}, which is narrow"
            raise ConflictError(message, ("split.rates", "method.name"))
        if rates and self.evaluation.slim_repair == "none":
            message = (
                f"split.rates = {rates}, needs evaluation.slim_repair = 'auto' or 'statistics' (is 'none'): narrow "
                "networks learn with norm statistics of their own, and those of the whole network are not theirs"
            )
            raise ConflictError(message, ("split.rates", "evaluation.slim_repair"))
        if rates and self.training.compile:
            message = (
                f"training.compile = True, does not go with split.rates = {rates}: narrow networks are not compiled"
            )
            raise ConflictError(message, ("training.compile", "split.rates"))
        return self

    @property
    def has_slim(self) -> bool:
        """Whether every generation has a slim network that is scored beside the dense one."""
        return self.split.kind == "kels" and self.evaluation.slim and not self.method.rules.is_slim

    @property
    def decisive_score(self) -> str:
        """The score that says which epoch or generation is best: `recall@K` of the smallest K, or `top1`."""
        return "top1" if self.task == "classification" else f"recall@{min(self.evaluation.recall_at)}"

    def trains_slim(self, number: int) -> bool:
        """Whether generation `number` trains the slim network itself, cut out of the recipe's before it begins."""
        return self.method.name == "slim_alone" or (self.method.slim_last and number == self.generations)

    def to_yaml(self) -> str:
        """Return the recipe with every default written out; loading it gives an equal recipe."""
        return write_yaml(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """SHA-256 of all fields: two recipes with one digest describe the same lineage.

        A field that was added later counts where it changes something.
        """
        fields = without_values_before(self.model_dump(mode="json"), RECIPE_FIELDS)
        fields = with_values_before(fields, FORMER_RECIPE_FIELDS)
        canonical = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()
