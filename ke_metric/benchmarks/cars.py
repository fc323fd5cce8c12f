"""Stanford Cars (Cars196), from any of its three distributions.

For retrieval classes 1-98 against 99-196, for classification the official parts of all classes.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ke_metric.benchmarks.layout import (
    FoundLayout,
    Hint,
    Layout,
    find_layout,
    parse_whole,
    read_flags,
    read_labels,
    read_strings,
    read_text,
)
from ke_metric.benchmarks.listings import key_below
from ke_metric.benchmarks.table import (
    PublishedCounts,
    Table,
    TableRow,
    build_benchmark,
    build_classification,
    split_at,
)
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.image_set import Benchmark
from ke_metric.recipe.schema import Data

LAST_TRAIN_CLASS = 98
DEVKITS = ("devkit/", "car_devkit/devkit/", "")
COMBINED = Layout(
    "layout A, combined",
    {"annotations": ["cars_annos.mat"], "pictures": ["car_ims/"]},
)
TEST_WITHOUT_CLASSES = (
    "cars_test_annos.mat has no classes; the file with the classes is cars_test_annos_withlabels.mat (185,758 bytes)."
)
PARTED = Layout(
    "layout B, cars_train and cars_test",
    {
        "train pictures": ["cars_train/"],
        "test pictures": ["cars_test/"],
        "train annotations": [f"{devkit}cars_train_annos.mat" for devkit in DEVKITS],
        "test annotations": [f"{devkit}cars_test_annos_withlabels.mat" for devkit in ("", *DEVKITS[:2])],
        "class names": [f"{devkit}cars_meta.mat" for devkit in DEVKITS],
    },
    [
        *(Hint(TEST_WITHOUT_CLASSES, f"{devkit}cars_test_annos.mat") for devkit in DEVKITS),
        Hint(
            "{folder} has only the train part (cars_train); the benchmark needs cars_test too.",
            there="cars_train/",
            lacking="cars_test/",
        ),
    ],
)
CLASS_FOLDERS = Layout(
    "layout C, class folders",
    {
        "train annotations": ["anno_train.csv"],
        "test annotations": ["anno_test.csv"],
        "class names": ["names.csv"],
        "pictures": ["car_data/"],
    },
)
LAYOUTS = (COMBINED, PARTED, CLASS_FOLDERS)
CSV_COLUMNS = 6
COUNTS = PublishedCounts(
    {"train": (8054, 98), "test": (8131, 98)},
    class_sizes=(48, 136),
    suspects={
        8144: "Only the official train part seems to be there; the benchmark is both official parts, cut by class.",
        8041: "Only the official test part seems to be there; the benchmark is both official parts, cut by class.",
    },
)
OFFICIAL_COUNTS = PublishedCounts(
    {"train": (8144, 196), "test": (8041, 196)},
    class_sizes=(48, 136),
    suspects={
        8144: "Only the official train part seems to be there.",
        8041: "Only the official test part seems to be there.",
    },
)


class _Listing(NamedTuple):
    """All pictures of one layout, unsplit: rows, class names, the file they come from, the picture folder."""

    rows: list[TableRow]
    class_names: Mapping[int, str]
    origin: Path
    folder: Path


def read(data: Data) -> Benchmark:
    """Read Stanford Cars for retrieval; the official train/test flag, which mixes the classes, is not used.

    `data.root` is the folder that holds one of the layouts, or the one above it.
    """
    found, listing = _find(data)
    train, test = split_at(sorted(listing.rows), LAST_TRAIN_CLASS)
    split = f"class ids up to {LAST_TRAIN_CLASS} for training, above for testing; official flag not used"
    return build_benchmark(data, _table(listing, train, test, found.notes(split)), COUNTS)


def read_classification(data: Data) -> Benchmark:
    """Read Stanford Cars for classification, with its official train/test flag; `data.root` as for `read`."""
    found, listing = _find(data)
    pairs = sorted(zip(listing.rows, _official_test_flags(found, listing), strict=True))
    train, test = ([row for row, is_test in pairs if is_test == wanted] for wanted in (False, True))
    notes = found.notes("official: 8,144 pictures for training, 8,041 for testing")
    return build_classification(data, _table(listing, train, test, notes), OFFICIAL_COUNTS)


def _find(data: Data) -> tuple[FoundLayout, _Listing]:
    found = find_layout(data, LAYOUTS)
    listings = {COMBINED.name: _combined, PARTED.name: _parted, CLASS_FOLDERS.name: _class_folders}
    return found, listings[found.layout.name](found)


def _table(listing: _Listing, train: Sequence[TableRow], test: Sequence[TableRow], notes: Mapping[str, str]) -> Table:
    return Table(listing.origin, listing.folder, train, test, None, listing.class_names, notes)


def _official_test_flags(found: FoundLayout, listing: _Listing) -> list[bool]:
    """Return of every picture whether it is in the official test part: by its record, else by its folder."""
    if found.layout is COMBINED:
        return read_flags(listing.origin, field="test")
    folder = "test" if found.layout is CLASS_FOLDERS else found.below("test pictures")
    return [row.key.startswith(f"{folder}/") for row in listing.rows]


def _combined(found: FoundLayout) -> _Listing:
    origin = found.paths["annotations"]
    rows = [
        TableRow(key_below(path, str(origin)).removeprefix("car_ims/"), class_id)
        for path, class_id in read_labels(origin, path_field="relative_im_path")
    ]
    return _Listing(rows, _numbered(read_strings(origin, "class_names")), origin, found.paths["pictures"])


def _parted(found: FoundLayout) -> _Listing:
    """Read layout B, where 00001.jpg is a picture of cars_train and another one of cars_test."""
    paths = found.paths
    rows = []
    for part in ("train", "test"):
        origin = paths[f"{part} annotations"]
        below = found.below(f"{part} pictures")
        rows += [
            TableRow(f"{below}/{key_below(name, str(origin))}", class_id)
            for name, class_id in read_labels(origin, path_field="fname")
        ]
    names = _numbered(read_strings(paths["class names"], "class_names"))
    return _Listing(rows, names, paths["train annotations"], found.base)


def _class_folders(found: FoundLayout) -> _Listing:
    """Read layout C, whose rows have a file name and a class number, and whose folders have the class names."""
    paths = found.paths
    names = _numbered([cells[0] for cells, _ in _csv_rows(paths["class names"], columns=1)])
    rows = []
    for part in ("train", "test"):
        for cells, where in _csv_rows(paths[f"{part} annotations"], columns=CSV_COLUMNS):
            class_id = parse_whole(cells[-1].strip(), f"{where}: the class")
            # A folder cannot have the slash of 'Ram C/V Cargo Van Minivan 2012'.
            folder = names.get(class_id, "").replace("/", "-")
            rows.append(TableRow(key_below(f"{part}/{folder}/{cells[0]}", where), class_id))
    return _Listing(rows, names, paths["train annotations"], paths["pictures"])


def _csv_rows(path: Path, *, columns: int) -> list[tuple[list[str], str]]:
    rows = []
    for number, cells in enumerate(csv.reader(read_text(path).splitlines()), start=1):
        where = f"{path}, line {number}"
        if cells and len(cells) != columns:
            raise KeMetricError(f"{where}: expected {columns} columns, found {','.join(cells)!r}", ExitCode.DATA)
        if cells:
            rows.append((cells, where))
    return rows


def _numbered(names: list[str]) -> dict[int, str]:
    return dict(enumerate((name.strip() for name in names), start=1))
