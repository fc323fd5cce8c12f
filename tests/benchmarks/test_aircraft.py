"""FGVC-Aircraft."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ke_metric.benchmarks import official_lists
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.image_set import FolderSource
from ke_metric.recipe.schema import Data

VARIANTS = ("Fokker 100", "707-320", "F-16A/B", "Cessna 172", "DR-400", "A318")
PARTS = ("train", "val", "test")


@pytest.fixture
def root(make_aircraft, tmp_path):
    return make_aircraft(tmp_path)


def read(root, **fields):
    data = Data(benchmark="aircraft", root=str(root), **{"verify_counts": False, **fields})
    return official_lists.read_aircraft(data)


def refused(root, **fields):
    with pytest.raises(KeMetricError) as raised:
        read(root, **fields)
    assert raised.value.exit_code is ExitCode.DATA
    return str(raised.value)


def list_of(root, part):
    return root / "data" / f"images_variant_{part}.txt"


def images_of(benchmark):
    return dict(zip(PARTS, (benchmark.train, benchmark.validation, benchmark.query), strict=True))


def test_the_fixture_has_the_line_ends_to_be_coped_with(root):
    assert b"\r\n" in list_of(root, "val").read_bytes()
    assert not list_of(root, "test").read_bytes().endswith(b"\n")


def test_labels_are_the_positions_in_the_list_of_variants(root):
    benchmark = read(root)
    assert benchmark.train.class_names == VARIANTS
    for part, images in images_of(benchmark).items():
        listed = dict(line.split(" ", 1) for line in list_of(root, part).read_text().split("\n") if line)
        found = {
            key.removesuffix(".jpg"): VARIANTS[label] for key, label in zip(images.keys, images.labels, strict=True)
        }
        assert found == listed


def test_ids_keep_their_leading_zeros(root):
    assert all(len(key) == len("0034309.jpg") and key.startswith("0") for key in read(root).train.keys)


variant_names = st.lists(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9 /()-]{0,8}[A-Za-z0-9]", fullmatch=True), min_size=2, max_size=4, unique=True
)


@settings(max_examples=30, deadline=None)
@given(variant_names, st.lists(st.integers(0, 9_999_999), min_size=12, max_size=12, unique=True), st.randoms())
def test_any_names_and_ids_are_read_back(tmp_path_factory, variants, numbers, random):
    data = tmp_path_factory.mktemp("aircraft")
    (data / "images").mkdir()
    (data / "variants.txt").write_text("\n".join(variants))
    listed = {}
    for position, part in enumerate(PARTS):
        ids = [f"{number:07d}" for number in numbers[4 * position : 4 * position + 4]]
        listed[part] = {image_id: variants[place % len(variants)] for place, image_id in enumerate(ids)}
        rows = [f"{image_id} {variant}" for image_id, variant in listed[part].items()]
        random.shuffle(rows)
        (data / f"images_variant_{part}.txt").write_text("\n".join(rows))
        for image_id in ids:
            (data / "images" / f"{image_id}.jpg").touch()
    for part, images in images_of(read(data)).items():
        assert list(images.keys) == [f"{image_id}.jpg" for image_id in sorted(listed[part])]
        assert [variants[label] for label in images.labels] == [listed[part][key[:7]] for key in images.keys]


@pytest.mark.parametrize("deeper", ["", "data"])
def test_the_folder_data_is_accepted_as_root(root, deeper):
    assert len(read(root / deeper).train) == 24


def test_a_variant_that_is_not_in_the_list_is_named_with_the_closest(root):
    path = list_of(root, "val")
    path.write_text(path.read_text().replace("Cessna 172", "Cesna 172", 1))
    message = refused(root)
    assert "images_variant_val.txt, line " in message
    assert "'Cesna 172' is not in variants.txt; did you mean 'Cessna 172'?" in message


def test_a_row_without_variant_is_named(root):
    path = list_of(root, "test")
    path.write_text(path.read_text() + "\n0034309")
    message = refused(root)
    assert "images_variant_test.txt, line 13" in message
    assert "'0034309'" in message


def test_a_list_that_has_the_validation_part_too_is_recognized(root, monkeypatch):
    (root / "data" / "images_variant_trainval.txt").replace(list_of(root, "train"))
    assert "0034" in refused(root)
    counts = official_lists.COUNTS["aircraft"]
    assert counts.suspects[6667 + 3333 + 3333] == official_lists.TRAINVAL
    monkeypatch.setitem(
        official_lists.COUNTS, "aircraft", type(counts)(counts.parts, suspects={60: official_lists.TRAINVAL})
    )
    assert "copy of images_variant_trainval.txt" in refused(root, verify_counts=True)


def test_the_archive_without_pictures_is_recognized(root):
    (root / "data" / "images").rename(root.parent / "elsewhere")
    message = refused(root)
    assert "fgvc-aircraft-2013b-annotations.tar.gz" in message
    assert "missing: data/images/" in message


def test_the_banner_is_cut_off_every_part_when_asked_for(root):
    whole, cut = read(root), read(root, crop_banner=True)
    assert cut.gallery is cut.query
    assert "pictures" in cut.notes
    assert "pictures" not in whole.notes
    for part, images in images_of(cut).items():
        before = images_of(whole)[part]
        assert images.keys == before.keys
        pixels = np.asarray(before.read(1))
        assert pixels.shape[0] == 50
        assert np.array_equal(np.asarray(images.read(1)), pixels[:30])


def test_a_source_without_banner_travels_to_other_processes(root):
    source = read(root, crop_banner=True).train.source
    assert pickle.loads(pickle.dumps(source)) == source


@pytest.mark.parametrize(("height", "fits"), [(20, False), (21, True)])
def test_a_picture_that_is_all_banner_is_named(make_picture, tmp_path, height, fits):
    make_picture(tmp_path / "0000001.jpg", size=(40, height))
    source = official_lists.BannerlessSource(FolderSource(tmp_path))
    if fits:
        assert source.read("0000001.jpg").size == (40, 1)
        return
    with pytest.raises(KeMetricError) as raised:
        source.read("0000001.jpg")
    assert raised.value.exit_code is ExitCode.DATA
    assert "0000001.jpg: 40x20 pixels" in str(raised.value)
