"""What export.json says of an exported file: what it is, how its pictures are prepared, and how it was compared.

Shapes: B batch, D embedding, C classes, S image size in pixels.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from ke_metric.disk import FolderKind
from ke_metric.environment import describe_processor, package_versions
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.preparation import Preparation
from ke_metric.networks.bundle_config import Sha256, WeightsFile, with_preparation
from ke_metric.schema import Names, Section, in_words

RECORD = "export.json"
ONNX_FILE, ONNX_WEIGHTS, PROGRAM_FILE = "model.onnx", "model.onnx.data", "model.pt2"
LARGEST_RECORD = 2**20
NEWER_FIELDS = {"class_names", "top1", "machine", "same_nearest", "same_class"}
PACKAGES = ("ke_metric", "torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxscript")


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
    return package_versions(PACKAGES)


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
