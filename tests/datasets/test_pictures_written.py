"""A benchmark's pictures as files: names that every file system takes, parts, pixels, whole or not at all."""

import csv
import unicodedata
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ke_metric.datasets.pictures import LONGEST_NAME, RESERVED, safe_name, write_pictures
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.image_set import Benchmark, ImageSet


@dataclass(frozen=True)
class Noise:
    """Random pixels that depend on the key."""

    broken: str = ""

    def read(self, key):
        if key == self.broken:
            raise KeMetricError(f"{key}: cannot be decoded", ExitCode.DATA)
        return Image.fromarray(
            np.random.default_rng(zlib.crc32(key.encode())).integers(0, 256, (7, 9, 3)).astype(np.uint8)
        )


NOISE = Noise()


def image_set(rows, names, source=NOISE):
    return ImageSet(
        tuple(key for key, _ in rows), np.array([label for _, label in rows], np.int64), tuple(names), source
    )


def benchmark_of(rows, names, *, gallery=None, source=NOISE):
    train = image_set([("t/1.jpg", 0), ("t/2.jpg", 1)], ["x", "y"], source)
    query = image_set(rows, names, source)
    return Benchmark("b", train, query, query if gallery is None else image_set(gallery, names, source))


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def rows_of(folder):
    with (folder / "pictures.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_first_picture_of_a_class_is_a_query_and_the_rest_the_gallery(tmp_path):
    rows = [("a/1.jpg", 1), ("b/1.jpg", 0), ("a/2.jpg", 1), ("b/2.jpg", 0), ("b/3.jpg", 0)]
    written = write_pictures(benchmark_of(rows, ["crow", "jay"]), tmp_path / "p")
    assert files_below(tmp_path / "p") == [
        "gallery/crow/2.png", "gallery/crow/3.png", "gallery/jay/2.png", "pictures.csv",
        "query/crow/1.png", "query/jay/1.png",
    ]  # fmt: skip
    assert written.counts == {"query": 2, "gallery": 3}
    assert written.classes == 2
    assert [(row["path"], row["label"], row["split"], row["key"]) for row in rows_of(tmp_path / "p")][:3] == [
        ("query/jay/1.png", "jay", "query", "a/1.jpg"),
        ("query/crow/1.png", "crow", "query", "b/1.jpg"),
        ("gallery/jay/2.png", "jay", "gallery", "a/2.jpg"),
    ]


def test_query_and_gallery_of_the_benchmark_stay(tmp_path):
    # The same picture may be in both; a class keeps its folder in both.
    query, gallery = [("a/1", 0), ("b/1", 1)], [("a/1", 0), ("a/2", 0), ("b/2", 1)]
    benchmark = benchmark_of(query, ["crow", "CROW"], gallery=gallery)
    assert write_pictures(benchmark, tmp_path / "p").counts == {"query": 2, "gallery": 3}
    assert files_below(tmp_path / "p") == [
        "gallery/CROW-2/2.png", "gallery/crow/1.png", "gallery/crow/2.png", "pictures.csv",
        "query/CROW-2/1.png", "query/crow/1.png",
    ]  # fmt: skip


def test_the_training_part(tmp_path):
    write_pictures(benchmark_of([("a", 0)], ["c"]), tmp_path / "p", part="train")
    assert files_below(tmp_path / "p") == ["pictures.csv", "train/x/1.png", "train/y/2.png"]


def test_no_pixel_changes(tmp_path):
    benchmark = benchmark_of([(f"k/{n}", n % 3) for n in range(20)], ["a", "b", "c"])
    done = []
    write_pictures(benchmark, tmp_path / "p", progress=lambda *counts: done.append(counts))
    for row in rows_of(tmp_path / "p"):
        with Image.open(tmp_path / "p" / row["path"]) as image:
            assert image.mode == "RGB"
            assert np.array_equal(np.asarray(image), np.asarray(Noise().read(row["key"])))
    assert done == [(n, 20) for n in range(1, 21)]


def test_what_cannot_be_decoded_leaves_nothing(tmp_path):
    benchmark = benchmark_of([("a/1", 0), ("a/2", 0)], ["c"], source=Noise("a/2"))
    with pytest.raises(KeMetricError, match="a/2: cannot be decoded"):
        write_pictures(benchmark, tmp_path / "new" / "p")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_refused(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(KeMetricError, match="not an empty folder"):
        write_pictures(benchmark_of([("a", 0)], ["c"]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("U+0041 LATIN CAPITAL LETTER A", "U+0041 LATIN CAPITAL LETTER A"),
        ("F-16A/B", "F-16A_B"),
        ('a\\b:c*d?e"f<g>h|i\0j\nk', "a_b_c_d_e_f_g_h_i_j_k"),
        ("..", "_"),
        (".hidden", "hidden"),
        ("trailing. .", "trailing"),
        ("", "_"),
        ("NUL", "NUL_"),
        ("com1.jpeg", "com1.jpeg_"),
        ("Krähe 鸦", "Krähe 鸦"),
        ("x" * 300, "x" * LONGEST_NAME),
    ],
)
def test_names_that_every_file_system_takes(text, name):
    assert safe_name(text) == name


@given(st.text())
def test_no_name_is_special(text):
    name = safe_name(text)
    assert 1 <= len(name.encode()) <= 4 * LONGEST_NAME + 1
    assert not set(name) & set('/\\:*?"<>|\0\r\n')
    assert name.strip(" .") == name
    assert name.partition(".")[0].strip().casefold() not in RESERVED
    assert Path(name).name == name


KEYS = st.text(alphabet="aAﬁfi/.éÉe\u0301 ", min_size=1)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(KEYS, st.integers(0, 3)), min_size=1, unique_by=lambda row: row[0]),
    names=st.lists(st.text(alphabet="aA./é\u0301e", max_size=3), min_size=4, max_size=4, unique=True),
)
def test_no_two_pictures_share_a_file_where_case_does_not_count(rows, names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("p") / "p"
    write_pictures(benchmark_of(rows, names), folder)
    written = rows_of(folder)
    assert sorted(row["key"] for row in written) == sorted(key for key, _ in rows)
    assert files_below(folder) == sorted([*(row["path"] for row in written), "pictures.csv"])
    folded = {unicodedata.normalize("NFKD", row["path"]).casefold() for row in written}
    assert len(folded) == len(rows)
    folders = {(row["label"], Path(row["path"]).parts[1]) for row in written}
    assert len({label for label, _ in folders}) == len(folders) == len({name.casefold() for _, name in folders})
