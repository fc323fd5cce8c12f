"""What export.json says of an exported file, and the comparison that finds how far it is from its network.

Shapes: N pictures, B batch, D embedding, C classes, S image size in pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from ke_metric.arrays import FloatArray, IntArray, PixelArray
from ke_metric.disk import FolderKind
from ke_metric.environment import describe_processor, package_versions
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.classification import score_classification
from ke_metric.evaluation.embeddings import Embeddings
from ke_metric.evaluation.retrieval import Scoring, score_retrieval
from ke_metric.images.preparation import Preparation
from ke_metric.networks.bundle_config import Sha256, WeightsFile, with_preparation
from ke_metric.schema import Names, Section, in_words

RECORD = "export.json"
ONNX_FILE, ONNX_WEIGHTS, PROGRAM_FILE = "model.onnx", "model.onnx.data", "model.pt2"
LARGEST_RECORD = 2**20
NEWER_FIELDS = {"class_names", "top1", "machine", "same_nearest", "same_class"}


class Agreement(Section):
    """How far the file is from the network, when both are given the same pictures in batches of one size."""

    batch: int
    """Pictures at a time."""
    max_difference: float
    """Largest absolute difference of two numbers; of logits, divided by the largest of them where that is above 1."""
    smallest_cosine: float
    """Smallest cosine of two embeddings, or of two rows of logits, of one picture."""
    same_nearest: float | None = None
    """Share of the pictures whose nearest neighbour among the others is the same one; ties count as the same. None
    for a classifier."""
    same_class: float | None = None
    """Share of the pictures whose likeliest class is the same one; ties count as the same. None for embeddings."""

    @property
    def same(self) -> tuple[str, float]:
        """What must be the same for every picture, in words, and the share of the pictures for which it is."""
        if self.same_class is not None:
            return "likeliest class", self.same_class
        assert self.same_nearest is not None, "an agreement is on neighbours or on classes"
        return "nearest neighbour", self.same_nearest


class Verification(Section):
    """The comparison with PyTorch."""

    pictures: int
    """How many."""
    source: str
    """Where they come from."""
    tolerance: float | None
    """The largest max_difference that is allowed; None for 8-bit integers, which cannot meet any."""
    batches: tuple[Agreement, ...] = Field(strict=False)
    """One for each batch size."""

    @property
    def worst(self) -> Agreement:
        """The agreement that is furthest off."""
        return max(self.batches, key=lambda agreement: agreement.max_difference)


class Cost(Section):
    """A share of the pictures through PyTorch and through the file, of the same pictures."""

    pytorch: float
    exported: float

    @property
    def points(self) -> float:
        """What it costs, in points of a hundred; negative where the file is better."""
        return 100 * (self.pytorch - self.exported)


class RecallCost(Cost):
    """Recall@1 of an embedder."""

    queries: int


class TopCost(Cost):
    """Top-1 of a classifier."""

    pictures: int


class Machine(Section):
    """Where the file was made and compared; what is not known is empty."""

    processor: str
    architecture: str
    """`x86_64`, `aarch64`, ..."""
    instructions: Names
    """Instruction sets that matter for such networks, those that the processor has."""


class ExportRecord(Section):
    """All of export.json."""

    format_version: Literal[1] = 1
    format: Literal["onnx", "torch-export"]
    int8: Literal["none", "dynamic", "static"]
    """Whether, and how, the numbers are 8-bit integers."""
    output: Literal["embeddings", "logits"] = "embeddings"
    """What the file gives: L2-normalised embeddings, or logits of classes, whose softmax are probabilities."""
    class_names: Names | None = None
    """Names of the classes in the order of the logits; None for embeddings."""
    embedder: str
    """What was exported, embedder or predictor, in words."""
    embedder_digest: Sha256
    digest: Sha256
    """Vectors of one digest can be compared: the network's own in fp32, another one for 8-bit integers."""
    files: dict[str, WeightsFile]
    """Every file beside this one; the first is the one to load."""
    dimension: int
    """D, or C of a classifier."""
    image_size: int
    """S; the input is float32 [B, 3, S, S], red, green, blue, in [0, 1]."""
    preparation: Preparation
    """How a picture becomes the input; mean and std are applied inside the file."""
    steps: Names
    """The preparation in words."""
    opset: int | None
    """Of the ONNX file."""
    versions: dict[str, str]
    """Of the packages that made the file."""
    verification: Verification
    calibration_pictures: int | None = None
    """Pictures that the ranges of the static 8-bit integers were measured on."""
    recall_at_1: RecallCost | None = None
    """None where nothing was scored: fp32, pictures without labels, or a classifier."""
    top1: TopCost | None = None
    """Of a classifier; None where nothing was scored."""
    machine: Machine | None = None
    """None in a file of before this was recorded."""

    @property
    def document(self) -> dict[str, Any]:
        """Plain JSON values; of the newer fields, what does not apply is absent."""
        document = self.model_dump(mode="json")
        for found in (document, *document["verification"]["batches"]):
            for name in NEWER_FIELDS & found.keys():
                if found[name] is None:
                    del found[name]
        return document

    def to_json(self) -> str:
        """Return the text of the file."""
        return json.dumps(self.document, indent=2, allow_nan=False) + "\n"


def file_facts(path: Path) -> WeightsFile:
    """Return size and checksum of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return WeightsFile(bytes=path.stat().st_size, sha256=digest)


def this_machine() -> Machine:
    """Return what is known of the processor here."""
    return Machine(**describe_processor())


def versions() -> dict[str, str]:
    """Return the versions of what makes and runs an exported file, of the packages that are installed."""
    return package_versions(("ke_metric", "torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxscript"))


def read_record(folder: Path) -> ExportRecord:
    """Read export.json and check the files it names.

    Raises:
        KeMetricError: DATA: a file is missing or was changed since it was written, or the record is none of ours.
    """
    path = folder / RECORD
    try:
        record = _read(path)
    except FileNotFoundError:
        raise KeMetricError(
            f"{path}: no such file; an export is a folder with {RECORD} and a model (ke-metric export)", ExitCode.DATA
        ) from None
    except OSError as error:
        raise KeMetricError(f"{path}: cannot be read: {error.strerror}", ExitCode.DATA) from error
    except ValidationError as error:
        raise KeMetricError(f"{path}: {in_words(error)}", ExitCode.DATA) from error
    for name, facts in record.files.items():
        _require_unchanged(folder / name, facts)
    return record


def _read(path: Path) -> ExportRecord:
    """Read export.json, of this version or an older one."""
    with path.open("rb") as file:
        text = file.read(LARGEST_RECORD)
    try:
        document = json.loads(text)
    except (RecursionError, ValueError):
        document = None
    if isinstance(document, dict):
        text = json.dumps(with_preparation(document, "preparation")).encode()
    return ExportRecord.model_validate_json(text)


def _require_unchanged(path: Path, facts: WeightsFile) -> None:
    if path.name not in (ONNX_FILE, ONNX_WEIGHTS, PROGRAM_FILE) or not path.is_file():
        raise KeMetricError(f"{path}: no such file, {RECORD} beside it names it", ExitCode.DATA)
    if file_facts(path) != facts:
        raise KeMetricError(
            f"{path}: is not the file that {RECORD} describes (its SHA-256 differs); export it again", ExitCode.DATA
        )


def _is_export(path: Path) -> bool:
    if not path.is_dir():
        return False
    try:
        record = _read(path / RECORD)
    except (OSError, ValidationError):
        return False
    return {entry.name for entry in path.iterdir()} == {RECORD, *record.files}


EXPORT = FolderKind("an export", f"{RECORD} and the model", _is_export)


Embed = Callable[[PixelArray], FloatArray]
"""Prepared pictures uint8 [B, S, S, 3] to embeddings, or logits, [B, D]."""

BATCHES = (1, 3, 32)
FEWEST_PICTURES = max(BATCHES)
TOLERANCE = 1e-4
"""Largest difference of two numbers of an fp32 embedding; two correct runtimes differ by some 1e-7. Of logits, which
have no fixed length, for each unit of the largest one above 1."""
LEAST_COSINE = 0.9
"""What 8-bit integers must keep where nothing can be scored, for want of labels."""
TIE = 1e-5
"""Neighbours whose cosine similarities differ by less are equally near; logits so, for each unit of the largest."""


def require_enough(count: int, source: str) -> None:
    """Raise KeMetricError (DATA) where there are fewer than `FEWEST_PICTURES` to compare on."""
    if count < FEWEST_PICTURES:
        raise KeMetricError(
            f"{source}: {count} pictures, an exported file is compared on at least {FEWEST_PICTURES}; name a folder "
            "that has as many with --pictures (they need no labels)",
            ExitCode.DATA,
        )


def compare(network: Embed, exported: Embed, pictures: PixelArray, *, classes: bool = False) -> tuple[Agreement, ...]:
    """Compare a file with the network it was made of, at every size of `BATCHES`.

    Args:
        network: What it should give.
        exported: What it gives.
        pictures: uint8 [N, S, S, 3], at least `FEWEST_PICTURES`, which have something to tell apart.
        classes: Whether they give logits of classes; False: embeddings.

    Raises:
        KeMetricError: The file cannot be run at one of the sizes, or gives another shape or numbers that are not
            finite.
    """
    return tuple(_agreement(network, exported, pictures, batch, classes) for batch in BATCHES)


def _agreement(network: Embed, exported: Embed, pictures: PixelArray, batch: int, classes: bool) -> Agreement:
    expected = in_batches(network, pictures, batch)
    try:
        given = in_batches(exported, pictures, batch)
    except Exception as error:
        # Whatever the runtime raises: the file is not what it should be.
        raise KeMetricError(
            f"the exported file cannot be run with {batch} pictures at a time: {error}", ExitCode.GATE
        ) from error
    if given.shape != expected.shape or not np.isfinite(given).all():
        raise KeMetricError(
            f"the exported file gives {list(given.shape)} {'finite ' if np.isfinite(given).all() else ''}numbers for "
            f"{len(pictures)} pictures, {batch} at a time, must be {list(expected.shape)} finite ones",
            ExitCode.GATE,
        )
    theirs, ours = given.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(theirs, axis=1) * np.linalg.norm(ours, axis=1)
    return Agreement(
        batch=batch,
        max_difference=float(np.abs(theirs - ours).max()) / (_unit(ours) if classes else 1.0),
        smallest_cosine=float(((theirs * ours).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)).min()),
        same_nearest=None if classes else _same_nearest(ours, theirs),
        same_class=_same_class(ours, theirs) if classes else None,
    )


def in_batches(embed: Embed, pictures: PixelArray, batch: int) -> FloatArray:
    """Return the embeddings, or logits, [N, D] of pictures, so many at a time."""
    return np.concatenate([embed(pictures[start : start + batch]) for start in range(0, len(pictures), batch)])


def _same_nearest(ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64]) -> float:
    """Return the share of the pictures whose nearest neighbour among the others is the same, ties aside."""
    similarities, others = ours @ ours.T, theirs @ theirs.T
    for matrix in (similarities, others):
        np.fill_diagonal(matrix, -np.inf)
    chosen = similarities[np.arange(len(ours)), others.argmax(axis=1)]
    return float((chosen >= similarities.max(axis=1) - TIE).mean())


def _same_class(ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64]) -> float:
    """Return the share of the pictures whose likeliest class is the same, ties aside."""
    chosen = ours[np.arange(len(ours)), theirs.argmax(axis=1)]
    return float((chosen >= ours.max(axis=1) - TIE * _unit(ours)).mean())


def _unit(logits: npt.NDArray[np.float64]) -> float:
    """Return what differences of logits are measured in: the largest of them, at least 1."""
    return max(1.0, float(np.abs(logits).max()))


def require_agreement(agreements: tuple[Agreement, ...]) -> None:
    """Check that an fp32 file is within `TOLERANCE` and finds the same neighbours, or classes.

    Raises:
        KeMetricError: GATE, with the numbers: it is not.
    """
    for found in agreements:
        what, share = found.same
        if found.max_difference > TOLERANCE or share < 1:
            raise KeMetricError(
                f"the exported file differs from the network and is not kept: with {found.batch} pictures at a time "
                f"by up to {found.max_difference:.3g} (at most {TOLERANCE:g} is allowed), smallest cosine "
                f"{found.smallest_cosine:.6f}, same {what} for {share:.1%} of the pictures "
                "(all are demanded). Another version of torch, onnxscript or onnxruntime may do it right",
                ExitCode.GATE,
            )


def require_alike(agreements: tuple[Agreement, ...]) -> None:
    """Check that 8-bit integers keep `LEAST_COSINE`, where there are no labels to score.

    Raises:
        KeMetricError: GATE: they do not.
    """
    smallest = min(found.smallest_cosine for found in agreements)
    if smallest < LEAST_COSINE:
        raise KeMetricError(
            f"the exported file is not kept: smallest cosine to the network's numbers {smallest:.4f}, at least "
            f"{LEAST_COSINE} is demanded of 8-bit integers where there are no labels to score",
            ExitCode.GATE,
        )


@dataclass(frozen=True, eq=False)
class LabelledPictures:
    """Prepared pictures, uint8 [B, S, S, 3] one batch after the other, read once; their N labels and item ids."""

    batches: Iterable[PixelArray]
    labels: IntArray
    keys: Sequence[str]


@dataclass(frozen=True, eq=False)
class ScoredPictures:
    """Queries and what they are searched in.

    Attributes:
        query: What is searched with.
        gallery: What is searched in; None: every query searches all others.
        backend: What searches, see `Scoring`.
        classes: Whether classes are predicted for the queries, and nothing is searched.
    """

    query: LabelledPictures
    gallery: LabelledPictures | None = None
    backend: str = "auto"
    classes: bool = False


def recall_cost(network: Embed, exported: Embed, pictures: ScoredPictures) -> RecallCost:
    """Score both on the same pictures, each of which is decoded once.

    Raises:
        KeMetricError: DATA: no query has anything to find, or a picture cannot be decoded.
    """
    query = _embed_both((network, exported), pictures.query)
    gallery = _embed_both((network, exported), pictures.gallery) if pictures.gallery else query
    scores = [_score(*pair, pictures) for pair in zip(query, gallery, strict=True)]
    if "recall@1" not in scores[0]:
        raise KeMetricError("no query has a picture of its class to find: Recall@1 has no meaning", ExitCode.DATA)
    return RecallCost(
        queries=int(scores[0]["queries"]), pytorch=scores[0]["recall@1"], exported=scores[1]["recall@1"]
    )


def top_cost(network: Embed, exported: Embed, pictures: ScoredPictures) -> TopCost:
    """Score both as classifiers on the same pictures, each of which is decoded once.

    Raises:
        KeMetricError: DATA: a picture cannot be decoded, or a label is no class of the network.
    """
    labels = pictures.query.labels
    given = _embed_both((network, exported), pictures.query)
    pytorch, file = (score_classification(logits, labels)["top1"] for logits in given)
    return TopCost(pictures=len(labels), pytorch=pytorch, exported=file)


def _embed_both(networks: tuple[Embed, Embed], pictures: LabelledPictures) -> list[FloatArray]:
    vectors = [[embed(batch) for embed in networks] for batch in pictures.batches]
    return [np.concatenate(parts) for parts in zip(*vectors, strict=True)]


def _score(query: FloatArray, gallery: FloatArray, pictures: ScoredPictures) -> dict[str, float]:
    scoring = Scoring(backend=pictures.backend, kmeans_seeds=())
    asked, searched = pictures.query, pictures.gallery
    if searched is None:
        return score_retrieval(query, asked.labels, (1,), scoring=scoring)
    found = Embeddings(gallery, searched.labels, searched.keys)
    return score_retrieval(query, asked.labels, (1,), gallery=found, ids=asked.keys, scoring=scoring)


def require_cheap(cost: RecallCost | TopCost, max_loss: float) -> None:
    """Check that a file does not lose more points of Recall@1, or top-1, than is allowed.

    Raises:
        KeMetricError: GATE: it loses more.
    """
    if cost.points <= max_loss:
        return
    if isinstance(cost, RecallCost):
        score, counted = "Recall@1", f"{cost.queries:,} queries"
    else:
        score, counted = "top-1", f"{cost.pictures:,} pictures"
    raise KeMetricError(
        f"the exported file costs {cost.points:.1f} points of {score} ({cost.pytorch:.4f} with PyTorch, "
        f"{cost.exported:.4f} with the file, {counted}) and is not kept: at most {max_loss:g} are allowed "
        "(--max-loss)",
        ExitCode.GATE,
    )
