"""Classification benchmarks that come with lists of their official parts.

FGVC-Aircraft (`aircraft`, 100 variants), Stanford Dogs (`dogs`, 120 breeds), Oxford Flowers102 (`flowers`) and MIT
Indoor-67 (`mit67`, kinds of rooms). For each: where its files lie, what they must hold, and how its lists are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ke_metric.benchmarks.layout import Hint, Layout, find_layout, read_rows, read_strings, read_whole_numbers
from ke_metric.benchmarks.listings import key_below
from ke_metric.benchmarks.table import PublishedCounts, Table, TableRow, build_classification
from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.images.decoding import Decoding
from ke_metric.images.image_set import Benchmark, FolderSource
from ke_metric.recipe.schema import Data

BANNER_HEIGHT = 20
"""Pixels at the bottom of every picture of an aircraft that name its photographer."""

FLOWERS = 102
DOG_LISTS = ("", "lists/")
TRAINVAL = (
    "images_variant_train.txt seems to be a copy of images_variant_trainval.txt, which has the validation part too."
)
NO_AIRCRAFT = (
    "{folder} has the lists but no pictures: this looks like fgvc-aircraft-2013b-annotations.tar.gz; the archive "
    "with the pictures is fgvc-aircraft-2013b.tar.gz (2.75 GB)."
)
ALL_DOGS = "file_list.mat lists all images without the split; train_list.mat and test_list.mat have it."
NO_ROOMS = (
    "TrainImages.txt and TestImages.txt are not in indoorCVPR_09.tar: they are downloads of their own and belong "
    "beside the folder Images."
)
LAYOUTS = {
    "aircraft": Layout(
        "FGVC-Aircraft (fgvc-aircraft-2013b.tar.gz)",
        {
            purpose: (f"data/{name}", name)
            for purpose, name in {
                "variants": "variants.txt",
                "train": "images_variant_train.txt",
                "validation": "images_variant_val.txt",
                "test": "images_variant_test.txt",
                "pictures": "images/",
            }.items()
        },
        [Hint(NO_AIRCRAFT, f"{folder}images_variant_trainval.txt", f"{folder}images/") for folder in ("data/", "")],
    ),
    "dogs": Layout(
        "Stanford Dogs (images.tar, lists.tar)",
        {
            "train": [f"{folder}train_list.mat" for folder in DOG_LISTS],
            "test": [f"{folder}test_list.mat" for folder in DOG_LISTS],
            "pictures": ["Images/", "images/Images/"],
        },
        [Hint(ALL_DOGS, f"{folder}file_list.mat") for folder in DOG_LISTS],
    ),
    "flowers": Layout(
        "Flowers102 (102flowers.tgz, imagelabels.mat, setid.mat)",
        {"labels": ["imagelabels.mat"], "parts": ["setid.mat"], "pictures": ["jpg/"]},
        [
            Hint("{path} is there but not unpacked; its content is the folder jpg.", "102flowers.tgz"),
            Hint("datasplits.mat belongs to Flowers17 (17 classes); the benchmark is Flowers102.", "datasplits.mat"),
        ],
    ),
    "mit67": Layout(
        "MIT Indoor-67 (indoorCVPR_09.tar, TrainImages.txt, TestImages.txt)",
        {
            "train": ["TrainImages.txt"],
            "test": ["TestImages.txt"],
            # The second one as in a copy on the web, whose lists lie beside the folder.
            "pictures": ["Images/", "indoorCVPR_09/Images/"],
        },
        [Hint(NO_ROOMS, there="Images/", lacking="TrainImages.txt")],
    ),
}
COUNTS = {
    "aircraft": PublishedCounts(
        {"train": (3334, 100), "validation": (3333, 100), "test": (3333, 100)},
        class_sizes=(100, 100),
        suspects={
            13333: TRAINVAL,
            10200: "This looks like an older release, with 102 variants; the benchmark is 2013b.",
        },
        remark="The benchmark has 10,000 images of 100 variants, whatever its README says (10,200 of 102).",
    ),
    "dogs": PublishedCounts(
        {"train": (12000, 120), "test": (8580, 120)},
        class_sizes=(148, 252),
        suspects={
            20580 + 8580: "train_list.mat seems to be a copy of file_list.mat, which lists all 20,580 images.",
            20580 + 12000: "test_list.mat seems to be a copy of file_list.mat, which lists all 20,580 images.",
            2 * 12000: "Both lists seem to be train_list.mat.",
            2 * 8580: "Both lists seem to be test_list.mat.",
        },
    ),
    "flowers": PublishedCounts(
        {"train": (1020, FLOWERS), "validation": (1020, FLOWERS), "test": (6149, FLOWERS)},
        class_sizes=(40, 258),
        remark=(
            "The parts are trnid, valid and tstid of setid.mat; works that train on the 6,149 images of tstid, or on "
            "2,040, solve another task."
        ),
    ),
    "mit67": PublishedCounts(
        {"train": (5360, 67), "test": (1340, 67)},
        suspects={
            15620: (
                "The training list seems to be every image that is not in the test list; the official one has 5,360."
            ),
            15620 + 1340: "TrainImages.txt seems to list all 15,620 images on disk; the official one has 5,360.",
            2 * 5360: "Both lists seem to be TrainImages.txt.",
            2 * 1340: "Both lists seem to be TestImages.txt.",
        },
        remark="The benchmark is the 6,700 listed images; the other 8,920 of the archive are in no part.",
    ),
}


@dataclass(frozen=True)
class BannerlessSource:
    """Pictures of a folder without the copyright strip at their bottom."""

    source: FolderSource

    @property
    def root(self) -> Path:
        """The folder under which the files lie."""
        return self.source.root

    @property
    def reading(self) -> Mapping[str, bool | int | str]:
        """How files become colours, and how many rows are cut off."""
        return {**self.source.reading, "rows_cut_off": BANNER_HEIGHT}

    def read(self, key: str) -> Image.Image:
        """Decode one picture and cut its lowest 20 pixels; a KeMetricError names one that has no more than those."""
        image = self.source.read(key)
        if image.height <= BANNER_HEIGHT:
            raise KeMetricError(
                f"{key}: {image.width}x{image.height} pixels, of which data.crop_banner = true would leave nothing; "
                f"the strip has {BANNER_HEIGHT}",
                ExitCode.DATA,
            )
        return image.crop((0, 0, image.width, image.height - BANNER_HEIGHT))

    def content(self, key: str) -> str:
        """Return the digest of the file, strip and all."""
        return self.source.content(key)


def read_aircraft(data: Data) -> Benchmark:
    """Read the variants of FGVC-Aircraft with their official parts.

    `data.root` is the folder fgvc-aircraft-2013b, its folder data, or the one above it.
    """
    found = find_layout(data, [LAYOUTS["aircraft"]])
    variants = [row.cells[0] for row in read_rows(found.paths["variants"], ("variant",), header=False)]
    class_of = {variant: position for position, variant in enumerate(variants)}
    banner = {"pictures": f"without the lowest {BANNER_HEIGHT} pixels"} if data.crop_banner else {}
    table = Table(
        origin=found.paths["train"],
        folder=found.paths["pictures"],
        train=_aircraft_rows(found.paths["train"], class_of),
        validation=_aircraft_rows(found.paths["validation"], class_of),
        query=_aircraft_rows(found.paths["test"], class_of),
        gallery=None,
        class_names=dict(enumerate(variants)),
        notes={**found.notes("official: images_variant_{train,val,test}.txt"), **banner},
    )
    files = FolderSource(table.folder, Decoding.of_recipe(data))
    source = BannerlessSource(files) if data.crop_banner else files
    return build_classification(data, table, COUNTS["aircraft"], source=source)


def _aircraft_rows(path: Path, class_of: Mapping[str, int]) -> list[TableRow]:
    """Return the pictures of one part in the order of their ids."""
    rows = []
    for listed in read_rows(path, ("image", "variant"), header=False):
        image_id, variant = listed.cells
        if variant not in class_of:
            raise KeMetricError(
                f"{listed.where}: the variant {variant!r} is not in variants.txt{closest(variant, class_of)}; lists "
                "of families or manufacturers are another task",
                ExitCode.DATA,
            )
        rows.append(TableRow(key_below(f"{image_id}.jpg", listed.where), class_of[variant]))
    return sorted(rows)


class _Dog(NamedTuple):
    """One listed picture, and `file, image n` for errors."""

    row: TableRow
    where: str


def read_dogs(data: Data) -> Benchmark:
    """Read Stanford Dogs with its official lists.

    `data.root` is the folder with Images/ and the .mat lists, or the one above it.
    """
    found = find_layout(data, [LAYOUTS["dogs"]])
    train, test = _dogs(found.paths["train"]), _dogs(found.paths["test"])
    table = Table(
        origin=found.paths["train"],
        folder=found.paths["pictures"],
        train=_by_path(dog.row for dog in train),
        query=_by_path(dog.row for dog in test),
        gallery=None,
        class_names=_breeds([*train, *test]),
        notes=found.notes("official: train_list.mat and test_list.mat"),
    )
    return build_classification(data, table, COUNTS["dogs"])


def _dogs(path: Path) -> list[_Dog]:
    """Read a list; paths look like `n02085620-Chihuahua/n02085620_5927.jpg`."""
    files, labels = read_strings(path, "file_list"), read_whole_numbers(path, "labels")
    if len(files) != len(labels):
        raise KeMetricError(f"{path}: {len(files):,} files in file_list, but {len(labels):,} labels", ExitCode.DATA)
    rows = []
    for number, (file, label) in enumerate(zip(files, labels, strict=True), start=1):
        where = f"{path}, image {number}"
        rows.append(_Dog(TableRow(_key_in_folder(file, where, "folder"), label), where))
    return rows


def _breeds(dogs: Sequence[_Dog]) -> dict[int, str]:
    """Name every label by its folder; labels are those of the lists, whatever the order of the folders."""
    folder_of: dict[int, str] = {}
    label_of: dict[str, int] = {}
    for (key, label), where in dogs:
        folder = key.partition("/")[0]
        known_folder, known_label = folder_of.setdefault(label, folder), label_of.setdefault(folder, label)
        if (known_folder, known_label) != (folder, label):
            claim = f"label {label} is {known_folder}" if known_folder != folder else f"that has label {known_label}"
            raise KeMetricError(
                f"{where}: label {label} for a picture in {folder}, but by other images {claim}", ExitCode.DATA
            )
    return folder_of


def read_flowers(data: Data) -> Benchmark:
    """Read Flowers102 with its official parts; its classes have numbers instead of names.

    `data.root` is the folder with jpg/ and the two .mat files, or the one above it.
    """
    found = find_layout(data, [LAYOUTS["flowers"]])
    labels, parts = _flower_labels(found.paths["labels"]), found.paths["parts"]
    table = Table(
        origin=parts,
        folder=found.paths["pictures"],
        train=_flower_rows(parts, "trnid", labels),
        validation=_flower_rows(parts, "valid", labels),
        query=_flower_rows(parts, "tstid", labels),
        gallery=None,
        class_names={class_id: f"class {class_id}" for class_id in range(1, FLOWERS + 1)},
        notes=found.notes("official: trnid, valid and tstid of setid.mat"),
    )
    return build_classification(data, table, COUNTS["flowers"])


def _flower_labels(path: Path) -> list[int]:
    """Return the classes of all pictures, the one of picture 1 first."""
    labels = read_whole_numbers(path, "labels")
    for number, class_id in enumerate(labels, start=1):
        if not 1 <= class_id <= FLOWERS:
            raise KeMetricError(
                f"{path}: labels, image {number}: class {class_id}, but classes go from 1 to {FLOWERS}", ExitCode.DATA
            )
    return labels


def _flower_rows(path: Path, part: str, labels: Sequence[int]) -> list[TableRow]:
    """Return the pictures of one part in the order of their numbers."""
    numbers = sorted(read_whole_numbers(path, part))
    for number in (*numbers[:1], *numbers[-1:]):
        if not 1 <= number <= len(labels):
            raise KeMetricError(
                f"{path}: {part}: image {number}, but imagelabels.mat has the classes of images 1 to {len(labels):,}",
                ExitCode.DATA,
            )
    return [TableRow(f"image_{number:05d}.jpg", labels[number - 1]) for number in numbers]


def read_mit67(data: Data) -> Benchmark:
    """Read MIT Indoor-67 with its official lists; pictures that are in neither are not used.

    `data.root` is the folder with Images/ and the two lists, or the one above it.
    """
    found = find_layout(data, [LAYOUTS["mit67"]])
    keys = {part: _rooms(found.paths[part]) for part in ("train", "test")}
    # The lists have no class numbers: they are those of the names in the order of their bytes.
    categories = sorted({key.partition("/")[0] for part in keys.values() for key in part}, key=str.encode)
    class_of = {category: position for position, category in enumerate(categories)}
    rows = {part: _by_path(TableRow(key, class_of[key.partition("/")[0]]) for key in keys[part]) for part in keys}
    table = Table(
        origin=found.paths["train"],
        folder=found.paths["pictures"],
        train=rows["train"],
        query=rows["test"],
        gallery=None,
        class_names=dict(enumerate(categories)),
        notes=found.notes("official: TrainImages.txt and TestImages.txt"),
    )
    return build_classification(data, table, COUNTS["mit67"])


def _rooms(path: Path) -> list[str]:
    """Return the listed paths, `category/file.jpg`, which may hold blanks."""
    rows = read_rows(path, ("path",), header=False)
    return [_key_in_folder(row.cells[0], row.where, "category") for row in rows]


def _key_in_folder(path: str, where: str, folder: str) -> str:
    key = key_below(path, where)
    if key.count("/") != 1:
        raise KeMetricError(f"{where}: expected {folder}/file.jpg, found {key!r}", ExitCode.DATA)
    return key


def _by_path(rows: Iterable[TableRow]) -> list[TableRow]:
    """Return rows in the order of the bytes of their paths."""
    return sorted(rows, key=lambda row: row.key.encode())
