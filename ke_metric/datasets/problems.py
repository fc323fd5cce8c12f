"""What can be wrong with a benchmark: one function per thing to look for, and what is said and advised of each.

Every picture is decoded once, to learn which cannot be read, which are the same, and what their files were.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.decoding import FileTraits, Progress, in_order, processors, traits_of
from ke_metric.images.image_set import Benchmark, ImageSet, ImageSource, parts_of, pixel_digest
from ke_metric.recipe.schema import Batches

MOST_WORKERS = 8
UNBALANCED = 3
"""How many times as many images as the smallest class the largest has, to be reported."""
FEWEST_TO_BE_LARGE = 10
# Of 8 bits: a quarter, which 14 bits in 16 do not reach.
DARK = 64

ERRORS = {
    "unreadable image": "put a whole copy in its place, or remove the file (and its row, where a list names it)",
    "same image in training and test": (
        "remove it from one side; in a published benchmark leave it and say so beside the scores"
    ),
    "same image in two classes": (
        "keep it in the class it belongs to; in a published benchmark leave it and say so beside the scores"
    ),
    "class in training and test": ("put the class on one side only, or rename it if these are two different classes"),
    "too few training classes": "add classes, or move some from the test part",
    "nothing can be scored": (
        "give the test classes at least 2 images each, or the gallery the classes of the queries"
    ),
}
"""Kinds of problem that stop a training or falsify scores, to what to do about them."""

WARNINGS = {
    "nothing to see on the background": (
        'train with another data.background, such as "#808080", or save it on a ground of its own'
    ),
    "nearly black": "scale the numbers up before saving: those of 12 bits times 16",
    "same image twice": "keep one; a copy in the test part counts twice, and is a match that every network finds",
    "unbalanced classes": (
        "read the balanced accuracy beside top-1: always answering the largest class is right for its share of the "
        "images; add images of the small classes, or leave some of the large one out"
    ),
    "training class with one image": "add images of the class, or leave it out",
    "query without match": "add images of the class to the gallery, or leave it out of the test part",
}
"""The other kinds, to what to do about them."""


@dataclass(frozen=True)
class DataProblem:
    """Something wrong with the data.

    Attributes:
        kind: What it is, one of `ERRORS` or `WARNINGS`.
        paths: Keys of the items it is about; of a class, one item on either side.
        reason: What was found.
    """

    kind: str
    paths: tuple[str, ...]
    reason: str

    @property
    def is_error(self) -> bool:
        """Whether it stops training or falsifies scores; otherwise it is a warning."""
        return self.kind in ERRORS

    @property
    def fix(self) -> str:
        """What to do about it."""
        return (ERRORS | WARNINGS)[self.kind]

    def to_json(self) -> dict[str, Any]:
        """Return the problem as plain JSON values."""
        return {
            "kind": self.kind,
            "is_error": self.is_error,
            "paths": list(self.paths),
            "reason": self.reason,
            "fix": self.fix,
        }


@dataclass(frozen=True)
class PictureFacts:
    """What is kept of a decoded picture.

    Attributes:
        digest: Of its size and pixels.
        brightest: The largest of its numbers.
        blank: Whether all of it is one colour.
        traits: What it was in its file; None for a picture that was in none.
    """

    digest: str
    brightest: int
    blank: bool
    traits: FileTraits | None

    @property
    def vanished(self) -> bool:
        """Whether it is transparent, and nothing of it can be told from the ground that it is put on."""
        return self.blank and self.traits is not None and self.traits.transparent


@dataclass(frozen=True)
class SeenPictures:
    """What decoding gave.

    Attributes:
        unreadable: Item key to the reason why it could not be decoded.
        seen: Item key to what is kept of it.
    """

    unreadable: Mapping[str, str]
    seen: Mapping[str, PictureFacts]

    @property
    def by_key(self) -> dict[str, str]:
        """Item key to the digest of its pixels; pictures of which nothing is to be seen are not compared."""
        return {key: picture.digest for key, picture in self.seen.items() if not picture.vanished}


def look_at(
    sources: Mapping[str, ImageSource], *, workers: int | None = None, progress: Progress | None = None
) -> SeenPictures:
    """Decode pictures completely, in several threads, and forget them again.

    Args:
        sources: Item key to the source that decodes it.
        workers: Threads, at least 1; the number of processors, at most 8, when left out.
        progress: Called after each picture, from the calling thread.
    """
    seen: dict[str, PictureFacts] = {}
    unreadable: dict[str, str] = {}
    threads = workers or min(processors(), MOST_WORKERS)
    for done, (key, found) in enumerate(in_order(_look, sources.items(), threads=threads), start=1):
        if isinstance(found, KeMetricError):
            unreadable[key] = str(found)
        else:
            seen[key] = found
        if progress:
            progress(done, len(sources))
    return SeenPictures(unreadable, seen)


def _look(item: tuple[str, ImageSource]) -> tuple[str, PictureFacts | KeMetricError]:
    key, source = item
    try:
        image = source.read(key)
    except KeMetricError as error:
        return key, error
    return key, picture_facts(image)


def picture_facts(image: Image.Image) -> PictureFacts:
    """Return what is kept of a decoded picture."""
    pixels = np.asarray(image)
    blank = bool((pixels == pixels[0, 0]).all())
    return PictureFacts(pixel_digest(image), int(pixels.max()), blank, traits_of(image))


def problems_of(benchmark: Benchmark, pictures: SeenPictures) -> Iterator[DataProblem]:
    """Yield all that is wrong with a benchmark whose pictures were looked at."""
    for key, reason in pictures.unreadable.items():
        yield DataProblem("unreadable image", (key,), reason)
    yield from _poor_pictures(pictures.seen)
    yield from _same_pictures(benchmark, pictures.by_key)
    yield from _few_classes(benchmark.train)
    if benchmark.task == "retrieval":
        yield from _shared_classes(benchmark)
        yield from _lone_training_images(benchmark.train)
        yield from _lone_queries(benchmark)
    else:
        yield from unbalanced_classes(benchmark.train)


def _poor_pictures(seen: Mapping[str, PictureFacts]) -> Iterator[DataProblem]:
    """Report transparent pictures that are not to be seen on their ground, and 10 to 14 bits in files of 16."""
    for key, picture in seen.items():
        if picture.vanished:
            reason = "the picture is transparent, and all of it has the colour of the background it is put on"
            yield DataProblem("nothing to see on the background", (key,), reason)
        if picture.traits is not None and picture.traits.wide and picture.brightest < DARK:
            reason = (
                f"a 16-bit file whose brightest number is at most {256 * picture.brightest + 255:,} of 65,535: a "
                "picture of fewer bits that was not scaled up comes out nearly black"
            )
            yield DataProblem("nearly black", (key,), reason)


class _Place(NamedTuple):
    """Where an item stands: its part and the name of its class."""

    part: str
    class_name: str


def _same_pictures(benchmark: Benchmark, digests: Mapping[str, str]) -> Iterator[DataProblem]:
    """Report pictures that are the same pixel by pixel, or the same file, at more than one place."""
    places: dict[str, list[_Place]] = defaultdict(list)
    for part, images in parts_of(benchmark).items():
        for key, label in zip(images.keys, images.labels.tolist(), strict=True):
            places[key].append(_Place(part, images.class_names[label]))
    groups: dict[str, list[str]] = defaultdict(list)
    for key in places:
        if key in digests:
            groups[digests[key]].append(key)
    for keys in groups.values():
        standing = [(key, place) for key in keys for place in places[key]]
        if len(keys) > 1 or len({place.part == "train" for _, place in standing}) > 1:
            yield _same_picture(tuple(keys), standing)


def _same_picture(keys: tuple[str, ...], standing: Sequence[tuple[str, _Place]]) -> DataProblem:
    where = ", ".join(f"{key} ({place.part}/{place.class_name})" for key, place in standing)
    if len({place.part == "train" for _, place in standing}) > 1:
        reason = f"the same picture is trained on and tested on: {where}"
        return DataProblem("same image in training and test", keys, reason)
    if len({place.class_name for _, place in standing}) > 1:
        return DataProblem("same image in two classes", keys, f"the same picture has different classes: {where}")
    return DataProblem("same image twice", keys, f"the same picture is there {len(keys)} times: {where}")


def _few_classes(train: ImageSet) -> Iterator[DataProblem]:
    present = len(np.unique(train.labels))
    if present < 2:
        reason = f"the training part has {present} class(es); at least 2 are needed"
        yield DataProblem("too few training classes", train.keys[:1], reason)


def _shared_classes(benchmark: Benchmark) -> Iterator[DataProblem]:
    """Report classes, by name, that are trained on and tested on."""
    tested = _first_items(benchmark.gallery) | _first_items(benchmark.query)
    trained = _first_items(benchmark.train)
    for name in sorted(trained.keys() & tested.keys()):
        reason = f"class {name!r} is both trained on and tested on; retrieval is scored on unseen classes"
        yield DataProblem("class in training and test", (trained[name], tested[name]), reason)


def _first_items(images: ImageSet) -> dict[str, str]:
    """Return the name of every class that has an item, to the key of its first one."""
    labels, first = np.unique(images.labels, return_index=True)
    return {images.class_names[label]: images.keys[index] for label, index in zip(labels, first, strict=True)}


def unbalanced_classes(train: ImageSet) -> Iterator[DataProblem]:
    """Report classes of so different sizes that answering the largest one is right more often than seems."""
    sizes = np.bincount(train.labels, minlength=len(train.class_names))
    largest = int(sizes.argmax())
    smallest = int(np.where(sizes > 0, sizes, sizes.max() + 1).argmin())
    if sizes[largest] < max(UNBALANCED * sizes[smallest], FEWEST_TO_BE_LARGE):
        return
    yield DataProblem(
        "unbalanced classes",
        tuple(train.keys[int(np.flatnonzero(train.labels == label)[0])] for label in (largest, smallest)),
        f"class {train.class_names[largest]!r} has {sizes[largest]:,} of {len(train):,} training images "
        f"({100 * sizes[largest] / len(train):.1f} %), class {train.class_names[smallest]!r} has "
        f"{sizes[smallest]:,}",
    )


def _lone_training_images(train: ImageSet) -> Iterator[DataProblem]:
    """Report training classes with a single image, which give no pair of one class."""
    sizes = np.bincount(train.labels, minlength=len(train.class_names))
    for index in np.flatnonzero(sizes[train.labels] == 1):
        reason = f"class {train.class_names[train.labels[index]]!r} has one training image: no pair of its own"
        yield DataProblem("training class with one image", (train.keys[index],), reason)


def small_classes_note(train: ImageSet) -> dict[str, str]:
    """Say how many training classes have fewer images than a batch takes of each where no recipe says else."""
    wanted = Batches().images_per_class
    sizes = np.bincount(train.labels, minlength=len(train.class_names))
    small = np.count_nonzero((sizes > 0) & (sizes < wanted))
    if not small:
        return {}
    return {
        "small classes": f"{small:,} of {np.count_nonzero(sizes):,} training classes have fewer than {wanted} "
        f"images; with batches.images_per_class = {wanted}, the default, they repeat in a batch, and a picture and "
        "itself are a positive pair"
    }


def require_scorable(benchmark: Benchmark) -> None:
    """Refuse a benchmark of retrieval on which no query has anything to find, before anything is trained for it.

    Raises:
        KeMetricError: DATA.
    """
    if benchmark.task == "retrieval" and len(_queries_without_match(benchmark)) == len(benchmark.query):
        raise KeMetricError(
            f"{benchmark.name}: nothing can be scored: none of the {len(benchmark.query):,} query picture(s) has "
            "another picture of its class to find; give the test classes at least 2 pictures each, or the gallery "
            "the classes of the queries",
            ExitCode.DATA,
        )


def _lone_queries(benchmark: Benchmark) -> Iterator[DataProblem]:
    """Report queries of whose class the gallery has no other item; one error instead when that is all of them."""
    query, lone = benchmark.query, _queries_without_match(benchmark)
    if len(lone) == len(query):
        reason = "no query has another image of its class to find"
        yield DataProblem("nothing can be scored", query.keys[:1], reason)
        return
    for index in lone:
        reason = f"there is no other image of class {query.class_names[query.labels[index]]!r} to find"
        yield DataProblem("query without match", (query.keys[index],), reason)


def _queries_without_match(benchmark: Benchmark) -> list[int]:
    query, gallery = benchmark.query, benchmark.gallery
    sizes = np.bincount(gallery.labels, minlength=len(query.class_names))
    members = set(gallery.keys)
    return [
        index
        for index, (key, label) in enumerate(zip(query.keys, query.labels.tolist(), strict=True))
        if sizes[label] - (key in members) <= 0
    ]
