"""Writing an export: the file, compared with the network before the folder takes its place.

Shapes: N pictures, S image size in pixels.
"""

from __future__ import annotations

import copy
import hashlib
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from ke_metric.arrays import PixelArray
from ke_metric.disk import require_free, whole_folder
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.export.onnx_file import (
    OPSET,
    Int8,
    OnnxNetwork,
    quantize,
    require_onnx,
    run_program,
    write_onnx,
    write_program,
)
from ke_metric.export.record import (
    EXPORT,
    ONNX_FILE,
    PROGRAM_FILE,
    RECORD,
    TOLERANCE,
    Embed,
    ExportRecord,
    RecallCost,
    ScoredPictures,
    TopCost,
    Verification,
    compare,
    file_facts,
    recall_cost,
    require_agreement,
    require_alike,
    require_cheap,
    require_enough,
    this_machine,
    top_cost,
    versions,
)
from ke_metric.networks.dense import PictureModule
from ke_metric.retrieval.embedder import PictureNetwork
from ke_metric.retrieval.predictor import Predictor

MAX_LOSS = 5.0
"""Points of Recall@1, or top-1, that 8-bit integers may cost unless somebody says otherwise."""


@dataclass(frozen=True)
class ExportSettings:
    """What is written.

    Attributes:
        format: `onnx` or `torch-export`.
        int8: `none` is fp32; 8-bit integers for onnx alone.
        max_loss: Points of Recall@1, or top-1, that 8-bit integers may cost.
    """

    format: Literal["onnx", "torch-export"]
    int8: Int8 = "none"
    max_loss: float = MAX_LOSS

    def __post_init__(self) -> None:
        if self.int8 != "none" and self.format != "onnx":
            raise KeMetricError(
                f"int8 = {self.int8!r}: 8-bit integers are made by ONNX Runtime, format = {self.format!r} must be "
                "'onnx'",
                ExitCode.USAGE,
            )
        # Not a number is no limit either: nothing would be more.
        if not 0 <= self.max_loss <= 100:
            raise KeMetricError(f"max_loss = {self.max_loss}, must be points from 0 to 100", ExitCode.USAGE)


@dataclass(frozen=True, eq=False)
class Evidence:
    """The pictures that show what a file is worth, prepared by the embedder.

    Attributes:
        pictures: uint8 [N, S, S, 3] that file and network are compared on.
        source: Where they come from, in words.
        calibration: uint8 [N, S, S, 3] that static ranges are measured on; needed for `static`.
        scored: Queries and gallery for the Recall@1, or top-1, that 8-bit integers cost; None: nothing has labels.
    """

    pictures: PixelArray
    source: str
    calibration: PixelArray | None = None
    scored: ScoredPictures | None = None

    def __post_init__(self) -> None:
        require_enough(len(self.pictures), self.source)


def require_place(folder: Path, settings: ExportSettings, *, overwrite: bool) -> Path:
    """Return where an export can be written, links followed.

    Raises:
        KeMetricError: USAGE: the folder is taken. ENVIRONMENT: what the format needs is not installed.
    """
    if settings.format == "onnx":
        require_onnx()
    return require_free(folder, overwrite=overwrite, kind=EXPORT)


def export(
    network: PictureNetwork, folder: Path, *, settings: ExportSettings, evidence: Evidence, overwrite: bool = False
) -> ExportRecord:
    """Write a network as a file of another runtime with its export.json, whole or not at all.

    The file takes float32 pictures [B, 3, S, S] in [0, 1], any number at a time, and gives L2-normalised embeddings
    [B, D], or logits [B, C]. One that differs from the network, or with 8-bit integers costs too much, is not kept.

    Args:
        network: What is exported, an embedder or a predictor; unchanged.
        folder: The folder to make.
        settings: What is written.
        evidence: The pictures it is compared on.
        overwrite: Replace the export that is there.

    Returns:
        What export.json says.

    Raises:
        KeMetricError: GATE, with the numbers: the file differs or costs too much. USAGE: the folder is taken.
            ENVIRONMENT: a package is missing or the disk is full. The network cannot be exported.
    """
    place = require_place(folder, settings, overwrite=overwrite)
    with whole_folder(place, overwrite=overwrite) as temporary:
        exported = _write(network, temporary, settings, evidence)
        proved = {
            "verification": _verify(network, exported, settings, evidence),
            **_cost(network.compute, exported, settings, evidence),
        }
        record = _record(network, temporary, settings, evidence, proved)
        (temporary / RECORD).write_text(record.to_json(), encoding="utf-8")
    return record


def portable_module(network: PictureNetwork) -> PictureModule:
    """Return a copy of the network's module on the processor, its weights in the order that every runtime knows."""
    module = copy.deepcopy(network.as_module()).requires_grad_(False).eval()
    return module.to("cpu").to(memory_format=torch.contiguous_format)


def _write(network: PictureNetwork, folder: Path, settings: ExportSettings, evidence: Evidence) -> Embed:
    """Write the file, and return what it gives."""
    module, size = portable_module(network), network.normalization.image_size
    if settings.format == "torch-export":
        write_program(module, folder / PROGRAM_FILE, image_size=size)
        return run_program(folder / PROGRAM_FILE)
    output, names = _output_of(network)
    write = partial(write_onnx, module, image_size=size, output=output, class_names=names)
    if settings.int8 == "none":
        write(folder / ONNX_FILE)
        return OnnxNetwork(folder / ONNX_FILE)
    assert settings.int8 == "dynamic" or evidence.calibration is not None, "static ranges are measured on pictures"
    with tempfile.TemporaryDirectory() as other:
        exact = Path(other) / ONNX_FILE
        write(exact)
        # What is lost below is then lost by the integers, not by the export.
        require_agreement(compare(network.compute, OnnxNetwork(exact), evidence.pictures, classes=bool(names)))
        quantize(exact, folder / ONNX_FILE, evidence.calibration if settings.int8 == "static" else None)
    return OnnxNetwork(folder / ONNX_FILE)


def _output_of(network: PictureNetwork) -> tuple[Literal["embeddings", "logits"], tuple[str, ...]]:
    """Return what a network gives, and the names of its classes; none for an embedder."""
    return ("logits", network.class_names) if isinstance(network, Predictor) else ("embeddings", ())


def _verify(network: PictureNetwork, exported: Embed, settings: ExportSettings, evidence: Evidence) -> Verification:
    classes = isinstance(network, Predictor)
    agreements = compare(network.compute, exported, evidence.pictures, classes=classes)
    if settings.int8 == "none":
        require_agreement(agreements)
    elif evidence.scored is None:
        require_alike(agreements)
    return Verification(
        pictures=len(evidence.pictures),
        source=evidence.source,
        tolerance=TOLERANCE if settings.int8 == "none" else None,
        batches=agreements,
    )


def _cost(
    network: Embed, exported: Embed, settings: ExportSettings, evidence: Evidence
) -> dict[str, RecallCost | TopCost]:
    """Return what 8-bit integers cost, under its name in the record; nothing where it is not scored."""
    if settings.int8 == "none" or evidence.scored is None:
        return {}
    measure, name = (top_cost, "top1") if evidence.scored.classes else (recall_cost, "recall_at_1")
    cost = measure(network, exported, evidence.scored)
    require_cheap(cost, settings.max_loss)
    return {name: cost}


def _record(
    network: PictureNetwork, folder: Path, settings: ExportSettings, evidence: Evidence, proved: dict[str, Any]
) -> ExportRecord:
    files = {path.name: file_facts(path) for path in sorted(folder.iterdir())}
    digest = network.digest
    if settings.int8 != "none":
        # Other vectors: an index of the network's own must refuse them.
        digest = hashlib.sha256(f"{digest} {files[ONNX_FILE].sha256}".encode()).hexdigest()
    output, class_names = _output_of(network)
    calibration = evidence.calibration if settings.int8 == "static" else None
    return ExportRecord(
        output=output,
        class_names=class_names or None,
        format=settings.format,
        int8=settings.int8,
        embedder=network.description,
        embedder_digest=network.digest,
        digest=digest,
        files=files,
        dimension=network.dimension,
        image_size=network.normalization.image_size,
        preparation=network.normalization,
        steps=network.normalization.steps,
        opset=OPSET if settings.format == "onnx" else None,
        versions=versions(),
        calibration_pictures=None if calibration is None else len(calibration),
        machine=this_machine(),
        **proved,
    )
