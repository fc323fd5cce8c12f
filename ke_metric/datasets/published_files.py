"""The files in which benchmarks are published, with the checksums known for them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ke_metric.errors import ExitCode, KeMetricError


@dataclass(frozen=True)
class PublishedFile:
    """One file of a distribution.

    Attributes:
        name: As published.
        size: In bytes, where published.
        md5: 32 hexadecimal digits, where published.
        sha256: 64 hexadecimal digits, where published.
        place: Folder it belongs in, relative to the data folder; an archive is unpacked there.
    """

    name: str
    size: int | None = None
    md5: str | None = None
    sha256: str | None = None
    place: str = "."

    @property
    def is_archive(self) -> bool:
        """Whether it is unpacked; otherwise it is copied."""
        return self.name.endswith((".tgz", ".tar.gz", ".tar", ".zip", ".whl"))

    @property
    def checksum(self) -> str | None:
        """The strongest published checksum."""
        return self.sha256 or self.md5


@dataclass(frozen=True)
class Distribution:
    """The files that together make up a benchmark."""

    name: str
    files: tuple[PublishedFile, ...]


CUB = PublishedFile(
    "CUB_200_2011.tgz",
    1_150_585_339,
    "97eceeb196236b17998738112f37df78",
    "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
)
CARS_A = (
    PublishedFile("car_ims.tgz", md5="d5c8f0aa497503f355e17dc7886c3f14"),
    PublishedFile("cars_annos.mat", md5="b407c6086d669747186bd1d764ff9dbc"),
)
CARS_B = (
    PublishedFile(
        "cars_train.tgz",
        979_269_282,
        "065e5b463ae28d29e77c1b4b166cfe61",
        "512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
    ),
    PublishedFile(
        "cars_test.tgz",
        977_350_468,
        "4ce7ebf6a94d07f1952d94dd34c4d501",
        "bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
    ),
    PublishedFile(
        "car_devkit.tgz",
        330_960,
        "c3b158d763b6e2245038c8ad08e45376",
        "b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
    ),
    PublishedFile(
        "cars_test_annos_withlabels.mat",
        185_758,
        "b0a2b23655a3edd16d84508592a98d10",
        "790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
    ),
)
SOP = PublishedFile(
    "Stanford_Online_Products.zip",
    3_083_860_082,
    "7f73d41a2f44250d4779881525aea32e",
    "b04fa78210e69fab050ce73939550e1cd0f96890bdd98ec9fee732c3b756ef48",
)
FLOWERS = (
    PublishedFile(
        "102flowers.tgz",
        344_862_509,
        "52808999861908f626f3c1f4e79d11fa",
        "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
    ),
    PublishedFile(
        "imagelabels.mat",
        502,
        "e0620be6f572b9609742df49c70aed4d",
        "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
    ),
    PublishedFile(
        "setid.mat",
        14_989,
        "a5357ecc9cb78c4bef273ce3793fc85c",
        "46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd",
    ),
)
DOGS = (
    PublishedFile(
        "images.tar", 793_579_520, sha256="a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58"
    ),
    PublishedFile("lists.tar", 481_280, sha256="34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c"),
)
# No checksum of In-Shop is public.
INSHOP = (PublishedFile("img.zip", place="Img"), PublishedFile("list_eval_partition.txt", place="Eval"))
# A size (2,770,575,360 bytes, whole tar blocks) and a sha256 that circulate under this name are those of the tar
# inside, as a download that unpacks on the way leaves it. The md5 is that of the file itself.
AIRCRAFT = PublishedFile("fgvc-aircraft-2013b.tar.gz", md5="d4acdd33327262359767eeaa97a4f732")
# No checksum of the pictures is public, and copies of the lists differ in their line ends.
MIT67 = tuple(PublishedFile(name) for name in ("indoorCVPR_09.tar", "TrainImages.txt", "TestImages.txt"))
SOLAR = PublishedFile(
    "elpv_dataset-1.0.0.post1-py3-none-any.whl",
    90_801_454,
    "59ce39e42ef4ffb70979f462ec8e529e",
    "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
)

DISTRIBUTIONS: Mapping[str, tuple[Distribution, ...]] = {
    "cub": (Distribution("CUB-200-2011", (CUB,)),),
    "cars": (Distribution("layout A", CARS_A), Distribution("layout B", CARS_B)),
    "sop": (Distribution("Stanford Online Products", (SOP,)),),
    "inshop": (Distribution("In-Shop Clothes Retrieval", INSHOP),),
    "flowers": (Distribution("Flowers102", FLOWERS),),
    "aircraft": (Distribution("FGVC-Aircraft", (AIRCRAFT,)),),
    "mit67": (Distribution("MIT Indoor-67", MIT67),),
    "dogs": (Distribution("Stanford Dogs", DOGS),),
    "solar": (Distribution("elpv-dataset", (SOLAR,)),),
}
"""Benchmark to the ways it is published; the files of one distribution do not go with those of another."""


def describe(file: PublishedFile) -> str:
    """Return the name of a published file with its benchmark and distribution."""
    for benchmark, distributions in DISTRIBUTIONS.items():
        for distribution in distributions:
            if file in distribution.files:
                return f"{file.name} ({benchmark}, {distribution.name})"
    raise AssertionError(file)


def published_as(path: Path) -> PublishedFile | None:
    """Return the published file of this name, in whatever case; None when there is none."""
    return next((file for file in _all_files() if file.name.casefold() == path.name.casefold()), None)


def identify(path: Path) -> PublishedFile | None:
    """Tell which published file this is: by its name or, when that says nothing, by its md5; None for neither."""
    return published_as(path) or _by_md5(path)


def verify_published(path: Path, file: PublishedFile) -> str:
    """Compare a file with the published one of its name.

    Returns:
        What was found out, in words: that the checksum is right, or that none is published.

    Raises:
        KeMetricError: DATA: another checksum; the message says which file it is or what probably happened to it.
    """
    if file.checksum is None:
        return "no published checksum"
    try:
        verify_checksum(path, file.checksum)
    except KeMetricError as error:
        raise KeMetricError(f"{error}\n{_explain(path, file)}", ExitCode.DATA) from None
    return "sha256 as published" if file.sha256 else "md5 as published"


def file_checksum(path: Path, algorithm: Literal["md5", "sha256"]) -> str:
    """Return the checksum of a file's bytes in lower-case hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def verify_checksum(path: Path, known: str) -> None:
    """Compare a file with its published checksum, 32 (md5) or 64 (sha256) hexadecimal digits.

    Raises:
        KeMetricError: DATA: they differ; expected and found are named.
    """
    assert len(known) in {32, 64}, known
    algorithm: Literal["md5", "sha256"] = "md5" if len(known) == 32 else "sha256"
    found = file_checksum(path, algorithm)
    if found != known.lower():
        raise KeMetricError(f"{path}: {algorithm} {found}, expected {known.lower()}", ExitCode.DATA)


def _explain(path: Path, file: PublishedFile) -> str:
    other, found = _by_md5(path), path.stat().st_size
    if other is not None:
        return f"It is {describe(other)} under the name of {describe(file)}; rename it."
    if file.size is not None and found < file.size:
        return f"The download is incomplete: {found:,} of {file.size:,} bytes."
    sizes = f" ({found:,} bytes, expected {file.size:,})" if file.size is not None else f" ({found:,} bytes)"
    return (
        f"It is not the published {describe(file)}{sizes}: damaged, incomplete or packed anew. Download it again or, "
        "if it comes from a source you trust, unpack it yourself and give the folder."
    )


def _by_md5(path: Path) -> PublishedFile | None:
    md5 = file_checksum(path, "md5")
    return next((file for file in _all_files() if file.md5 == md5), None)


def _all_files() -> list[PublishedFile]:
    return [file for distributions in DISTRIBUTIONS.values() for each in distributions for file in each.files]
