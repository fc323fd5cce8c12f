"""`ke-metric predict`: which classes pictures are of, as a table, a CSV file or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from ke_metric.arrays import FloatArray
from ke_metric.cli.display import Outcome, counting, list_chosen, require_some, say, warn_of
from ke_metric.cli.lineages import load_predictor
from ke_metric.cli.options import ModelChoice, PictureChoice
from ke_metric.disk import write_text
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.classification import score_classification
from ke_metric.lineage.report import ACCURACIES, BASELINE, header
from ke_metric.retrieval.picture_list import LeftOut
from ke_metric.retrieval.predictor import Prediction, Predictor
from ke_metric.stores.contract import Item

SHOWN = 40
"""The most pictures that are printed for people."""
FORMATS = (".csv", ".json")


@dataclass(frozen=True)
class Predicted:
    """A picture and its likeliest classes, the likeliest first."""

    item: Item
    predictions: list[Prediction]

    @property
    def document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self.item) | {"predictions": [asdict(prediction) for prediction in self.predictions]}


def predict_pictures(
    *, pictures: PictureChoice, model: ModelChoice, k: int, file: Path | None, overwrite: bool
) -> Outcome:
    """Tell the k likeliest classes of pictures, score those of known class, and write a file if one is named."""
    if file is not None:
        _require_place(file, overwrite)
    listed = list_chosen(pictures, unique=False)
    predictor = load_predictor(model)
    answers: list[Predicted] = []
    known: list[tuple[int, FloatArray]] = []
    left_out = list(listed.left_out)
    numbers = {name: number for number, name in enumerate(predictor.class_names)}
    paths = (item.path for item in listed.items)
    with counting("predicting") as progress:
        for batch in predictor.stream(paths, skip_bad=not pictures.strict, batch_size=model.batch_size):
            items = [listed.items[position] for position in batch.positions.tolist()]
            answers += map(Predicted, items, predictor.likeliest(batch.logits, k))
            known += [
                (numbers[item.label], row)
                for item, row in zip(items, batch.logits, strict=True)
                if item.label in numbers
            ]
            bad = [LeftOut(picture.name, picture.reason) for picture in batch.bad]
            warn_of(bad)
            left_out += bad
            progress(len(answers), len(listed.items))
    require_some(len(answers), len(listed.items))
    _tell_foreign_labels([answer.item.label for answer in answers], predictor)
    document = _document(predictor, answers, left_out, known)
    if file is not None:
        write_text(file, json.dumps(document, indent=2) + "\n" if file.suffix == ".json" else _csv(answers))
        document["file"] = str(file)
    return Outcome(document, _shown(document, answers))


def _require_place(file: Path, overwrite: bool) -> None:
    if file.suffix not in FORMATS:
        raise KeMetricError(f"--output {file}: must end in {' or '.join(FORMATS)}", ExitCode.USAGE)
    if file.exists() and not (overwrite and file.is_file()):
        raise KeMetricError(f"{file}: exists; replace a file with --overwrite, or choose another one", ExitCode.USAGE)
    if not file.parent.is_dir():
        raise KeMetricError(f"{file}: there is no folder {file.parent}", ExitCode.USAGE)


def _tell_foreign_labels(labels: Sequence[str], predictor: Predictor) -> None:
    """Say which labels, of folders or of a CSV file, are no classes of the network: their pictures are not scored."""
    foreign = [label for label in labels if label and label not in predictor.class_names]
    if foreign:
        names = sorted(set(foreign))
        told = f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        say(f"{len(foreign):,} pictures are not scored, their labels are no classes of it: {told}")


def _document(
    predictor: Predictor,
    answers: Sequence[Predicted],
    left_out: Sequence[LeftOut],
    known: Sequence[tuple[int, FloatArray]],
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "model": {"digest": predictor.digest, "description": predictor.description},
        "classes": len(predictor.class_names),
        "pictures": [answer.document for answer in answers],
        "left_out": [asdict(picture) for picture in left_out],
    }
    if known:
        labels, rows = zip(*known, strict=True)
        document["scored"] = len(known)
        document["scores"] = score_classification(np.stack(rows), np.array(labels, np.int64))
    return document


def _csv(answers: Sequence[Predicted]) -> str:
    """Return `id,path,label,predicted,probability,predicted_2,probability_2,...`, a line for each picture."""
    ranks = range(1, 1 + max(len(answer.predictions) for answer in answers))
    columns = [f"{name}{f'_{rank}' if rank > 1 else ''}" for rank in ranks for name in ("predicted", "probability")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "path", "label", *columns))
    for answer in answers:
        cells = [cell for found in answer.predictions for cell in (found.label, f"{found.probability:.6g}")]
        writer.writerow((answer.item.id, answer.item.path, answer.item.label, *cells))
    return text.getvalue()


def _shown(document: dict[str, Any], answers: Sequence[Predicted]) -> Group:
    table = Table(title=document["model"]["description"], title_justify="left")
    for name in ("picture", "label", "likeliest classes, in percent"):
        table.add_column(name, overflow="fold")
    for answer in answers[:SHOWN]:
        likeliest = ", ".join(f"{found.label} {100 * found.probability:.1f}" for found in answer.predictions)
        table.add_row(answer.item.id, answer.item.label, likeliest)
    lines = [f"and {len(answers) - SHOWN:,} more; --json or -o has all"] if len(answers) > SHOWN else []
    if "scores" in document:
        scores = document["scores"]
        told = [f"{header(name)} {100 * share:.1f} %" for name, share in scores.items() if name in ACCURACIES]
        told.append(f"always the largest class {100 * scores[BASELINE]:.1f} %")
        lines.append(f"{document['scored']:,} pictures of known class: {', '.join(told)}")
    if "file" in document:
        lines.append(f"written: {document['file']}")
    return Group(table, *lines)
