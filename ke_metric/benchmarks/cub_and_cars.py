"""Birds and cars, each with a split by class for retrieval and an official one for classification.

CUB-200-2011 (`cub`): classes 1-100 against 101-200, or the official parts of all. Stanford Cars (`cars`, Cars196),
from any of its three distributions: classes 1-98 against 99-196, or the official parts of all.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ke_metric.benchmarks.layout import (
    FoundLayout,
    Hint,
    Layout,
    ListRow,
    find_layout,
    parse_whole,
    read_flags,
    read_labels,
    read_rows,
    read_strings,
    read_text,
    whole_number,
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
from ke_metric.errors import ExitCode, KeMetricError, some_of
from ke_metric.images.image_set import Benchmark
from ke_metric.recipe.schema import Data

LAST_CUB_TRAIN_CLASS = 100
OLD_CUB = "This looks like CUB-200 of 2010 (6,033 images); the benchmark is CUB-200-2011 (11,788 images)."
CUB = Layout(
    "CUB-200-2011 (CUB_200_2011.tgz)",
    {
        "images": ["images.txt"],
        "labels": ["image_class_labels.txt"],
        "classes": ["classes.txt"],
        "pictures": ["images/"],
    },
    [Hint(OLD_CUB, place) for place in ("lists/files.txt", "annotations-mat/")],
)
OFFICIAL_CUB = replace(CUB, paths={**CUB.paths, "official split": ["train_test_split.txt"]})
CUB_COUNTS = PublishedCounts(
    {"train": (5864, 100), "test": (5924, 100)}, class_sizes=(41, 60), suspects={6033: OLD_CUB}
)
OFFICIAL_CUB_COUNTS = PublishedCounts(
    {"train": (5994, 200), "test": (5794, 200)}, class_sizes=(41, 60), suspects={6033: OLD_CUB}
)


def read_cub(data: Data) -> Benchmark:
    """Read CUB-200-2011 for retrieval; its official train/test flag, which mixes the classes, is not used.

    `data.root` is the folder CUB_200_2011 or the one above it.
    """
    found = find_layout(data, [CUB])
    train, test = split_at(_cub_rows(found.paths).values(), LAST_CUB_TRAIN_CLASS)
    split = f"class ids up to {LAST_CUB_TRAIN_CLASS} for training, above for testing; official flag not used"
    return build_benchmark(data, _cub_table(found, train, test, split), CUB_COUNTS)


def read_cub_classification(data: Data) -> Benchmark:
    """Read CUB-200-2011 for classification, with its official train/test flag; `data.root` as for `read_cub`."""
    found = find_layout(data, [OFFICIAL_CUB])
    rows, split = _cub_rows(found.paths), found.paths["official split"]
    flags = _by_image_id(read_rows(split, ("image_id", "is_training_image"), header=False))
    _refuse_unjoined((found.paths["images"], split), ids=rows, other_ids=flags)
    trained = {image_id for image_id, listed in flags.items() if _is_training(listed)}
    table = _cub_table(
        found,
        [row for image_id, row in rows.items() if image_id in trained],
        [row for image_id, row in rows.items() if image_id not in trained],
        f"official: {split.name}",
    )
    return build_classification(data, table, OFFICIAL_CUB_COUNTS)


def _cub_table(found: FoundLayout, train: Sequence[TableRow], test: Sequence[TableRow], split: str) -> Table:
    classes = read_rows(found.paths["classes"], ("class_id", "name"), header=False)
    names = {whole_number(row, 0, "class_id"): row.cells[1] for row in classes}
    return Table(found.paths["images"], found.paths["pictures"], train, test, None, names, found.notes(split))


def _cub_rows(paths: Mapping[str, Path]) -> dict[int, TableRow]:
    """Join pictures and classes by image id; in the order of the ids."""
    path_of = _by_image_id(read_rows(paths["images"], ("image_id", "path"), header=False))
    class_of = _by_image_id(read_rows(paths["labels"], ("image_id", "class_id"), header=False))
    _refuse_unjoined((paths["images"], paths["labels"]), ids=path_of, other_ids=class_of)
    return {image_id: _cub_row(path_of[image_id], class_of[image_id]) for image_id in sorted(path_of)}


def _refuse_unjoined(paths: tuple[Path, Path], *, ids: Collection[int], other_ids: Collection[int]) -> None:
    unjoined = sorted(set(ids) ^ set(other_ids))
    if unjoined:
        raise KeMetricError(
            f"{paths[0]} and {paths[1].name} do not have the same image ids; {len(unjoined):,} are in one only: "
            f"{some_of([str(image_id) for image_id in unjoined])}",
            ExitCode.DATA,
        )


def _is_training(row: ListRow) -> bool:
    flag = row.cells[1]
    if flag not in ("0", "1"):
        raise KeMetricError(
            f"{row.where}: is_training_image must be 1 (training) or 0 (testing), not {flag!r}", ExitCode.DATA
        )
    return flag == "1"


def _by_image_id(rows: list[ListRow]) -> dict[int, ListRow]:
    found: dict[int, ListRow] = {}
    for row in rows:
        image_id = whole_number(row, 0, "image_id")
        if image_id in found:
            raise KeMetricError(f"{row.where}: image_id {image_id} is given twice", ExitCode.DATA)
        found[image_id] = row
    return found


def _cub_row(path_row: ListRow, class_row: ListRow) -> TableRow:
    key = key_below(path_row.cells[1], path_row.where)
    class_id = whole_number(class_row, 1, "class_id")
    number = parse_whole(key.partition(".")[0], f"{path_row.where}: the number before the class folder's name")
    if number != class_id:
        raise KeMetricError(
            f"{class_row.where}: class_id {class_id}, but the picture lies in the folder of class {number} ({key})",
            ExitCode.DATA,
        )
    return TableRow(key, class_id)


LAST_CARS_TRAIN_CLASS = 98
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
CARS = (COMBINED, PARTED, CLASS_FOLDERS)
CSV_COLUMNS = 6
CARS_COUNTS = PublishedCounts(
    {"train": (8054, 98), "test": (8131, 98)},
    class_sizes=(48, 136),
    suspects={
        8144: "Only the official train part seems to be there; the benchmark is both official parts, cut by class.",
        8041: "Only the official test part seems to be there; the benchmark is both official parts, cut by class.",
    },
)
OFFICIAL_CARS_COUNTS = PublishedCounts(
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


def read_cars(data: Data) -> Benchmark:
    """Read Stanford Cars for retrieval; the official train/test flag, which mixes the classes, is not used.

    `data.root` is the folder that holds one of the layouts, or the one above it.
    """
    found, listing = _find_cars(data)
    train, test = split_at(sorted(listing.rows), LAST_CARS_TRAIN_CLASS)
    split = f"class ids up to {LAST_CARS_TRAIN_CLASS} for training, above for testing; official flag not used"
    return build_benchmark(data, _cars_table(listing, train, test, found.notes(split)), CARS_COUNTS)


def read_cars_classification(data: Data) -> Benchmark:
    """Read Stanford Cars for classification, with its official train/test flag; `data.root` as for `read_cars`."""
    found, listing = _find_cars(data)
    pairs = sorted(zip(listing.rows, _official_test_flags(found, listing), strict=True))
    train, test = ([row for row, is_test in pairs if is_test == wanted] for wanted in (False, True))
    notes = found.notes("official: 8,144 pictures for training, 8,041 for testing")
    return build_classification(data, _cars_table(listing, train, test, notes), OFFICIAL_CARS_COUNTS)


def _find_cars(data: Data) -> tuple[FoundLayout, _Listing]:
    found = find_layout(data, CARS)
    listings = {COMBINED.name: _combined, PARTED.name: _parted, CLASS_FOLDERS.name: _class_folders}
    return found, listings[found.layout.name](found)


def _cars_table(
    listing: _Listing, train: Sequence[TableRow], test: Sequence[TableRow], notes: Mapping[str, str]
) -> Table:
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
