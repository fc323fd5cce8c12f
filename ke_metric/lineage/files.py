"""How a generation, and the training of one that is under way, lie on disk: one folder each.

Weights are safetensors, facts are JSON, optimizer state is read with `weights_only=True`: nothing here can run code.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ke_metric.arrays import FloatArray, Weights
from ke_metric.disk import DISK_FULL, disk_error, to_json, whole_folder
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import (
    DataFingerprint,
    Generation,
    Provenance,
    Scorecard,
    SlimRepair,
    TrainingState,
    Vectors,
)
from ke_metric.lineage.stored_scores import magnitudes_from, require_finite, score_facts, scorecard_from

WEIGHTS = "weights.safetensors"
LOSS_WEIGHTS = "loss.safetensors"
LAST_WEIGHTS = "last.safetensors"
AVERAGE = "average.safetensors"
BEST = "best.safetensors"
BEST_LOSS = "best-loss.safetensors"
METHOD_WEIGHTS = "method.safetensors"
SPLIT = "split.json"
SPLIT_BITS = "split.safetensors"
SLIM = "slim.json"
REPAIRS = "slim.safetensors"
VECTORS = "vectors.safetensors"
SCORECARD = "scorecard.json"
TRAINING_LOG = "training.jsonl"
PROVENANCE = "provenance.json"
OPTIMIZER = "optimizer.pt"
STATE = "state.json"
OF_WEIGHTS = (WEIGHTS, LOSS_WEIGHTS, LAST_WEIGHTS, REPAIRS)
"""What goes when a generation's weights do."""

STATE_FOLDER = re.compile(r"generation-(\d{3,})-epoch-(\d{5,})")

# What a file raises that is good JSON but not what was written: a key missing or left over, another type, a broken
# invariant of the records.
MISFITS = (AssertionError, AttributeError, LookupError, TypeError, ValueError)


def write_generation(folder: Path, generation: Generation) -> None:
    """Write a generation's folder, whole or not at all."""
    magnitudes = {name: list(pair) for name, pair in generation.magnitudes.items()}
    facts = score_facts(generation.number, generation.scorecard, magnitudes)
    lines = [json.dumps(record, allow_nan=False) + "\n" for record in generation.training_log]
    with whole_folder(folder, sole_writer=True, as_error=not_written) as temporary:
        _save(generation.weights, temporary / WEIGHTS)
        if generation.loss_weights:
            _save(generation.loss_weights, temporary / LOSS_WEIGHTS)
        if generation.last_weights:
            _save(generation.last_weights, temporary / LAST_WEIGHTS)
        if generation.split_bits:
            _save(generation.split_bits, temporary / SPLIT_BITS)
        (temporary / SPLIT).write_text(generation.split, encoding="utf-8")
        if generation.narrow_splits or generation.repairs:
            _write_slim(temporary, generation)
        if generation.vectors:
            (temporary / VECTORS).write_bytes(vectors_content(generation.vectors))
        (temporary / SCORECARD).write_text(to_json(facts), encoding="utf-8")
        (temporary / PROVENANCE).write_text(to_json(dataclasses.asdict(generation.provenance)), encoding="utf-8")
        (temporary / TRAINING_LOG).write_text("".join(lines), encoding="utf-8")


def _write_slim(folder: Path, generation: Generation) -> None:
    """Write what a generation's slim networks need beside its weights: splits of other rates, and repairs."""
    facts = {
        "splits": dict(generation.narrow_splits),
        "repairs": {rate: repair.kind for rate, repair in generation.repairs.items()},
    }
    (folder / SLIM).write_text(to_json(facts), encoding="utf-8")
    tensors = {
        f"{rate}/{name}": value
        for rate, repair in generation.repairs.items()
        for name, value in repair.tensors.items()
    }
    if tensors:
        _save(tensors, folder / REPAIRS)


def vectors_content(vectors: Vectors) -> bytes:
    """Return the content of a file of vectors: `dense/query`, and `dense/gallery` where that is another set."""
    tensors = {}
    for name, (query, gallery) in vectors.items():
        # Two networks that are the same have the same arrays, and a file of safetensors holds each once.
        tensors[f"{name}/query"] = torch.from_numpy(query).clone()
        if gallery is not query:
            tensors[f"{name}/gallery"] = torch.from_numpy(gallery).clone()
    return save(tensors)


def read_vectors(path: Path, name: str) -> tuple[FloatArray, FloatArray] | None:
    """Return a network's vectors of the queries and the gallery from a file; None where it has none of that name.

    Raises:
        KeMetricError: The file is damaged.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise KeMetricError(
            f"{path}: damaged: {error}; delete it: vectors are computed again from weights that were kept",
            ExitCode.LINEAGE,
        ) from error
    if f"{name}/query" not in tensors:
        return None
    query: FloatArray = tensors[f"{name}/query"].numpy()
    gallery = tensors.get(f"{name}/gallery")
    return query, query if gallery is None else gallery.numpy()


def _read_slim(folder: Path) -> tuple[dict[str, str], dict[str, SlimRepair]]:
    """Read what `_write_slim` wrote; nothing where there is nothing, as in lineages of before there was any."""
    if not (folder / SLIM).exists():
        return {}, {}
    facts = read_object(folder / SLIM)
    stored = _load(folder / REPAIRS) if (folder / REPAIRS).exists() else {}
    try:
        tensors: dict[str, dict[str, Tensor]] = {rate: {} for rate in facts["repairs"]}
        for name, value in stored.items():
            rate, _, own_name = name.partition("/")
            tensors[rate][own_name] = value
        repairs = {rate: SlimRepair(str(kind), tensors[rate]) for rate, kind in facts["repairs"].items()}
        return {rate: str(plan) for rate, plan in facts["splits"].items()}, repairs
    except MISFITS as error:
        raise damage(folder / SLIM, error) from error


def read_generation(folder: Path, number: int) -> Generation:
    """Read the folder of generation `number`.

    Raises:
        KeMetricError: Its weights were not kept, a file is missing or damaged, or it is another generation.
    """
    if not (folder / WEIGHTS).exists():
        raise KeMetricError(
            f"{folder}: the weights of this generation were not kept (its scores are in {SCORECARD}); "
            "a recipe with keep: best keeps the best beside the last, keep: all keeps every one",
            ExitCode.LINEAGE,
        )
    scorecard, magnitudes = _read_scores(folder / SCORECARD, number)
    provenance = read_provenance(folder)
    narrow_splits, repairs = _read_slim(folder)
    split, split_bits = read_split(folder)
    try:
        return Generation(
            number=number,
            weights=_load(folder / WEIGHTS),
            loss_weights=_load_if_there(folder / LOSS_WEIGHTS),
            split=split,
            split_bits=split_bits,
            scorecard=scorecard,
            training_log=read_log(folder / TRAINING_LOG),
            magnitudes=magnitudes,
            provenance=provenance,
            narrow_splits=narrow_splits,
            repairs=repairs,
            last_weights=_load_if_there(folder / LAST_WEIGHTS),
        )
    except (AssertionError, TypeError) as error:
        raise damage(folder / PROVENANCE, error) from error


def read_provenance(folder: Path) -> Provenance:
    """Read where a generation came from; it stays when its weights are dropped."""
    facts = read_object(folder / PROVENANCE)
    try:
        return Provenance(**facts | {"class_names": _class_names(facts)})
    except TypeError as error:
        raise damage(folder / PROVENANCE, error) from error


def _class_names(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes; none for a lineage of before classifications."""
    names = facts.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"class_names = {names!r}, not a list of names")
    return tuple(names)


def read_scorecard(path: Path, number: int) -> Scorecard:
    """Read the scores of generation `number`, 0 before any training."""
    return _read_scores(path, number)[0]


def _read_scores(path: Path, number: int) -> tuple[Scorecard, dict[str, tuple[float | None, float | None]]]:
    facts = read_object(path)
    try:
        _require_number(facts["generation"], number)
        return scorecard_from(facts), magnitudes_from(facts)
    except MISFITS as error:
        raise damage(path, error) from error


def read_magnitudes(folder: Path, number: int) -> dict[str, tuple[float | None, float | None]]:
    """Read parameter name to mean absolute weight in its fit and its reset part; it stays without the weights."""
    return _read_scores(folder / SCORECARD, number)[1]


def read_split(folder: Path) -> tuple[str, Weights]:
    """Read a generation's split plan as `Generation.split` and `split_bits` have it; it stays without the weights."""
    return read_text(folder / SPLIT), _load(folder / SPLIT_BITS) if (folder / SPLIT_BITS).exists() else {}


def read_log(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Read a training's log, one record per epoch: its number as `epoch`, and finite numbers or text.

    Raises:
        KeMetricError: A line is no such record; which one, is named.
    """
    return tuple(_epoch_record(path, number, line) for number, line in enumerate(read_text(path).splitlines(), 1))


def _epoch_record(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise TypeError(f"holds {type(record).__name__}, not an object")
        if not isinstance(record.get("epoch"), int) or isinstance(record["epoch"], bool):
            raise TypeError(f"epoch = {record.get('epoch')!r}, not a number of an epoch")
        for name, value in record.items():
            if isinstance(value, float):
                require_finite(name, value)
    except (TypeError, ValueError, RecursionError) as error:
        raise KeMetricError(
            f"{path}: damaged: line {number}: {type(error).__name__}: {error}", ExitCode.LINEAGE
        ) from error
    return record


def _require_number(found: object, number: int) -> None:
    if found != number:
        raise ValueError(f"generation {found} in the folder of generation {number}")


def read_fingerprint(path: Path) -> DataFingerprint:
    """Read what a lineage is grown and scored on."""
    try:
        return DataFingerprint.from_json(read_object(path))
    except MISFITS as error:
        if isinstance(error, KeMetricError):
            raise
        raise damage(path, error) from error


def drop_weights(folder: Path) -> None:
    """Delete the weights of a generation and leave everything else."""
    try:
        for name in OF_WEIGHTS:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise not_written(folder, error) from error


def newest_state(in_progress: Path, number: int | None = None) -> Path | None:
    """Return the folder of the last state, of generation `number` or of any; None when there is none."""
    paths = in_progress.iterdir() if in_progress.is_dir() else ()
    matches = [(match, path) for path in paths if (match := STATE_FOLDER.fullmatch(path.name))]
    states = {(int(match[1]), int(match[2])): path for match, path in matches}
    chosen = [states[key] for key in sorted(states) if number in (None, key[0])]
    return chosen[-1] if chosen else None


def replace_state(in_progress: Path, state: TrainingState) -> None:
    """Write the state of a generation under way, whole or not at all, then delete whatever else is there."""
    newest = in_progress / f"generation-{state.number:03d}-epoch-{state.epoch:05d}"
    write_state(newest, state)
    for path in in_progress.iterdir():
        if path != newest:
            shutil.rmtree(path, ignore_errors=True)


def write_state(folder: Path, state: TrainingState) -> None:
    """Write the state of a generation under way, whole or not at all."""
    facts = {
        "number": state.number,
        "epoch": state.epoch,
        "training_log": list(state.training_log),
        "seconds": state.seconds,
        "method_weights": bool(state.method_weights),
        "average": bool(state.average),
        **({"best": True} if state.best else {}),
    }
    optimizer = io.BytesIO()
    torch.save(dict(state.optimizer), optimizer)
    with whole_folder(folder, sole_writer=True, as_error=not_written) as temporary:
        _save(state.weights, temporary / WEIGHTS)
        _save(state.loss_weights, temporary / LOSS_WEIGHTS)
        if state.method_weights:
            _save(state.method_weights, temporary / METHOD_WEIGHTS)
        if state.average:
            _save(state.average, temporary / AVERAGE)
        if state.best:
            _save(state.best, temporary / BEST)
            _save(state.best_loss, temporary / BEST_LOSS)
        # Through memory: torch.save hides the operating system's error when the disk is full.
        (temporary / OPTIMIZER).write_bytes(optimizer.getbuffer())
        (temporary / STATE).write_text(to_json(facts), encoding="utf-8")


def read_state(folder: Path, number: int) -> TrainingState:
    """Read a state of generation `number`.

    Raises:
        KeMetricError: A file is missing or damaged; deleting the folder repeats the generation from its beginning.
    """
    try:
        return _read_state(folder, number)
    except KeMetricError as error:
        raise KeMetricError(
            f"{error}; delete {folder} to train generation {number} from its beginning", error.exit_code
        ) from error


def _read_state(folder: Path, number: int) -> TrainingState:
    facts = read_object(folder / STATE)
    try:
        _require_number(facts["number"], number)
        return TrainingState(
            number=number,
            epoch=facts["epoch"],
            weights=_load(folder / WEIGHTS),
            loss_weights=_load(folder / LOSS_WEIGHTS),
            optimizer=_load_optimizer(folder / OPTIMIZER),
            training_log=tuple(facts["training_log"]),
            seconds=facts["seconds"],
            # States of before methods kept something, or weights were averaged, do not say.
            method_weights=_load(folder / METHOD_WEIGHTS) if facts.get("method_weights") else {},
            average=_load(folder / AVERAGE) if facts.get("average") else {},
            best=_load(folder / BEST) if facts.get("best") else {},
            best_loss=_load(folder / BEST_LOSS) if facts.get("best") else {},
        )
    except KeMetricError:
        raise
    except MISFITS as error:
        raise damage(folder / STATE, error) from error


def _save(weights: Weights, path: Path) -> None:
    # Through memory: safetensors' own writing hides the operating system's error, and makes files only we can read.
    path.write_bytes(save(dict(weights)))


def _load(path: Path) -> Weights:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise damage(path, error) from error


def _load_if_there(path: Path) -> Weights:
    return _load(path) if path.exists() else {}


def _load_optimizer(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, *MISFITS) as error:
        # Not torch's own words: they recommend to read the file in a way that can run code.
        raise KeMetricError(
            f"{path}: damaged: torch cannot read it ({type(error).__name__})", ExitCode.LINEAGE
        ) from error
    return state


def not_written(path: Path, error: OSError) -> KeMetricError:
    """Return the error a user sees when something of a lineage could not be written."""
    advice = ". Free some space and" if error.errno in DISK_FULL else ". Once this is mended,"
    return disk_error(path, error, afterwards=f"{advice} go on with --resume; what was complete before still is")


def read_text(path: Path) -> str:
    """Read a text file."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise KeMetricError(f"{path}: no such file; the lineage is damaged", ExitCode.LINEAGE) from None
    except (OSError, UnicodeDecodeError) as error:
        raise damage(path, error) from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object."""
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise damage(path, error) from error
    if not isinstance(value, dict):
        raise KeMetricError(f"{path}: damaged: holds {type(value).__name__}, not an object", ExitCode.LINEAGE)
    return value


def damage(path: Path, error: Exception) -> KeMetricError:
    """Return the error a user sees when a file of a lineage does not hold what it should."""
    what = "cannot be read" if isinstance(error, OSError) else "damaged"
    return KeMetricError(f"{path}: {what}: {type(error).__name__}: {error}", ExitCode.LINEAGE)
