"""Decoding every picture once, to learn which cannot be read, which are the same, and what their files were.

What can be wrong with a benchmark: one function per thing to look for, each giving paths, reason and cure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.decoding import FileTraits, in_order, processors, traits_of
from ke_metric.images.image_set import Benchmark, ImageSet, ImageSource, parts_of, pixel_digest
from ke_metric.recipe.schema import Batches

MOST_WORKERS = 8

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Seen:
    """What is kept of a decoded picture.

    Attributes:
        fingerprint: SHA-256 of its width, height and RGB pixels.
        brightest: The largest of its numbers.
        blank: Whether all of it is one colour.
        traits: What it was in its file; None for a picture that was in none.
    """

    fingerprint: str
    brightest: int
    blank: bool
    traits: FileTraits | None

    @property
    def vanished(self) -> bool:
        """Whether it is transparent, and nothing of it can be told from the ground that it is put on."""
        return self.blank and self.traits is not None and self.traits.transparent


@dataclass(frozen=True)
class Fingerprints:
    """What decoding gave.

    Attributes:
        by_key: Item key to the fingerprint of its pixels; those of which nothing is to be seen are not compared.
        unreadable: Item key to the reason why it could not be decoded.
        seen: Item key to what is kept of it.
    """

    by_key: Mapping[str, str]
    unreadable: Mapping[str, str]
    seen: Mapping[str, Seen] = field(default_factory=dict)


def take_fingerprints(
    sources: Mapping[str, ImageSource], *, workers: int | None = None, progress: Progress | None = None
) -> Fingerprints:
    """Decode pictures completely, one after the other in each of several threads, and forget them again.

    Args:
        sources: Item key to the source that decodes it.
        workers: Threads, at least 1; the number of processors, at most 8, when left out.
        progress: Called with the number of pictures done and their total after each, from the calling thread.
    """
    seen: dict[str, Seen] = {}
    unreadable: dict[str, str] = {}
    threads = workers or min(processors(), MOST_WORKERS)
    for done, (key, found) in enumerate(in_order(_look, sources.items(), threads=threads), start=1):
        if isinstance(found, KeMetricError):
            unreadable[key] = str(found)
        else:
            seen[key] = found
        if progress:
            progress(done, len(sources))
    by_key = {key: picture.fingerprint for key, picture in seen.items() if not picture.vanished}
    return Fingerprints(by_key, unreadable, seen)


def _look(item: tuple[str, ImageSource]) -> tuple[str, Seen | KeMetricError]:
    key, source = item
    try:
        image = source.read(key)
    except KeMetricError as error:
        return key, error
    pixels = np.asarray(image)
    return key, Seen(
        pixel_digest(image),
        brightest=int(pixels.max()),
        blank=bool((pixels == pixels[0, 0]).all()),
        traits=traits_of(image),
    )


UNBALANCED = 3
"""How many times as many images as the smallest class the largest has, to be reported."""
FEWEST_TO_BE_LARGE = 10
# Of 8 bits: a quarter, which 14 bits in 16 do not reach.
DARK = 64


@dataclass(frozen=True)
class Problem:
    """Something wrong with the data.

    Attributes:
        kind: What it is, in the same words for every problem of its kind.
        is_error: Whether it stops training or falsifies scores; otherwise it is a warning.
        paths: Keys of the items it is about; of a class, one item on either side.
        reason: What was found.
        fix: What to do about it.
    """

    kind: str
    is_error: bool
    paths: tuple[str, ...]
    reason: str
    fix: str

    def to_json(self) -> dict[str, Any]:
        """Return the problem as plain JSON values."""
        return {**asdict(self), "paths": list(self.paths)}


@dataclass(frozen=True)
class _Place:
    """Where an item stands: its part and the name of its class."""

    part: str
    class_name: str

    @property
    def trained(self) -> bool:
        return self.part == "train"

    def __str__(self) -> str:
        return f"{self.part}/{self.class_name}"


def unreadable_images(reasons: Mapping[str, str]) -> Iterator[Problem]:
    """Report pictures that cannot be decoded, or only a part of them.

    Args:
        reasons: Item key to what the decoder said.
    """
    for key, reason in reasons.items():
        yield Problem(
            kind="unreadable image",
            is_error=True,
            paths=(key,),
            reason=reason,
            fix="put a whole copy in its place, or remove the file (and its row, where a list names it)",
        )


def vanished_images(seen: Mapping[str, Seen]) -> Iterator[Problem]:
    """Report transparent pictures of which nothing is left on the ground that they are put on.

    Args:
        seen: Item key to what decoding gave.
    """
    for key, picture in seen.items():
        if picture.vanished:
            yield Problem(
                kind="nothing to see on the background",
                is_error=False,
                paths=(key,),
                reason="the picture is transparent, and all of it has the colour of the background it is put on",
                fix='train with another data.background, such as "#808080", or save it on a ground of its own',
            )


def dark_images(seen: Mapping[str, Seen]) -> Iterator[Problem]:
    """Report pictures of 10, 12 or 14 bits in files of 16, whose higher 8 bits are next to nothing.

    Args:
        seen: Item key to what decoding gave.
    """
    for key, picture in seen.items():
        if picture.traits is not None and picture.traits.wide and picture.brightest < DARK:
            yield Problem(
                kind="nearly black",
                is_error=False,
                paths=(key,),
                reason=(
                    f"a 16-bit file whose brightest number is at most {256 * picture.brightest + 255:,} of 65,535: "
                    "a picture of fewer bits that was not scaled up comes out nearly black"
                ),
                fix="scale the numbers up before saving: those of 12 bits times 16",
            )


def duplicate_images(benchmark: Benchmark, fingerprints: Mapping[str, str]) -> Iterator[Problem]:
    """Report pictures that are the same pixel by pixel, or the same file, at more than one place.

    Args:
        benchmark: Whose items they are.
        fingerprints: Item key to a digest of the decoded pixels; items without one are left out.
    """
    places = _places(benchmark)
    groups: dict[str, list[str]] = defaultdict(list)
    for key in places:
        if key in fingerprints:
            groups[fingerprints[key]].append(key)
    for keys in groups.values():
        standing = [(key, place) for key in keys for place in places[key]]
        if len(keys) > 1 or len({place.trained for _, place in standing}) > 1:
            yield _duplicate(tuple(keys), standing)


def shared_classes(benchmark: Benchmark) -> Iterator[Problem]:
    """Report classes, by name, that are trained on and tested on."""
    tested = _first_items(benchmark.gallery) | _first_items(benchmark.query)
    trained = _first_items(benchmark.train)
    for name in sorted(trained.keys() & tested.keys()):
        yield Problem(
            kind="class in training and test",
            is_error=True,
            paths=(trained[name], tested[name]),
            reason=f"class {name!r} is both trained on and tested on; retrieval is scored on unseen classes",
            fix="put the class on one side only, or rename it if these are two different classes",
        )


def few_training_classes(benchmark: Benchmark) -> Iterator[Problem]:
    """Report a training part that has nothing to tell apart."""
    present = len(np.unique(benchmark.train.labels))
    if present < 2:
        yield Problem(
            kind="too few training classes",
            is_error=True,
            paths=benchmark.train.keys[:1],
            reason=f"the training part has {present} class(es); at least 2 are needed",
            fix="add classes, or move some from the test part",
        )


def unbalanced_classes(train: ImageSet) -> Iterator[Problem]:
    """Report classes of so different sizes that answering the largest one is right more often than seems."""
    sizes = np.bincount(train.labels, minlength=len(train.class_names))
    largest = int(sizes.argmax())
    smallest = int(np.where(sizes > 0, sizes, sizes.max() + 1).argmin())
    if sizes[largest] < max(UNBALANCED * sizes[smallest], FEWEST_TO_BE_LARGE):
        return
    many, few = f"{sizes[largest]:,}", f"{sizes[smallest]:,}"
    yield Problem(
        kind="unbalanced classes",
        is_error=False,
        paths=tuple(train.keys[int(np.flatnonzero(train.labels == label)[0])] for label in (largest, smallest)),
        reason=f"class {train.class_names[largest]!r} has {many} of {len(train):,} training images "
        f"({100 * sizes[largest] / len(train):.1f} %), class {train.class_names[smallest]!r} has {few}",
        fix="read the balanced accuracy beside top-1: always answering the largest class is right for its share "
        "of the images; add images of the small classes, or leave some of the large one out",
    )


def lone_training_images(train: ImageSet) -> Iterator[Problem]:
    """Report training classes with a single image, which give no pair of one class."""
    sizes = np.bincount(train.labels, minlength=len(train.class_names))
    for index in np.flatnonzero(sizes[train.labels] == 1):
        yield Problem(
            kind="training class with one image",
            is_error=False,
            paths=(train.keys[index],),
            reason=f"class {train.class_names[train.labels[index]]!r} has one training image: no pair of its own",
            fix="add images of the class, or leave it out",
        )


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
    if benchmark.task == "retrieval" and len(_queries_without_match(benchmark.query, benchmark.gallery)) == len(
        benchmark.query
    ):
        raise KeMetricError(
            f"{benchmark.name}: nothing can be scored: none of the {len(benchmark.query):,} query picture(s) has "
            "another picture of its class to find; give the test classes at least 2 pictures each, or the gallery "
            "the classes of the queries",
            ExitCode.DATA,
        )


def lone_queries(benchmark: Benchmark) -> Iterator[Problem]:
    """Report queries of whose class the gallery has no other item; one error instead when that is all of them."""
    lone = _queries_without_match(benchmark.query, benchmark.gallery)
    if len(lone) == len(benchmark.query):
        yield Problem(
            kind="nothing can be scored",
            is_error=True,
            paths=benchmark.query.keys[:1],
            reason="no query has another image of its class to find",
            fix="give the test classes at least 2 images each, or the gallery the classes of the queries",
        )
        return
    for index in lone:
        name = benchmark.query.class_names[benchmark.query.labels[index]]
        yield Problem(
            kind="query without match",
            is_error=False,
            paths=(benchmark.query.keys[index],),
            reason=f"there is no other image of class {name!r} to find",
            fix="add images of the class to the gallery, or leave it out of the test part",
        )


def _places(benchmark: Benchmark) -> dict[str, list[_Place]]:
    places: dict[str, list[_Place]] = defaultdict(list)
    for part, images in parts_of(benchmark).items():
        for key, label in zip(images.keys, images.labels.tolist(), strict=True):
            places[key].append(_Place(part, images.class_names[label]))
    return places


def _duplicate(keys: tuple[str, ...], standing: Sequence[tuple[str, _Place]]) -> Problem:
    where = ", ".join(f"{key} ({place})" for key, place in standing)
    if len({place.trained for _, place in standing}) > 1:
        return Problem(
            kind="same image in training and test",
            is_error=True,
            paths=keys,
            reason=f"the same picture is trained on and tested on: {where}",
            fix="remove it from one side; in a published benchmark leave it and say so beside the scores",
        )
    if len({place.class_name for _, place in standing}) > 1:
        return Problem(
            kind="same image in two classes",
            is_error=True,
            paths=keys,
            reason=f"the same picture has different classes: {where}",
            fix="keep it in the class it belongs to; in a published benchmark leave it and say so beside the scores",
        )
    return Problem(
        kind="same image twice",
        is_error=False,
        paths=keys,
        reason=f"the same picture is there {len(keys)} times: {where}",
        fix="keep one; a copy in the test part counts twice, and is a match that every network finds",
    )


def _first_items(images: ImageSet) -> dict[str, str]:
    """Return the name of every class that has an item, to the key of its first one."""
    labels, first = np.unique(images.labels, return_index=True)
    return {images.class_names[label]: images.keys[index] for label, index in zip(labels, first, strict=True)}


def _queries_without_match(query: ImageSet, gallery: ImageSet) -> list[int]:
    sizes = np.bincount(gallery.labels, minlength=len(query.class_names))
    members = set(gallery.keys)
    labels: Iterable[int] = query.labels.tolist()
    return [
        index
        for index, (key, label) in enumerate(zip(query.keys, labels, strict=True))
        if sizes[label] - (key in members) <= 0
    ]
