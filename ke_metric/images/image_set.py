"""Image sets and benchmarks: tables of items whose pictures are decoded on demand.

Shapes: N items, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from ke_metric.arrays import IntArray
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.decoding import UPRIGHT_ON_WHITE, Decoding, read_picture

# Of a SHA-256: changes are to be noticed, nobody forges a picture here.
CONTENT_DIGITS = 16
NO_ITEMS = np.empty(0, np.int64)


class ImageSource(Protocol):
    """Where the pictures of an image set come from. Picklable, since data-loading workers carry it along."""

    def read(self, key: str) -> Image.Image:
        """Decode one picture to RGB; a KeMetricError names what cannot be read."""
        ...


@runtime_checkable
class StoredSource(Protocol):
    """A source whose pictures are files."""

    @property
    def root(self) -> Path:
        """The folder under which they lie."""
        ...

    @property
    def reading(self) -> Mapping[str, bool | int | str]:
        """What decides, beside the bytes of a file, about the pixels that `read` gives."""
        ...

    def content(self, key: str) -> str:
        """Return a digest of the bytes of a picture's file, the same however it is decoded and prepared."""
        ...


@dataclass(frozen=True)
class FolderSource:
    """Pictures that lie as files under one folder; a key is a path relative to it."""

    root: Path
    decoding: Decoding = UPRIGHT_ON_WHITE

    @property
    def reading(self) -> Mapping[str, bool | int | str]:
        """How files become colours."""
        return asdict(self.decoding)

    def read(self, key: str) -> Image.Image:
        """Decode the file of a key; errors are those of `read_picture`."""
        return read_picture(self.root / key, self.decoding)

    def content(self, key: str) -> str:
        """Return a digest of the file of a key; after `read` the system still holds it, and asks no disk again."""
        path = self.root / key
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, hashlib.sha256).hexdigest()[:CONTENT_DIGITS]
        except OSError as error:
            raise KeMetricError(f"{path}: cannot be read: {error}", ExitCode.DATA) from error


@dataclass(frozen=True)
class ImageSet:
    """N labelled items in a fixed order.

    Attributes:
        keys: N item ids, unique inside a benchmark (the same picture in query and gallery has the same key).
        labels: [N] class numbers, contiguous from 0 inside the set (query and gallery share one numbering).
        class_names: C names, indexed by label.
        source: Decodes a key to a picture.
    """

    keys: tuple[str, ...]
    labels: IntArray
    class_names: tuple[str, ...]
    source: ImageSource = field(repr=False)

    def __post_init__(self) -> None:
        assert len(self.keys) == len(self.labels), (len(self.keys), len(self.labels))
        assert len(set(self.keys)) == len(self.keys), "item keys repeat"
        if len(self.labels):
            assert self.labels.min() >= 0, "negative label"
            assert self.labels.max() < len(self.class_names), "label without a class name"

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> Image.Image:
        """Decode picture number `index` to RGB."""
        return self.source.read(self.keys[index])

    def content(self, index: int, image: Image.Image) -> str:
        """Return a digest of what picture number `index` holds, for which `read` gave `image`.

        It is that of its file, or of its pixels where it is drawn.
        """
        if isinstance(self.source, StoredSource):
            return self.source.content(self.keys[index])
        return pixel_digest(image)[:CONTENT_DIGITS]

    def at(self, indices: IntArray) -> ImageSet:
        """Return the items at some positions [n], in the order given; classes and labels stay."""
        return replace(self, keys=tuple(self.keys[index] for index in indices), labels=self.labels[indices])


def pixel_digest(image: Image.Image) -> str:
    """Return the SHA-256 of a picture's size and pixels: a 2x8 and an 8x2 picture can have the same bytes."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Benchmark:
    """A data set with its split and task.

    Attributes:
        name: As in the recipe.
        train: What the network learns from.
        query: Searched with; in classification the test part, whose labels and class names are those of `train`.
        gallery: Searched in; the same object as `query` when every test image queries all others, and in
            classification.
        notes: Facts a reader of a scorecard wants to know: layout found, licences, rules of the split.
        validation: Neither learnt from nor tested on: in classification images of the training classes, in retrieval
            classes of their own, in a numbering of their own. None where there is no such part.
        task: "retrieval": training and test classes are different ones. "classification": they are the same.
        skipped: Files and folders that lie beside the pictures and are none, by kind; paths as keys are.
    """

    name: str
    train: ImageSet
    query: ImageSet
    gallery: ImageSet
    notes: Mapping[str, str] = field(default_factory=dict)
    validation: ImageSet | None = None
    task: str = "retrieval"
    skipped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.task == "classification":
            assert self.leave_one_out, "classification has one test part"
            for images in (self.query, self.validation):
                same = images is None or images.class_names == self.train.class_names
                assert same, "classes differ between the parts"

    @property
    def leave_one_out(self) -> bool:
        """Whether query and gallery are one set, each query searching all other items."""
        return self.query is self.gallery


def without_training(benchmark: Benchmark) -> Benchmark:
    """Return the benchmark with an empty training part, which a scoring has no need to decode; the rest stays."""
    return replace(benchmark, train=benchmark.train.at(NO_ITEMS))


def labelled_set(keys: list[str], class_ids: list[int], names: Mapping[int, str], source: ImageSource) -> ImageSet:
    """Build an image set whose labels are the sorted class ids renumbered from 0.

    Args:
        keys: N item keys, in the order to keep.
        class_ids: N class ids as the data set numbers them.
        names: Class id to name; at least the ids that occur.
        source: Decodes a key.
    """
    present = sorted(set(class_ids))
    position = {class_id: label for label, class_id in enumerate(present)}
    labels = np.array([position[class_id] for class_id in class_ids], dtype=np.int64)
    return ImageSet(tuple(keys), labels, tuple(names[class_id] for class_id in present), source)


@dataclass(frozen=True)
class PartCounts:
    """How large a part is: its images, the classes that have one, the images of its smallest and largest class."""

    images: int
    classes: int
    smallest_class: int
    largest_class: int

    def to_json(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)


def parts_of(benchmark: Benchmark) -> dict[str, ImageSet]:
    """Return train, validation where there is such a part, and test, or query and gallery, by name."""
    validation = {} if benchmark.validation is None else {"validation": benchmark.validation}
    if benchmark.leave_one_out:
        return {"train": benchmark.train, **validation, "test": benchmark.query}
    return {"train": benchmark.train, **validation, "query": benchmark.query, "gallery": benchmark.gallery}


def count_parts(benchmark: Benchmark) -> dict[str, PartCounts]:
    """Count images and classes of every part that has an image."""
    counts = {}
    for name, images in parts_of(benchmark).items():
        if len(images):
            _, sizes = np.unique(images.labels, return_counts=True)
            counts[name] = PartCounts(len(images), len(sizes), int(sizes.min()), int(sizes.max()))
    return counts


def counts_text(counts: Mapping[str, PartCounts]) -> str:
    """Return the counts as a plain table, one line per part."""
    lines = []
    for name, part in counts.items():
        sizes = f"{part.largest_class:,}"
        if part.smallest_class != part.largest_class:
            sizes = f"{part.smallest_class:,} to {sizes}"
        lines.append(f"{name:<10} {part.images:>9,} images {part.classes:>8,} classes   {sizes} images per class")
    return "\n".join(lines)
