"""From the rows a reader found to a benchmark: the checks and the numbering that every reader shares.

The image and class counts of published benchmarks, and their comparison with what was found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ke_metric.benchmarks.listings import some_of
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.decoding import Decoding
from ke_metric.images.image_set import Benchmark, FolderSource, ImageSet, ImageSource
from ke_metric.recipe.schema import Data


class Item(NamedTuple):
    """One picture: its path below the picture folder, and its class as the data set numbers it."""

    key: str
    class_id: int


@dataclass(frozen=True)
class Table:
    """What a reader found on disk, before classes are renumbered.

    Attributes:
        origin: File or folder the rows come from; errors name it.
        folder: Folder that the keys are relative to.
        train: Training items, in the order to keep.
        query: Items searched with, in the order to keep.
        gallery: Items searched in; None when the queries search each other, and in classification.
        class_names: Class id to name; at least the ids that occur.
        notes: Facts for the reader of a scorecard.
        validation: classification: the items of the validation part; None where there is none.
        skipped: What lies beside the pictures and is none, see `Benchmark`.
    """

    origin: Path
    folder: Path
    train: Sequence[Item]
    query: Sequence[Item]
    gallery: Sequence[Item] | None
    class_names: Mapping[int, str]
    notes: Mapping[str, str] = field(default_factory=dict)
    validation: Sequence[Item] | None = None
    skipped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Sequence[Item]]:
        """The items by the name of their part: train and test, maybe validation; or train, query and gallery."""
        validation = {} if self.validation is None else {"validation": self.validation}
        if self.gallery is None:
            return {"train": self.train, **validation, "test": self.query}
        assert not validation, "retrieval has no validation part"
        return {"train": self.train, "query": self.query, "gallery": self.gallery}


def build_benchmark(data: Data, table: Table) -> Benchmark:
    """Check a table and number its classes for retrieval: training from 0, query and gallery together from 0.

    Args:
        data: The recipe's section.
        table: Its rows.

    Raises:
        KeMetricError: A part is empty, an item repeats, a class has no name, training and test share a class, or a
            picture is missing.
    """
    assert table.validation is None, "retrieval has no validation part"
    _refuse_flaws(table)
    tested = [*table.query, *(table.gallery or ())]
    _refuse_shared_classes(table, tested)
    source = FolderSource(table.folder, Decoding.of_recipe(data))
    train = _image_set(table, table.train, _class_ids(table.train), source=source)
    query = _image_set(table, table.query, _class_ids(tested), source=source)
    gallery = query
    if table.gallery is not None:
        gallery = _image_set(table, table.gallery, _class_ids(tested), source=source)
    notes = {**table.notes, **_lone_items(table)}
    return Benchmark(data.benchmark, train, query, gallery, notes, skipped=table.skipped)


def build_classification(data: Data, table: Table, *, source: ImageSource | None = None) -> Benchmark:
    """Check a table and number its classes for classification: in order of their ids, the same in every part.

    Args:
        data: The recipe's section.
        table: Its rows, without a gallery.
        source: Decodes the keys; the files below the table's folder when left out.

    Raises:
        KeMetricError: A part is empty, an item repeats or is in two parts, a class has no name or no training image,
            or a picture is missing.
    """
    assert table.gallery is None, "classification has no gallery"
    _refuse_flaws(table)
    _refuse_shared_items(table)
    _refuse_unlearnt_classes(table)
    source = source or FolderSource(table.folder, Decoding.of_recipe(data))
    class_ids = _class_ids(table.train)
    train, query = (_image_set(table, items, class_ids, source=source) for items in (table.train, table.query))
    validation = None
    if table.validation is not None:
        validation = _image_set(table, table.validation, class_ids, source=source)
    notes = {**table.notes, **_untested_classes(table)}
    return Benchmark(data.benchmark, train, query, query, notes, validation, "classification", table.skipped)


def split_at(items: Iterable[Item], last_train_class: int) -> tuple[list[Item], list[Item]]:
    """Cut items by class id: up to and with `last_train_class` for training, above it for testing."""
    train: list[Item] = []
    test: list[Item] = []
    for item in items:
        (train if item.class_id <= last_train_class else test).append(item)
    return train, test


def _class_ids(items: Iterable[Item]) -> list[int]:
    return sorted({item.class_id for item in items})


def _image_set(table: Table, items: Sequence[Item], class_ids: Sequence[int], *, source: ImageSource) -> ImageSet:
    label_of = {class_id: label for label, class_id in enumerate(class_ids)}
    labels = np.array([label_of[item.class_id] for item in items], dtype=np.int64)
    class_names = tuple(table.class_names[class_id] for class_id in class_ids)
    return ImageSet(tuple(item.key for item in items), labels, class_names, source)


def _refuse_flaws(table: Table) -> None:
    """Refuse what is wrong in either task."""
    for part, items in table.parts.items():
        _refuse_empty(table, part, items)
        _refuse_repeats(table, part, items)
    listed = [item for items in table.parts.values() for item in items]
    _refuse_nameless_classes(table, listed)
    _refuse_missing_pictures(table, listed)


def _refuse_empty(table: Table, part: str, items: Sequence[Item]) -> None:
    if not items:
        raise KeMetricError(f"{table.origin}: the {part} part has no images", ExitCode.DATA)


def _refuse_repeats(table: Table, part: str, items: Sequence[Item]) -> None:
    repeated = [key for key, count in Counter(item.key for item in items).items() if count > 1]
    if repeated:
        raise KeMetricError(
            f"{table.origin}: {len(repeated):,} images are listed more than once in the {part} part: "
            f"{some_of(repeated)}; list each image once",
            ExitCode.DATA,
        )


def _refuse_nameless_classes(table: Table, listed: Sequence[Item]) -> None:
    nameless = [str(class_id) for class_id in _class_ids(listed) if class_id not in table.class_names]
    if nameless:
        raise KeMetricError(
            f"{table.origin}: images of classes that have no name: {some_of(nameless)}; "
            f"{len(table.class_names):,} classes are named",
            ExitCode.DATA,
        )


def _refuse_shared_classes(table: Table, tested: Sequence[Item]) -> None:
    shared = sorted(set(_class_ids(table.train)) & set(_class_ids(tested)))
    if shared:
        names = [table.class_names[class_id] for class_id in shared]
        raise KeMetricError(
            f"{table.origin}: {len(shared):,} classes are both trained on and tested on: {some_of(names)}. Retrieval "
            "is scored on classes that training never saw: put every class on one side only, give the classes "
            "without a split and let data.test_fraction divide them, or choose task: classification",
            ExitCode.DATA,
        )


def _refuse_shared_items(table: Table) -> None:
    counts = Counter(item.key for items in table.parts.values() for item in items)
    shared = [key for key, count in counts.items() if count > 1]
    if shared:
        raise KeMetricError(
            f"{table.origin}: {len(shared):,} images are in more than one of the parts {', '.join(table.parts)}: "
            f"{some_of(shared)}; a network must not be scored on what it learnt from",
            ExitCode.DATA,
        )


def _refuse_unlearnt_classes(table: Table) -> None:
    learnt = {item.class_id for item in table.train}
    for part, items in table.parts.items():
        unlearnt = [table.class_names[class_id] for class_id in _class_ids(items) if class_id not in learnt]
        if unlearnt:
            raise KeMetricError(
                f"{table.origin}: {len(unlearnt):,} classes of the {part} part have no training image: "
                f"{some_of(unlearnt)}. Classification is scored on the classes that training saw: give each of them "
                "training images, or choose task: retrieval",
                ExitCode.DATA,
            )


def _refuse_missing_pictures(table: Table, listed: Sequence[Item]) -> None:
    keys = dict.fromkeys(item.key for item in listed)
    # One listing per folder: asking for every file by itself takes minutes on a network disk.
    present = {parent: _file_names(table.folder / parent) for parent in {key.rpartition("/")[0] for key in keys}}
    missing = [key for key in keys if key.rpartition("/")[2] not in present[key.rpartition("/")[0]]]
    if missing:
        raise KeMetricError(
            f"{table.folder}: {len(missing):,} of the {len(keys):,} images that {table.origin} lists are not there: "
            f"{some_of(missing)}. "
            + (
                "Paths are relative to the folder of the CSV file"
                if table.origin == table.folder / table.origin.name and table.origin.suffix.lower() == ".csv"
                else "Is the archive unpacked completely?"
            ),
            ExitCode.DATA,
        )


def _file_names(folder: Path) -> frozenset[str]:
    return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()


def _untested_classes(table: Table) -> dict[str, str]:
    untested = {item.class_id for item in table.train} - {item.class_id for item in table.query}
    return {"classes without a test image": f"{len(untested):,}"} if untested else {}


def _lone_items(table: Table) -> dict[str, str]:
    sizes = Counter(item.class_id for item in table.train)
    lone_classes = sum(count == 1 for count in sizes.values())
    lone_queries = _queries_without_match(table.query, table.query if table.gallery is None else table.gallery)
    notes = {}
    if lone_classes:
        notes["training classes with one image"] = f"{lone_classes:,}"
    if lone_queries:
        notes["queries without any match"] = f"{lone_queries:,}"
    return notes


def _queries_without_match(query: Sequence[Item], gallery: Sequence[Item]) -> int:
    """Count the queries whose class has no other item in the gallery."""
    sizes = Counter(item.class_id for item in gallery)
    members = set(gallery)
    return sum(sizes[item.class_id] - (item in members) == 0 for item in query)


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

        Args:
            table: With the parts that `parts` names.

        Raises:
            KeMetricError: A count differs; the message has every wrong count, expected and found.
        """
        wrong = [
            f"{part} {what}: expected {expected:,}, found {found:,}"
            for part, items in table.parts.items()
            for what, expected, found in zip(
                ("images", "classes"),
                self.parts[part],
                (len(items), len({item.class_id for item in items})),
                strict=True,
            )
            if expected != found
        ]
        wrong = wrong or self._wrong_class_sizes(table)
        if wrong:
            total = sum(len(items) for items in table.parts.values())
            hints = [self.suspects.get(total, ""), self.remark]
            raise KeMetricError(
                "\n".join(
                    [
                        f"{table.origin}: not the published benchmark:",
                        *(f"  {line}" for line in wrong),
                        *(hint for hint in hints if hint),
                        "data.verify_counts = false takes them as they are; published scores do not compare then",
                    ]
                ),
                ExitCode.DATA,
            )

    def _wrong_class_sizes(self, table: Table) -> list[str]:
        if self.class_sizes is None:
            return []
        fewest, most = self.class_sizes
        sizes = Counter(item.class_id for items in table.parts.values() for item in items)
        return [
            f"images of class {class_id}: expected {fewest} to {most}, found {size:,}"
            for class_id, size in sorted(sizes.items())
            if not fewest <= size <= most
        ]
