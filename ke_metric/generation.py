"""The records that travel: a generation, its scorecard, its provenance, a training under way, its data.

Plain data, whole or not at all: what `evolution` yields, `lineage` stores and `report` shows. A fingerprint is what a
lineage is grown on and scored on, kept beside it: every picture's key, class and content. It holds enough to name
what was added, removed or changed since, and no picture.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from ke_metric.arrays import FloatArray, Weights
from ke_metric.errors import some_of

Scores = Mapping[str, float]
"""Score name to value; a score that was not computed is absent, never 0."""
Vectors = Mapping[str, tuple[FloatArray, FloatArray]]
"""Name of a network to its vectors of the queries [Q, D] and the gallery [G, D]; one array where they are one set."""
ENGINE_FACTS = ("processes", "precision")
TIES_BY_ROW = "order of rows"
TIES_BY_MEAN = "mean over all orders"
CLUSTERS_DRAWN_SINGLY = "k-means drawn item by item"
CLUSTERS_DRAWN_IN_BLOCKS = "k-means drawn in blocks"


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


def rate_text(rate: float) -> str:
    """Return a split rate as it names a slim network in scorecards and files: `0.5`."""
    return f"{rate:g}"


def slim_name(rate: str) -> str:
    """Return what the slim network of a rate (`rate_text`) other than `split.rate` is called: `slim 0.25`."""
    return f"slim {rate}"


@dataclass(frozen=True)
class SlimRepair:
    """What was repaired of a slim network after it was cut out.

    Attributes:
        kind: `none`, `statistics`, `whiten`, `refit` or `both`.
        tensors: Name in the slim network to the tensor that takes the place of the one that was cut.
    """

    kind: str
    tensors: Weights = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class SlimScores:
    """The scores of the slim network at one split rate.

    Attributes:
        scores: Of the network as it is stored, repaired.
        parameters: Number of its parameters.
        as_cut: Scores before the repair; None where nothing was repaired.
        repair: Kind of the repair; None where the recipe asks for none.
    """

    scores: Scores
    parameters: int
    as_cut: Scores | None = None
    repair: str | None = None


@dataclass(frozen=True)
class BestEpoch:
    """Which epoch's weights count where a validation part decides (`training.patience`).

    Attributes:
        epoch: The first one with the highest score on that part, from 1.
        trained: How many epochs were trained.
    """

    epoch: int
    trained: int


@dataclass(frozen=True)
class Scorecard:
    """All scores of one generation, and the number of parameters of its networks.

    Attributes:
        dense: Scores of the full-width network.
        slim: Scores of the fit hypothesis alone; None where there is no slim network (WELS, or not asked for).
        classes: "dense" and "slim" to how each class was recognised; None for a retrieval, and where it was not
            recorded.
        slim_as_cut: Scores of the slim network before it was repaired; None where nothing was repaired.
        slim_repair: Kind of the repair; None where the recipe asks for none.
        narrow: Split rate (`rate_text`) to the scores of the slim network there, for `split.rates` other than
            `split.rate`; None where there are none.
        sizes: "dense" and "slim" to every one of `network.nested_sizes`, as text, to the scores of embeddings cut to
            that size, without clusters; None where there are none.
        best_epoch: Whose weights were scored; None where these are the last epoch's.
    """

    dense: Scores
    slim: Scores | None
    dense_parameters: int
    slim_parameters: int | None
    classes: Mapping[str, ClassScores] | None = None
    slim_as_cut: Scores | None = None
    slim_repair: str | None = None
    narrow: Mapping[str, SlimScores] | None = None
    sizes: Mapping[str, Mapping[str, Scores]] | None = None
    best_epoch: BestEpoch | None = None

    def __post_init__(self) -> None:
        assert (self.slim is None) == (self.slim_parameters is None), "slim scores without a slim network"

    @property
    def slims(self) -> dict[str, SlimScores]:
        """The slim networks by name: `slim`, that of `split.rate`, then `slim 0.25` and so on, ascending."""
        found: dict[str, SlimScores] = {}
        if self.slim is not None and self.slim_parameters is not None:
            found["slim"] = SlimScores(self.slim, self.slim_parameters, self.slim_as_cut, self.slim_repair)
        further = self.narrow or {}
        return found | {slim_name(rate): further[rate] for rate in sorted(further, key=float)}

    @property
    def networks(self) -> dict[str, Scores]:
        """The scores of every network by name: `dense`, then those of `slims`."""
        return {"dense": self.dense} | {name: found.scores for name, found in self.slims.items()}


@dataclass(frozen=True)
class Provenance:
    """Where a generation came from.

    Attributes:
        recipe_digest: SHA-256 of the recipe.
        parent_digest: SHA-256 of the parent's weights; None for generation 1.
        seed: Seed of the lineage.
        environment: Versions, hardware, commit; see `environment.describe_environment`.
        training: Device, precision, processes, search backend and the rules for `ties` and `clusters` that were used
            at the end, and `epochs`: which were trained by how many processes and in which precision.
        seconds: Wall-clock seconds by phase: `inheriting` (up to the first step), `training`, `scoring` and, as part
            of that, `slim` (all that was done for slim networks: cut out, repaired, scored); `averaging`, where
            weights were averaged, is the measuring of their norm statistics; `validating` scored the epochs, where
            the recipe has patience. A generation of before these were told
            apart has `training` and `scoring`.
        class_names: Names of the classes in the order of the logits; empty for retrieval.
        data: Part of the benchmark to its number of images and classes and the digest of its fingerprint; empty for a
            generation of before there were any. See `DataFingerprint.describe`.
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

    @property
    def clusters(self) -> str:
        """What NMI and AMI compare the classes with; before this was recorded k-means drew its start item by item."""
        return str(self.training.get("clusters", CLUSTERS_DRAWN_SINGLY))


@dataclass(frozen=True)
class Generation:
    """One complete training.

    Attributes:
        number: Counted from 1.
        weights: State dict of the dense network after the last or the best epoch, averaged where the recipe says so:
            what is scored.
        loss_weights: State dict of the loss (proxies) after that epoch; empty for losses without parameters.
        split: The split plan as JSON, see `split.plan.SplitPlan.to_json`.
        split_bits: The masks' bits of a WELS plan, name to uint8 tensor; empty for KELS.
        training_log: One record per epoch.
        magnitudes: Parameter name to mean absolute weight inside its fit and its reset part (None where empty).
        narrow_splits: Split rate (`rate_text`) to the split plan there as JSON, for every one of `split.rates`.
        repairs: Split rate (`rate_text`) to what was repaired of the slim network there.
        vectors: Name of a network, as in `Scorecard.networks`, to its embeddings of the queries and the gallery,
            or its logits; empty unless the recipe keeps them (`keep_vectors`).
        last_weights: State dict after the last step where `weights` are an average that a child does not inherit
            (`method.inherit_average`); empty where it inherits what is scored.
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
    narrow_splits: Mapping[str, str] = field(default_factory=dict, repr=False)
    repairs: Mapping[str, SlimRepair] = field(default_factory=dict)
    vectors: Vectors = field(default_factory=dict, repr=False)
    last_weights: Weights = field(default_factory=dict, repr=False)

    @property
    def inherited(self) -> Weights:
        """State dict of what a child begins from."""
        return self.last_weights or self.weights

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
        average: Averaged parameters so far, by name; empty where nothing is averaged yet.
        best: State dict of the network at the best epoch so far; empty where that is `weights` itself, or nothing is
            validated.
        best_loss: State dict of the loss there.
    """

    number: int
    epoch: int
    weights: Weights = field(repr=False)
    loss_weights: Weights = field(repr=False)
    optimizer: Mapping[str, Any] = field(repr=False)
    training_log: tuple[Mapping[str, Any], ...] = field(repr=False)
    seconds: float
    method_weights: Weights = field(default_factory=dict, repr=False)
    average: Weights = field(default_factory=dict, repr=False)
    best: Weights = field(default_factory=dict, repr=False)
    best_loss: Weights = field(default_factory=dict, repr=False)


TRAIN, TESTED = "train", ("query", "gallery")
# What a part is called in a sentence; where there is no gallery of its own, the queries are the test part.
PART_NAMES = {TRAIN: "training part", "query": "queries", "gallery": "gallery", "validation": "validation part"}


@dataclass(frozen=True)
class PartFingerprint:
    """The pictures of a part, in order.

    Attributes:
        keys: N item keys.
        labels: N class numbers.
        class_names: C names, indexed by label.
        contents: N digests of what the pictures hold, in hexadecimal digits; empty where nobody has read them.
    """

    keys: tuple[str, ...] = field(repr=False)
    labels: tuple[int, ...] = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    contents: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        assert len(self.keys) == len(self.labels), (len(self.keys), len(self.labels))
        assert len(self.contents) in (0, len(self.keys)), (len(self.contents), len(self.keys))
        assert all(0 <= label < len(self.class_names) for label in self.labels), "label without a class name"

    @property
    def classes(self) -> dict[str, str]:
        """Key to the name of its class."""
        return {key: self.class_names[label] for key, label in zip(self.keys, self.labels, strict=True)}

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, in order."""
        digest = hashlib.sha256()
        for values in (self.keys, self.labels, self.class_names, self.contents):
            for value in values:
                # Names of files may hold bytes that are no text; the zero ends a value as no name can.
                digest.update(f"{value}\0".encode("utf-8", "surrogatepass"))
            digest.update(b"\0")
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return its size and digest, as a provenance record has it."""
        return {"images": len(self.keys), "classes": len(set(self.labels)), "digest": self.digest}


@dataclass(frozen=True)
class DataFingerprint:
    """The parts of a benchmark.

    Attributes:
        parts: `train`, `query`, `gallery` (only where it is not the queries themselves) and `validation` (only where
            there is one), each with its pictures.
        task: `retrieval` or `classification`.
        since: The first generation that is known to have been trained on them; later than 1 for a lineage of before
            fingerprints were kept, of whose earlier generations nobody knows.
    """

    parts: Mapping[str, PartFingerprint]
    task: str = "retrieval"
    since: int = 1

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return part to its size and digest, as a provenance record has it."""
        return {name: part.describe() for name, part in self.parts.items()}

    @property
    def tested(self) -> DataFingerprint:
        """The parts that a network is scored on, alone."""
        return self.only(*TESTED, "validation")

    def only(self, *names: str) -> DataFingerprint:
        """Return some of the parts, as far as they are there."""
        return DataFingerprint({name: part for name, part in self.parts.items() if name in names}, self.task)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        parts = {name: {key: list(values) for key, values in vars(part).items()} for name, part in self.parts.items()}
        return {"task": self.task, "since": self.since, "parts": parts}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> DataFingerprint:
        """Return what `to_json` gave; what is not of that form raises LookupError, TypeError or AssertionError."""
        parts = {
            name: PartFingerprint(**{key: tuple(values) for key, values in part.items()})
            for name, part in document["parts"].items()
        }
        return cls(parts, document["task"], int(document.get("since", 1)))

    def changes(self, now: DataFingerprint) -> list[str]:
        """Return what differs in `now`, a sentence each; none where nothing does.

        Contents are compared where both have them. A part that `now` does not have at all is told as removed.
        """
        told = [_moved(self, now)]
        for name in dict.fromkeys((*self.parts, *now.parts)):
            empty = PartFingerprint((), (), ())
            changed = _part_changes(self.parts.get(name, empty), now.parts.get(name, empty))
            told.append(f"{self._name(name, now)}: {', '.join(changed)}" if changed else "")
        return [sentence for sentence in told if sentence]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes trained on, in the order of a classifier's logits."""
        return self.parts[TRAIN].class_names

    def _name(self, part: str, now: DataFingerprint) -> str:
        alone = part == "query" and "gallery" not in (*self.parts, *now.parts)
        return "test part" if alone else PART_NAMES.get(part, part)


def class_name_changes(before: Sequence[str], now: Sequence[str]) -> str:
    """Return how class names differ, whose order is that of a classifier's logits; empty where they do not."""
    if tuple(before) == tuple(now):
        return ""
    gone, new = ([each for each in one if each not in set(other)] for one, other in ((before, now), (now, before)))
    told = [*([f"gone: {some_of(gone, 3)}"] if gone else []), *([f"new: {some_of(new, 3)}"] if new else [])]
    return f"{len(before):,} classes then, {len(now):,} now; {', '.join(told) or 'in another order'}"


def _moved(before: DataFingerprint, now: DataFingerprint) -> str:
    """Return which classes were trained on and are tested on now, of a retrieval the gravest change."""
    if before.task == "classification":
        return ""
    trained = set(before.parts[TRAIN].classes.values()) if TRAIN in before.parts else set()
    tested, tested_before = (
        {name for part in each.tested.parts.values() for name in part.classes.values()} for each in (now, before)
    )
    moved = sorted((trained & tested) - tested_before)
    return f"classes that were trained on are now tested on: {some_of(moved, 3)}" if moved else ""


def _part_changes(before: PartFingerprint, now: PartFingerprint) -> list[str]:
    then, today = before.classes, now.classes
    both = [key for key in then if key in today]
    added, removed = [key for key in today if key not in then], [key for key in then if key not in today]
    moved = [f"{key} ({today[key]}, was {then[key]})" for key in both if then[key] != today[key]]
    told = [
        _counted(added, "added"),
        _counted(removed, "removed"),
        _counted(moved, "of another class"),
        _counted(_other_contents(before, now, both), "with other content"),
        _class_counts(then.values(), today.values()),
    ]
    found = [each for each in told if each]
    if not found and before.keys != now.keys:
        found.append("the same pictures in another order")
    if not found and before.class_names != now.class_names:
        found.append("the same classes in another order")
    return found


def _other_contents(before: PartFingerprint, now: PartFingerprint, keys: Iterable[str]) -> list[str]:
    if not before.contents or not now.contents:
        return []
    then, today = (dict(zip(part.keys, part.contents, strict=True)) for part in (before, now))
    return [key for key in keys if then[key] != today[key]]


def _class_counts(before: Iterable[str], now: Iterable[str]) -> str:
    then, today = Counter(before), Counter(now)
    gone, new = (sorted(one.keys() - other.keys()) for one, other in ((then, today), (today, then)))
    told = [(f"class{'es' * (len(some) > 1)} {what}", some) for what, some in (("gone", gone), ("new", new)) if some]
    return ", ".join(f"{what}: {some_of(some, 3)}" for what, some in told)


def _counted(keys: Sequence[str], what: str) -> str:
    return f"{len(keys):,} picture{'s' * (len(keys) > 1)} {what} ({some_of(keys, 3)})" if keys else ""
