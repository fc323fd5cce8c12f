"""The records that travel: a generation, its scorecard, where it came from, and a training that is under way.

Plain data, whole or not at all: what `evolution` yields, `lineage` stores and `report` shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from ke_metric.arrays import Weights

Scores = Mapping[str, float]
"""Score name to value; a score that was not computed is absent, never 0."""
ENGINE_FACTS = ("processes", "precision")
TIES_BY_ROW = "order of rows"
TIES_BY_MEAN = "mean over all orders"


@dataclass(frozen=True)
class ClassScores:
    """How a network recognised each class of a test part.

    Attributes:
        accuracy: Class name to the top-1 of its pictures, in [0, 1]; classes without a picture are absent.
        confusion: Class name to what its pictures were taken for, class name to their number; 0 is absent.
    """

    accuracy: Mapping[str, float]
    confusion: Mapping[str, Mapping[str, int]]


def epochs_by_engine(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return `processes` and `precision`, where the log has them, of every stretch of epochs trained alike.

    Args:
        log: One record per epoch; those of before this was recorded do not say.
    """
    alike = groupby(log, key=lambda record: {name: record[name] for name in ENGINE_FACTS if name in record})
    stretches = [(engine, [record["epoch"] for record in records]) for engine, records in alike]
    return [{"first": epochs[0], "last": epochs[-1], **engine} for engine, epochs in stretches]


@dataclass(frozen=True)
class Scorecard:
    """All scores of one generation, and the number of parameters of its networks.

    Attributes:
        dense: Scores of the full-width network.
        slim: Scores of the fit hypothesis alone; None where there is no slim network (WELS, or not asked for).
        classes: "dense" and "slim" to how each class was recognised; None for a retrieval, and where it was not
            recorded.
    """

    dense: Scores
    slim: Scores | None
    dense_parameters: int
    slim_parameters: int | None
    classes: Mapping[str, ClassScores] | None = None

    def __post_init__(self) -> None:
        assert (self.slim is None) == (self.slim_parameters is None), "slim scores without a slim network"


@dataclass(frozen=True)
class Provenance:
    """Where a generation came from.

    Attributes:
        recipe_digest: SHA-256 of the recipe.
        parent_digest: SHA-256 of the parent's weights; None for generation 1.
        seed: Seed of the lineage.
        environment: Versions, hardware, commit; see `environment.describe_environment`.
        training: Device, precision, processes, search backend and rule for `ties` that were used at the end, and
            `epochs`: which were trained by how many processes and in which precision.
        seconds: Wall-clock seconds by phase: `training`, `scoring`.
        class_names: Names of the classes in the order of the logits; empty for retrieval.
        data: Part of the benchmark to its number of images and classes and the digest of its fingerprint; empty for a
            generation of before there were any. See `fingerprint.DataFingerprint.describe`.
    """

    recipe_digest: str
    parent_digest: str | None
    seed: int
    environment: Mapping[str, Any]
    training: Mapping[str, Any]
    seconds: Mapping[str, float]
    class_names: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ties(self) -> str:
        """How retrieval scores settled ties; a generation of before this was recorded took the items by row."""
        return str(self.training.get("ties", TIES_BY_ROW))


@dataclass(frozen=True)
class Generation:
    """One complete training.

    Attributes:
        number: Counted from 1.
        weights: State dict of the dense network after the last epoch.
        loss_weights: State dict of the loss (proxies); empty for losses without parameters.
        split: The split plan as JSON, see `split.plan.SplitPlan.to_json`.
        split_bits: The masks' bits of a WELS plan, name to uint8 tensor; empty for KELS.
        training_log: One record per epoch.
        magnitudes: Parameter name to mean absolute weight inside its fit and its reset part (None where empty).
    """

    number: int
    weights: Weights = field(repr=False)
    loss_weights: Weights = field(repr=False)
    split: str = field(repr=False)
    split_bits: Weights = field(repr=False)
    scorecard: Scorecard
    training_log: tuple[Mapping[str, Any], ...] = field(repr=False)
    magnitudes: Mapping[str, tuple[float | None, float | None]] = field(repr=False)
    provenance: Provenance

    def __post_init__(self) -> None:
        assert self.number >= 1, "generations are counted from 1"
        assert (self.provenance.parent_digest is None) == (self.number == 1), "only generation 1 has no parent"


@dataclass(frozen=True)
class TrainingState:
    """A generation under way, after a finished epoch: what an exact resume needs.

    Random streams are functions of (seed, generation, epoch, purpose), so no generator state is kept.

    Attributes:
        epoch: Epochs finished, from 1.
        optimizer: State dict of the optimizer (and of the fp16 loss scaler, where there is one).
        training_log: One record per finished epoch.
        seconds: Wall-clock seconds trained so far.
        method_weights: What the method needs beside the weights to go on, name to tensor.
    """

    number: int
    epoch: int
    weights: Weights = field(repr=False)
    loss_weights: Weights = field(repr=False)
    optimizer: Mapping[str, Any] = field(repr=False)
    training_log: tuple[Mapping[str, Any], ...] = field(repr=False)
    seconds: float
    method_weights: Weights = field(default_factory=dict, repr=False)
