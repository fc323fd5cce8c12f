"""How a generation lies on disk: folders that are complete when they exist.

A folder is written under a temporary name beside its place and renamed when everything in it has reached the disk.
Weights are safetensors, facts are JSON, optimizer state is read with `weights_only=True`: nothing here can run code.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import Generation, Provenance, Scorecard, TrainingState

WEIGHTS = "weights.safetensors"
LOSS_WEIGHTS = "loss.safetensors"
SPLIT = "split.json"
SPLIT_BITS = "split.safetensors"
SCORECARD = "scorecard.json"
TRAINING_LOG = "training.jsonl"
PROVENANCE = "provenance.json"
OPTIMIZER = "optimizer.pt"
STATE = "state.json"
TEMPORARY = ".writing-"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; on success it becomes `folder`, on any error nothing is left of it.

    Raises:
        KeMetricError: The disk is full or cannot be written.
    """
    temporary = folder.with_name(f"{TEMPORARY}{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.iterdir():
            _reach_disk(path)
        temporary.rename(folder)
        _reach_disk(folder.parent)
    except OSError as error:
        raise disk_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole.

    Raises:
        KeMetricError: The disk is full or cannot be written.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        _reach_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file as a whole; a number that is not finite is our own mistake."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def disk_error(path: Path, error: OSError) -> KeMetricError:
    """Return the error a user sees when something could not be written."""
    what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
    return KeMetricError(
        f"{path}: cannot be written: {what}. Everything written before is complete; free some space and go on with "
        "--resume",
        ExitCode.ENVIRONMENT,
    )


def _reach_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_generation(folder: Path, generation: Generation) -> None:
    """Write a generation's folder, whole or not at all."""
    with whole_folder(folder) as temporary:
        _save(generation.weights, temporary / WEIGHTS)
        if generation.loss_weights:
            _save(generation.loss_weights, temporary / LOSS_WEIGHTS)
        if generation.split_bits:
            _save(generation.split_bits, temporary / SPLIT_BITS)
        scorecard = {"generation": generation.number, **_drop_missing(dataclasses.asdict(generation.scorecard))}
        scorecard["magnitudes"] = {name: list(pair) for name, pair in generation.magnitudes.items()}
        write_text(temporary / SPLIT, generation.split + "\n")
        write_json(temporary / SCORECARD, scorecard)
        write_json(temporary / PROVENANCE, dataclasses.asdict(generation.provenance))
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in generation.training_log)
        write_text(temporary / TRAINING_LOG, lines)


def read_generation(folder: Path) -> Generation:
    """Read a generation's folder.

    Raises:
        KeMetricError: Its weights were not kept, or a file is damaged.
    """
    if not (folder / WEIGHTS).exists():
        raise KeMetricError(
            f"{folder}: the weights of this generation were not kept (its scores are in {SCORECARD}); "
            "a recipe with keep: all keeps the weights of every generation",
            ExitCode.LINEAGE,
        )
    facts = read_json(folder / SCORECARD)
    log = (folder / TRAINING_LOG).read_text(encoding="utf-8").splitlines()
    return Generation(
        number=facts["generation"],
        weights=_load(folder / WEIGHTS),
        loss_weights=_load(folder / LOSS_WEIGHTS) if (folder / LOSS_WEIGHTS).exists() else {},
        split=(folder / SPLIT).read_text(encoding="utf-8").strip(),
        split_bits=_load(folder / SPLIT_BITS) if (folder / SPLIT_BITS).exists() else {},
        scorecard=read_scorecard(folder),
        training_log=tuple(json.loads(line) for line in log),
        magnitudes={name: (pair[0], pair[1]) for name, pair in facts["magnitudes"].items()},
        provenance=Provenance(**read_json(folder / PROVENANCE)),
    )


def read_scorecard(folder: Path) -> Scorecard:
    """Read the scores of a generation; they stay when its weights are dropped."""
    facts = read_json(folder / SCORECARD)
    return Scorecard(
        dense=facts["dense"],
        slim=facts.get("slim"),
        dense_parameters=facts["dense_parameters"],
        slim_parameters=facts.get("slim_parameters"),
    )


def drop_weights(folder: Path) -> None:
    """Delete the weights of a generation and leave everything else."""
    for name in (WEIGHTS, LOSS_WEIGHTS):
        (folder / name).unlink(missing_ok=True)


def write_state(folder: Path, state: TrainingState) -> None:
    """Write the state of a generation under way, whole or not at all."""
    with whole_folder(folder) as temporary:
        _save(state.weights, temporary / WEIGHTS)
        _save(state.loss_weights, temporary / LOSS_WEIGHTS)
        # Through memory: torch.save hides the operating system's error when the disk is full.
        buffer = io.BytesIO()
        torch.save(dict(state.optimizer), buffer)
        (temporary / OPTIMIZER).write_bytes(buffer.getbuffer())
        facts = {
            "number": state.number,
            "epoch": state.epoch,
            "training_log": list(state.training_log),
            "seconds": state.seconds,
        }
        write_json(temporary / STATE, facts)


def read_state(folder: Path) -> TrainingState:
    """Read a state written by `write_state`."""
    facts = read_json(folder / STATE)
    return TrainingState(
        number=facts["number"],
        epoch=facts["epoch"],
        weights=_load(folder / WEIGHTS),
        loss_weights=_load(folder / LOSS_WEIGHTS),
        optimizer=torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True),
        training_log=tuple(facts["training_log"]),
        seconds=facts["seconds"],
    )


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        KeMetricError: It is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KeMetricError(f"{path}: no such file; the lineage is damaged", ExitCode.LINEAGE) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise KeMetricError(f"{path}: damaged: {error}", ExitCode.LINEAGE) from error


def _drop_missing(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}


def _save(weights: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file(dict(weights), path)
    except SafetensorError as error:
        # safetensors wraps the operating system's error, and its number is only in the text.
        if "No space left" in str(error):
            raise OSError(errno.ENOSPC, str(error)) from error
        raise OSError(str(error)) from error


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise KeMetricError(f"{path}: missing or damaged: {error}", ExitCode.LINEAGE) from error
