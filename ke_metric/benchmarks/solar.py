"""The benchmark `solar`: photographs of solar cells (elpv-dataset) by type and probability of a defect.

Eight classes: cells of monocrystalline and polycrystalline modules, each with the four probabilities that were
annotated. The data set brings no split. For retrieval one type is learnt from and the other one searched; for
classification pictures of every class are drawn for testing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ke_metric.benchmarks.layout import FoundLayout, Layout, ListRow, find_layout, read_rows
from ke_metric.benchmarks.listings import key_below
from ke_metric.benchmarks.own_splits import draw_of_every_class
from ke_metric.benchmarks.table import (
    Table,
    TableRow,
    build_benchmark,
    build_classification,
    refuse_other_counts,
    split_at,
)
from ke_metric.errors import ExitCode, KeMetricError, some_of
from ke_metric.images.image_set import Benchmark
from ke_metric.recipe.schema import Data

# As the wheel, the source tree and a folder of the data alone have them.
PLACES = ("elpv_dataset/data/", "src/elpv_dataset/data/", "")
LAYOUT = Layout(
    "elpv-dataset (labels.csv, images)",
    {
        "labels": [f"{place}labels.csv" for place in PLACES],
        "pictures": [f"{place}images/" for place in PLACES],
    },
)
COLUMNS = ("path", "probability", "type")
TYPES = ("mono", "poly")
THIRDS = 3
CLASS_NAMES = {
    number * (THIRDS + 1) + third: f"{module_type} {third / THIRDS:.2f}"
    for number, module_type in enumerate(TYPES)
    for third in range(THIRDS + 1)
}
"""Class id to name, as in `poly 0.67`: type of the module and probability of a defect."""

LAST_MONO_CLASS = THIRDS
COUNTS = dict(zip(CLASS_NAMES, (588, 117, 56, 313, 920, 178, 50, 402), strict=True))
"""Class id to its pictures in the data set, 2,624 in all."""


def read(data: Data) -> Benchmark:
    """Read the solar cells for retrieval: learnt from are monocrystalline ones, searched are polycrystalline ones.

    Of eight classes half would be drawn by chance; so the test has a type of module that training never saw, whose
    levels of defect it has to tell apart. `data.root` is the folder with the labels, or one above it that `PLACES`
    lead from.
    """
    found, rows = _find(data)
    train, test = split_at(rows, LAST_MONO_CLASS)
    return build_benchmark(
        data, _table(found, train, test, "monocrystalline for training, polycrystalline for testing")
    )


def read_classification(data: Data) -> Benchmark:
    """Read the solar cells for classification; `data.root` as for `read`.

    `data.test_fraction` of the pictures of every class are for testing, by a hash of their file names. Cells of one
    module may be on both sides: the data set does not tell which module a cell is of.
    """
    found, rows = _find(data)
    drawn = draw_of_every_class(
        [row.key for row in rows],
        [row.class_id for row in rows],
        share=data.test_fraction,
        purpose=f"image split/{data.benchmark}",
    )
    train, test = ([row for row in rows if (row.key in drawn) == wanted] for wanted in (False, True))
    split = f"images of every class divided by data.test_fraction = {data.test_fraction}"
    return build_classification(data, _table(found, train, test, split))


def _find(data: Data) -> tuple[FoundLayout, list[TableRow]]:
    """Return where the files lie and all pictures, in the order of their names."""
    found = find_layout(data, [LAYOUT])
    labels = found.paths["labels"]
    rows = sorted(_row(listed) for listed in read_rows(labels, COLUMNS, header=False))
    # Here for both tasks: one of the two types would be learnt from, the other one searched.
    if repeated := [key for key, count in Counter(row.key for row in rows).items() if count > 1]:
        raise KeMetricError(
            f"{labels}: {len(repeated):,} images are listed more than once: {some_of(repeated)}", ExitCode.DATA
        )
    if data.verify_counts:
        refuse_other_counts(labels, _wrong_counts(rows))
    return found, rows


def _table(found: FoundLayout, train: Sequence[TableRow], test: Sequence[TableRow], split: str) -> Table:
    return Table(found.paths["labels"], found.paths["pictures"], train, test, None, CLASS_NAMES, found.notes(split))


def _row(listed: ListRow) -> TableRow:
    """Return a picture by its name below the folder images, so that a draw does not depend on the layout."""
    path, probability, module_type = listed.cells
    key = key_below(path, listed.where)
    if not key.startswith("images/"):
        raise KeMetricError(f"{listed.where}: expected images/file.png, found {key!r}", ExitCode.DATA)
    if module_type not in TYPES:
        raise KeMetricError(f"{listed.where}: the type must be mono or poly, not {module_type!r}", ExitCode.DATA)
    third = _third(probability, listed.where)
    return TableRow(key.removeprefix("images/"), TYPES.index(module_type) * (THIRDS + 1) + third)


def _third(text: str, where: str) -> int:
    """Return how many thirds a probability is; it is written with all its digits, or shortened."""
    try:
        found = next((third for third in range(THIRDS + 1) if abs(float(text) - third / THIRDS) < 0.01), None)
    except ValueError:
        found = None
    if found is None:
        raise KeMetricError(f"{where}: the probability must be 0, 1/3, 2/3 or 1, not {text!r}", ExitCode.DATA)
    return found


def _wrong_counts(rows: Sequence[TableRow]) -> list[str]:
    found = Counter(row.class_id for row in rows)
    return [
        f"images of class {CLASS_NAMES[class_id]}: expected {wanted:,}, found {found[class_id]:,}"
        for class_id, wanted in COUNTS.items()
        if found[class_id] != wanted
    ]
