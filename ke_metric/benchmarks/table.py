"""From the rows that a reader found to a benchmark: the checks, numbering and counts that all readers share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ke_metric.errors import ExitCode, KeMetricError, some_of
from ke_metric.images.decoding import Decoding
from ke_metric.images.image_set import Benchmark, FolderSource, ImageSet, ImageSource
from ke_metric.recipe.schema import Data


class TableRow(NamedTuple):
    """One picture: its path below the picture folder, and its class as the data set numbers it."""

    key: str
    class_id: int


@dataclass(frozen=True)
class Table:
    """What a reader found on disk, before classes are renumbered; rows are in the order to keep.

    Attributes:
        origin: File or folder the rows come from; errors name it.
        folder: Folder that the keys are relative to.
        train: Training pictures.
        query: Pictures searched with; in classification the test part.
        gallery: Pictures searched in; None when the queries search each other, and in classification.
        class_names: Class id to name; at least the ids that occur.
        notes: Facts for the reader of a scorecard.
        validation: classification: the validation part; None where there is none.
        skipped: What lies beside the pictures and is none, see `Benchmark`.
    """

    origin: Path
    folder: Path
    train: Sequence[TableRow]
    query: Sequence[TableRow]
    gallery: Sequence[TableRow] | None
    class_names: Mapping[int, str]
    notes: Mapping[str, str] = field(default_factory=dict)
    validation: Sequence[TableRow] | None = None
    skipped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Sequence[TableRow]]:
        """The rows by the name of their part: train and test, maybe validation; or train, query and gallery."""
        validation = {} if self.validation is None else {"validation": self.validation}
        if self.gallery is None:
            return {"train": self.train, **validation, "test": self.query}
        assert not validation, "retrieval has no validation part"
        return {"train": self.train, "query": self.query, "gallery": self.gallery}

    @property
    def rows(self) -> list[TableRow]:
        """The rows of all parts."""
        return [row for rows in self.parts.values() for row in rows]


@dataclass(frozen=True)
class PublishedCounts:
    """What the files of a benchmark must hold.

    Attributes:
        parts: Name of a part to its number of images and of classes.
        class_sizes: Fewest and most images of a class over all parts; None where not published.
        suspects: Total number of images over all parts, to the archive that has so many.
        remark: Added to every mismatch.
    """

    parts: Mapping[str, tuple[int, int]]
    class_sizes: tuple[int, int] | None = None
    suspects: Mapping[int, str] = field(default_factory=dict)
    remark: str = ""

    def verify(self, table: Table) -> None:
        """Compare with what a reader found.

        Raises:
            KeMetricError: DATA: a count differs; the message has every wrong count, expected and found.
        """
        wrong = list(self._wrong_parts(table)) or self._wrong_class_sizes(table)
        hints = [hint for hint in (self.suspects.get(len(table.rows), ""), self.remark) if hint]
        refuse_other_counts(table.origin, wrong, hints)

    def _wrong_parts(self, table: Table) -> Iterable[str]:
        for part, rows in table.parts.items():
            found = (len(rows), len(_class_ids(rows)))
            for what, wanted, there in zip(("images", "classes"), self.parts[part], found, strict=True):
                if wanted != there:
                    yield f"{part} {what}: expected {wanted:,}, found {there:,}"

    def _wrong_class_sizes(self, table: Table) -> list[str]:
        if self.class_sizes is None:
            return []
        fewest, most = self.class_sizes
        return [
            f"images of class {class_id}: expected {fewest} to {most}, found {size:,}"
            for class_id, size in sorted(Counter(row.class_id for row in table.rows).items())
            if not fewest <= size <= most
        ]


def refuse_other_counts(origin: Path, wrong: Sequence[str], hints: Sequence[str] = ()) -> None:
    """Refuse (DATA) what is not the published benchmark: lines on its wrong counts, if there are any, then hints."""
    if wrong:
        lines = [
            f"{origin}: not the published benchmark:",
            *(f"  {line}" for line in wrong),
            *hints,
            "data.verify_counts = false takes them as they are; published scores do not compare then",
        ]
        raise KeMetricError("\n".join(lines), ExitCode.DATA)


def build_benchmark(data: Data, table: Table, counts: PublishedCounts | None = None) -> Benchmark:
    """Check a table and number its classes for retrieval: training from 0, query and gallery together from 0.

    Args:
        data: The recipe's section.
        table: What the reader found.
        counts: What it must hold where `data.verify_counts` is on.

    Raises:
        KeMetricError: A count is wrong, a part is empty, an image repeats, a class has no name, training and test
            share a class, or a picture is missing.
    """
    assert table.validation is None, "retrieval has no validation part"
    _refuse_flaws(data, table, counts)
    tested = _class_ids([*table.query, *(table.gallery or ())])
    _refuse_shared_classes(table, tested)
    source = FolderSource(table.folder, Decoding.of_recipe(data))
    train = _image_set(table, table.train, _class_ids(table.train), source)
    query = _image_set(table, table.query, tested, source)
    gallery = query if table.gallery is None else _image_set(table, table.gallery, tested, source)
    notes = {**table.notes, **_lone_rows(table)}
    return Benchmark(data.benchmark, train, query, gallery, notes, skipped=table.skipped)


def build_classification(
    data: Data, table: Table, counts: PublishedCounts | None = None, *, source: ImageSource | None = None
) -> Benchmark:
    """Check a table and number its classes for classification: in order of their ids, the same in every part.

    Args:
        data: The recipe's section.
        table: What the reader found, without a gallery.
        counts: What it must hold where `data.verify_counts` is on.
        source: Decodes the keys; the files below the table's folder when left out.

    Raises:
        KeMetricError: A count is wrong, a part is empty, an image repeats or is in two parts, a class has no name or
            no training image, or a picture is missing.
    """
    assert table.gallery is None, "classification has no gallery"
    _refuse_flaws(data, table, counts)
    _refuse_shared_images(table)
    _refuse_unlearnt_classes(table)
    source = source or FolderSource(table.folder, Decoding.of_recipe(data))
    class_ids = _class_ids(table.train)
    train, query = (_image_set(table, rows, class_ids, source) for rows in (table.train, table.query))
    validation = None if table.validation is None else _image_set(table, table.validation, class_ids, source)
    untested = len(set(class_ids) - set(_class_ids(table.query)))
    notes = {**table.notes, **({"classes without a test image": f"{untested:,}"} if untested else {})}
    return Benchmark(data.benchmark, train, query, query, notes, validation, "classification", table.skipped)


def split_at(rows: Iterable[TableRow], last_train_class: int) -> tuple[list[TableRow], list[TableRow]]:
    """Cut rows by class id: up to and with `last_train_class` for training, above it for testing."""
    train: list[TableRow] = []
    test: list[TableRow] = []
    for row in rows:
        (train if row.class_id <= last_train_class else test).append(row)
    return train, test


def _class_ids(rows: Iterable[TableRow]) -> list[int]:
    return sorted({row.class_id for row in rows})


def _image_set(table: Table, rows: Sequence[TableRow], class_ids: Sequence[int], source: ImageSource) -> ImageSet:
    label_of = {class_id: label for label, class_id in enumerate(class_ids)}
    labels = np.array([label_of[row.class_id] for row in rows], dtype=np.int64)
    class_names = tuple(table.class_names[class_id] for class_id in class_ids)
    return ImageSet(tuple(row.key for row in rows), labels, class_names, source)


def _refuse_flaws(data: Data, table: Table, counts: PublishedCounts | None) -> None:
    """Refuse what is wrong in either task."""
    if counts is not None and data.verify_counts:
        counts.verify(table)
    for part, rows in table.parts.items():
        if not rows:
            raise KeMetricError(f"{table.origin}: the {part} part has no images", ExitCode.DATA)
        if repeated := _repeated(rows):
            raise KeMetricError(
                f"{table.origin}: {len(repeated):,} images are listed more than once in the {part} part: "
                f"{some_of(repeated)}; list each image once",
                ExitCode.DATA,
            )
    nameless = [str(class_id) for class_id in _class_ids(table.rows) if class_id not in table.class_names]
    if nameless:
        raise KeMetricError(
            f"{table.origin}: images of classes that have no name: {some_of(nameless)}; "
            f"{len(table.class_names):,} classes are named",
            ExitCode.DATA,
        )
    _refuse_missing_pictures(table)


def _repeated(rows: Iterable[TableRow]) -> list[str]:
    return [key for key, count in Counter(row.key for row in rows).items() if count > 1]


def _refuse_shared_classes(table: Table, tested: Sequence[int]) -> None:
    shared = sorted(set(_class_ids(table.train)) & set(tested))
    if shared:
        names = [table.class_names[class_id] for class_id in shared]
        raise KeMetricError(
            f"{table.origin}: {len(shared):,} classes are both trained on and tested on: {some_of(names)}. Retrieval "
            "is scored on classes that training never saw: put every class on one side only, give the classes "
            "without a split and let data.test_fraction divide them, or choose task: classification",
            ExitCode.DATA,
        )


def _refuse_shared_images(table: Table) -> None:
    if shared := _repeated(table.rows):
        raise KeMetricError(
            f"{table.origin}: {len(shared):,} images are in more than one of the parts {', '.join(table.parts)}: "
            f"{some_of(shared)}; a network must not be scored on what it learnt from",
            ExitCode.DATA,
        )


def _refuse_unlearnt_classes(table: Table) -> None:
    learnt = set(_class_ids(table.train))
    for part, rows in table.parts.items():
        unlearnt = [table.class_names[class_id] for class_id in _class_ids(rows) if class_id not in learnt]
        if unlearnt:
            raise KeMetricError(
                f"{table.origin}: {len(unlearnt):,} classes of the {part} part have no training image: "
                f"{some_of(unlearnt)}. Classification is scored on the classes that training saw: give each of them "
                "training images, or choose task: retrieval",
                ExitCode.DATA,
            )


def _refuse_missing_pictures(table: Table) -> None:
    keys = dict.fromkeys(row.key for row in table.rows)
    # One listing per folder: asking for every file by itself takes minutes on a network disk.
    present = {parent: _file_names(table.folder / parent) for parent in {key.rpartition("/")[0] for key in keys}}
    missing = [key for key in keys if key.rpartition("/")[2] not in present[key.rpartition("/")[0]]]
    if missing:
        is_csv = table.origin == table.folder / table.origin.name and table.origin.suffix.lower() == ".csv"
        advice = (
            "Paths are relative to the folder of the CSV file" if is_csv else "Is the archive unpacked completely?"
        )
        raise KeMetricError(
            f"{table.folder}: {len(missing):,} of the {len(keys):,} images that {table.origin} lists are not there: "
            f"{some_of(missing)}. {advice}",
            ExitCode.DATA,
        )


def _file_names(folder: Path) -> frozenset[str]:
    return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()


def _lone_rows(table: Table) -> dict[str, str]:
    """Return notes on training classes and queries that have no second picture."""
    gallery = table.query if table.gallery is None else table.gallery
    sizes, members = Counter(row.class_id for row in gallery), set(gallery)
    counts = {
        "training classes with one image": sum(
            size == 1 for size in Counter(row.class_id for row in table.train).values()
        ),
        "queries without any match": sum(sizes[row.class_id] - (row in members) == 0 for row in table.query),
    }
    return {topic: f"{count:,}" for topic, count in counts.items() if count}
