"""FGVC-Aircraft: 100 variants of aircraft, official parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ke_metric.benchmarks.layout import Layout, ListRow, find_layout, read_rows
from ke_metric.benchmarks.listings import key_below
from ke_metric.benchmarks.table import Item, PublishedCounts, Table, build_classification
from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.images.decoding import Decoding
from ke_metric.images.image_set import Benchmark, FolderSource
from ke_metric.recipe.schema import Data

BANNER_HEIGHT = 20
"""Pixels at the bottom of every picture that name its photographer."""


def _places(name: str) -> tuple[str, str]:
    return f"data/{name}", name


LAYOUT = Layout(
    "FGVC-Aircraft (fgvc-aircraft-2013b.tar.gz)",
    {
        "variants": _places("variants.txt"),
        "train": _places("images_variant_train.txt"),
        "validation": _places("images_variant_val.txt"),
        "test": _places("images_variant_test.txt"),
        "pictures": _places("images/"),
    },
)
TRAINVAL = (
    "images_variant_train.txt seems to be a copy of images_variant_trainval.txt, which has the validation part too."
)
COUNTS = PublishedCounts(
    {"train": (3334, 100), "validation": (3333, 100), "test": (3333, 100)},
    class_sizes=(100, 100),
    suspects={13333: TRAINVAL, 10200: "This looks like an older release, with 102 variants; the benchmark is 2013b."},
    remark="The benchmark has 10,000 images of 100 variants, whatever its README says (10,200 of 102).",
)


@dataclass(frozen=True)
class BannerlessSource:
    """Pictures of a folder without the copyright strip at their bottom."""

    source: FolderSource

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


def read_classification(data: Data) -> Benchmark:
    """Read the variants of FGVC-Aircraft with their official parts.

    Args:
        data: The recipe's section; `root` is the folder fgvc-aircraft-2013b, its folder data, or the one above it.

    Raises:
        KeMetricError: Files are missing, malformed or have other counts.
    """
    paths = find_layout(data, [LAYOUT], recognize=_recognize).paths
    variants = [row.cells[0] for row in read_rows(paths["variants"], ("variant",), header=False)]
    class_of = {variant: position for position, variant in enumerate(variants)}
    table = Table(
        origin=paths["train"],
        folder=paths["pictures"],
        train=_items(paths["train"], class_of),
        validation=_items(paths["validation"], class_of),
        query=_items(paths["test"], class_of),
        gallery=None,
        class_names=dict(enumerate(variants)),
        notes={"layout": LAYOUT.name, "split": "official: images_variant_{train,val,test}.txt", **_banner_note(data)},
    )
    if data.verify_counts:
        COUNTS.verify(table)
    files = FolderSource(table.folder, Decoding.of_recipe(data))
    return build_classification(data, table, source=BannerlessSource(files) if data.crop_banner else files)


def _recognize(base: Path) -> str | None:
    for folder in (base / "data", base):
        if (folder / "images_variant_trainval.txt").is_file() and not (folder / "images").is_dir():
            return (
                f"{folder} has the lists but no pictures: this looks like fgvc-aircraft-2013b-annotations.tar.gz; "
                "the archive with the pictures is fgvc-aircraft-2013b.tar.gz (2.75 GB)."
            )
    return None


def _banner_note(data: Data) -> dict[str, str]:
    return {"pictures": f"without the lowest {BANNER_HEIGHT} pixels"} if data.crop_banner else {}


def _items(path: Path, class_of: Mapping[str, int]) -> list[Item]:
    """Return the pictures of one part in the order of their ids."""
    return sorted(_item(row, class_of) for row in read_rows(path, ("image", "variant"), header=False))


def _item(row: ListRow, class_of: Mapping[str, int]) -> Item:
    image_id, variant = row.cells
    if variant not in class_of:
        raise KeMetricError(
            f"{row.where}: the variant {variant!r} is not in variants.txt{closest(variant, class_of)}; lists of "
            "families or manufacturers are another task",
            ExitCode.DATA,
        )
    return Item(key_below(f"{image_id}.jpg", row.where), class_of[variant])
