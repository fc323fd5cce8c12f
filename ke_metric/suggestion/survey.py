"""What a user's own pictures are, as far as a recipe depends on it: sizes, colours, classes, which way they look.

Every picture is decoded once and forgotten, as a check decodes it; of a very large folder an even sample is.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ke_metric.arrays import FloatArray, PixelArray
from ke_metric.benchmarks.folder import scan_class_folders
from ke_metric.benchmarks.listings import CLASSIFICATION, RETRIEVAL, Columns, LabelledPath, read_csv_rows
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.datasets.problems import PictureFacts, SeenPictures, picture_facts, problems_of, require_scorable
from ke_metric.errors import ExitCode, KeMetricError, some_of
from ke_metric.images.decoding import UPRIGHT, Progress, in_order
from ke_metric.images.image_set import Benchmark, ImageSet, ImageSource, parts_of
from ke_metric.recipe.schema import Data

MOST_DECODED = 20_000
"""Pictures that are looked at; of more, every second, every third and so on."""
FEWEST_FOR_RETRIEVAL = 12
"""Classes below which a recipe is for classification where nobody says: with fewer, half of them are no test."""
FEWEST_CLASSES = {"retrieval": 4, "classification": 2}
"""Classes that a task needs; retrieval is trained on two and tested on two others at the least."""
# Channels that differ by so little in all pixels come from a grey picture that was stored in colours with loss.
GREY_TOLERANCE = 12
THUMBNAIL = 16
MOST_MIRRORED = 1_000


class Quantiles(NamedTuple):
    """Of some numbers: the smallest, the tenth part, the middle, the last tenth part, the largest."""

    smallest: float
    low: float
    median: float
    high: float
    largest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Quantiles:
        """Return those of one number or more."""
        return cls(*(float(value) for value in np.quantile(np.fromiter(values, float), (0, 0.1, 0.5, 0.9, 1))))


@dataclass(frozen=True)
class Mirrored:
    """Whether pictures may be mirrored: how often a tiny copy finds its own class, as it is and mirrored.

    Attributes:
        pictures: How many were searched with.
        straight: Share whose most similar other picture is of its class.
        mirrored: The same share where the pictures searched with are mirrored.
    """

    pictures: int
    straight: float
    mirrored: float

    @property
    def matters(self) -> bool:
        """Whether mirrored ones find their class clearly less often than chance in the draw of pictures explains."""
        spread = np.sqrt((self.straight * (1 - self.straight) + 0.25) / max(1, self.pictures))
        return bool(self.straight - self.mirrored > max(0.05, 3 * spread))


@dataclass(frozen=True)
class PictureSurvey:
    """What the pictures of a folder or CSV are.

    Attributes:
        benchmark: Keys and labels, divided for the task.
        looked_at: Pictures that were decoded.
        sides: Of the shorter sides in pixels.
        aspects: Of the longer over the shorter side, 1 or more.
        grey: Share of pictures without colour.
        transparent: Share of pictures that are not wholly opaque.
        vanished: Pictures of which nothing is to be seen on white.
        turned: Pictures that are turned by their EXIF orientation.
        class_sizes: Of the training pictures per class.
        mirrored: What mirroring does to them.
        problems: Kind of problem that a check would report, to the number of them.
        task_reason: Why the task is what it is, where nobody asked for one; empty otherwise.
    """

    benchmark: Benchmark
    looked_at: int
    sides: Quantiles
    aspects: Quantiles
    grey: float
    transparent: float
    vanished: int
    turned: int
    class_sizes: Quantiles
    mirrored: Mirrored
    problems: Mapping[str, int]
    task_reason: str = ""

    @property
    def train_images(self) -> int:
        """Number of training pictures."""
        return len(self.benchmark.train)

    @property
    def train_classes(self) -> int:
        """Number of classes that have a training picture."""
        return len(np.unique(self.benchmark.train.labels))

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        parts = {name: len(images) for name, images in parts_of(self.benchmark).items()}
        return {
            "parts": parts,
            "training_classes": self.train_classes,
            "training_pictures_per_class": self.class_sizes._asdict(),
            "looked_at": self.looked_at,
            "shorter_side": self.sides._asdict(),
            "aspect_ratio": self.aspects._asdict(),
            "grey": self.grey,
            "transparent": self.transparent,
            "vanished_on_white": self.vanished,
            "turned": self.turned,
            "mirrored": {
                "pictures": self.mirrored.pictures,
                "find_their_class": self.mirrored.straight,
                "find_it_mirrored": self.mirrored.mirrored,
            },
            "problems": dict(self.problems),
        }


def survey_pictures(
    path: Path, *, task: str | None = None, columns: Columns | None = None, progress: Progress | None = None
) -> PictureSurvey:
    """Look at the pictures of a folder or CSV, and find out whether they can be trained on.

    Args:
        path: A folder with a folder per class (or such folders below train and test), or a CSV with path,label.
        task: `retrieval` or `classification`; chosen by the classes when None.
        columns: What the columns of a CSV are called.
        progress: Called with the number of pictures decoded and their total.

    Raises:
        KeMetricError: DATA: they cannot be read, decoded or trained on; what is missing is said.
    """
    columns = columns or Columns()
    pictures = _listed(path, columns)
    reason = ""
    if task is None:
        task, reason = _task_of(pictures)
    _require_enough(path, pictures, task, chosen=bool(reason))
    data = Data(benchmark="folder", root=str(path), path_column=columns.path, label_column=columns.label)
    benchmark = load_benchmark(data, task)
    _require_pairs(path, benchmark)
    looks = _look_at_all(benchmark, progress)
    return _summed_up(benchmark, looks, reason)


def _listed(path: Path, columns: Columns) -> list[LabelledPath]:
    if not path.exists():
        raise KeMetricError(
            f"{path}: does not exist; it must be a folder with a folder per class, or a CSV with path,label",
            ExitCode.DATA,
        )
    if path.is_dir():
        return scan_class_folders(path, validation=True).pictures
    return read_csv_rows(path, (*RETRIEVAL, *CLASSIFICATION), columns)


def _task_of(pictures: Sequence[LabelledPath]) -> tuple[str, str]:
    """Return the task that the classes are for, and why."""
    by_part: dict[str | None, set[str]] = defaultdict(set)
    for picture in pictures:
        by_part[picture.split].add(picture.label)
    if None not in by_part:
        others = set().union(*(names for part, names in by_part.items() if part != "train"))
        if by_part["train"] & others:
            return "classification", "training and test parts, as they are given, have the same classes"
        return "retrieval", "training and test parts, as they are given, have different classes"
    count = len(by_part[None])
    if count < FEWEST_FOR_RETRIEVAL:
        return "classification", f"{count} classes are too few to keep half of them for the test of a retrieval"
    return "retrieval", f"half of the {count:,} classes are kept for the test, and are never trained on"


def _require_enough(path: Path, pictures: Sequence[LabelledPath], task: str, *, chosen: bool) -> None:
    """Refuse what nothing can be learnt from or tested on, before anything is decoded."""
    sizes: dict[str, int] = defaultdict(int)
    for picture in pictures:
        sizes[picture.label] += 1
    several = [name for name, size in sizes.items() if size > 1]
    needed = FEWEST_CLASSES[task]
    found = (
        f"{path}: {len(sizes):,} class{'es' * (len(sizes) != 1)}, {len(several):,} of them with 2 pictures or more"
    )
    if len(several) < needed and task == "classification":
        raise KeMetricError(
            f"{found}; needed are at least {needed} such classes: one picture is learnt from and one tested on",
            ExitCode.DATA,
        )
    if len(several) < needed:
        other = "" if chosen else "; --task classification needs 2"
        raise KeMetricError(
            f"{found}; retrieval needs at least {needed} such classes: two to learn from and two others to be "
            f"tested on, in each of them a pair to find{other}",
            ExitCode.DATA,
        )


def _require_pairs(path: Path, benchmark: Benchmark) -> None:
    """Refuse parts of which one alone has what is needed."""
    require_scorable(benchmark)
    sizes = np.bincount(benchmark.train.labels)
    needed, kind = (2, "with 2 pictures or more") if benchmark.task == "retrieval" else (1, "with a picture")
    found = int((sizes >= needed).sum())
    if found < 2:
        raise KeMetricError(
            f"{path}: the training part has {found} class{'es' * (found != 1)} {kind}; needed are at least 2",
            ExitCode.DATA,
        )


class _Look(NamedTuple):
    """What is kept of one picture."""

    key: str
    facts: PictureFacts
    size: tuple[int, int]
    grey: bool
    thumbnail: PixelArray


def _look_at_all(benchmark: Benchmark, progress: Progress | None) -> list[_Look]:
    """Decode the pictures of all parts.

    Raises:
        KeMetricError: DATA: some cannot be decoded; a training would refuse them too.
    """
    sources: dict[str, ImageSource] = {}
    for images in parts_of(benchmark).values():
        sources |= dict.fromkeys(images.keys, images.source)
    keys = list(sources)[:: -(-len(sources) // MOST_DECODED)]
    looks: list[_Look] = []
    unreadable: list[str] = []
    for done, found in enumerate(in_order(partial(_look, sources), keys), start=1):
        if isinstance(found, KeMetricError):
            unreadable.append(str(found))
        else:
            looks.append(found)
        if progress is not None:
            progress(done, len(keys))
    if unreadable:
        raise KeMetricError(
            f"{len(unreadable):,} of {len(keys):,} pictures cannot be decoded, and a training refuses them: "
            f"{some_of(unreadable, separator='; ')}. Mend or remove them; ke-metric data check names all",
            ExitCode.DATA,
        )
    return looks


def _look(sources: Mapping[str, ImageSource], key: str) -> _Look | KeMetricError:
    try:
        image = sources[key].read(key)
    except KeMetricError as error:
        return error
    small = image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return _Look(key, picture_facts(image), image.size, _is_grey(image), np.asarray(small))


def _is_grey(image: Image.Image) -> bool:
    pixels = np.asarray(image)
    channels = [pixels[..., channel] for channel in range(3)]
    most, least = np.maximum.reduce(channels), np.minimum.reduce(channels)
    return int((most - least).max()) <= GREY_TOLERANCE


def _summed_up(benchmark: Benchmark, looks: Sequence[_Look], reason: str) -> PictureSurvey:
    count = len(looks)
    seen = SeenPictures({}, {look.key: look.facts for look in looks})
    problems = sorted(problem.kind for problem in problems_of(benchmark, seen))
    traits = [look.facts.traits for look in looks if look.facts.traits is not None]
    sizes = np.bincount(benchmark.train.labels)
    return PictureSurvey(
        benchmark=benchmark,
        looked_at=count,
        sides=Quantiles.of(min(look.size) for look in looks),
        aspects=Quantiles.of(max(look.size) / min(look.size) for look in looks),
        grey=sum(look.grey for look in looks) / count,
        transparent=sum(each.transparent for each in traits) / count,
        vanished=sum(look.facts.vanished for look in looks),
        turned=sum(each.orientation != UPRIGHT for each in traits),
        class_sizes=Quantiles.of(sizes[sizes > 0]),
        mirrored=_mirrored(benchmark, {look.key: look.thumbnail for look in looks}),
        problems={kind: len(list(same)) for kind, same in groupby(problems)},
        task_reason=reason,
    )


def _mirrored(benchmark: Benchmark, thumbnails: Mapping[str, PixelArray]) -> Mirrored:
    """Search tiny copies of training pictures in each other, as they are and mirrored."""
    train = benchmark.train
    chosen = _of_whole_classes(train, [position for position, key in enumerate(train.keys) if key in thumbnails])
    if len(chosen) < 2:
        return Mirrored(0, 0.0, 0.0)
    pictures = np.stack([thumbnails[train.keys[position]] for position in chosen]).astype(np.float32)
    labels = train.labels[chosen]
    straight, turned = (_unit(each) for each in (pictures, pictures[:, :, ::-1]))
    shares = []
    for queries in (straight, turned):
        similar = queries @ straight.T
        # Its own picture is no find, and mirrored it would be its own best one where it is symmetric.
        np.fill_diagonal(similar, -np.inf)
        shares.append(float((labels[similar.argmax(axis=1)] == labels).mean()))
    return Mirrored(len(chosen), shares[0], shares[1])


def _of_whole_classes(images: ImageSet, positions: Sequence[int]) -> list[int]:
    """Return at most MOST_MIRRORED positions: fewer classes while there are twenty, then fewer pictures of each."""
    classes = sorted({int(images.labels[position]) for position in positions})
    too_many = max(1, -(-len(positions) // MOST_MIRRORED))
    kept = set(classes[:: min(too_many, max(1, len(classes) // 20))])
    chosen = [position for position in positions if int(images.labels[position]) in kept]
    return chosen[:: max(1, -(-len(chosen) // MOST_MIRRORED))]


def _unit(pictures: FloatArray) -> FloatArray:
    """Return pictures [N, H, W] as vectors [N, H * W] of mean 0 and length 1."""
    vectors = pictures.reshape(len(pictures), -1)
    vectors = vectors - vectors.mean(axis=1, keepdims=True)
    unit: FloatArray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return unit
