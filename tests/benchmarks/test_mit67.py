"""MIT Indoor-67."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ke_metric.benchmarks import official_lists
from ke_metric.benchmarks.table import PublishedCounts
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.schema import Data

LISTS = ("TrainImages.txt", "TestImages.txt")


@pytest.fixture
def root(make_mit67, tmp_path):
    return make_mit67(tmp_path / "mit67")


def read(root, **fields):
    return official_lists.read_mit67(Data(benchmark="mit67", root=str(root), **{"verify_counts": False, **fields}))


def refused(root, **fields):
    with pytest.raises(KeMetricError) as raised:
        read(root, **fields)
    assert raised.value.exit_code is ExitCode.DATA
    return str(raised.value)


def test_the_fixture_has_the_line_ends_to_be_coped_with(root):
    train, test = ((root / name).read_bytes() for name in LISTS)
    assert not train.endswith(b"\n")
    assert not test.endswith(b"\n")
    assert b"\r\n" in test


def test_classes_are_the_categories_in_the_order_of_their_bytes(root):
    benchmark = read(root)
    assert benchmark.train.class_names == ("bar", "children_room", "church_inside", "mall", "tv_studio", "winecellar")
    for images in (benchmark.train, benchmark.query):
        for key, label in zip(images.keys, images.labels, strict=True):
            assert images.class_names[label] == key.partition("/")[0]


def test_a_path_with_a_blank_is_one_path(root):
    assert "mall/train mall_0_altavista.jpg" in read(root).train.keys


files = st.lists(
    st.from_regex(r"[a-z_]{1,6}[ A-Z0-9]?[a-z0-9]\.jpg", fullmatch=True), min_size=2, max_size=5, unique=True
)


@settings(max_examples=30, deadline=None)
@given(
    categories=st.lists(st.from_regex(r"[a-zA-Z_]{1,8}", fullmatch=True), min_size=2, max_size=4, unique=True),
    names=files,
    line_end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
    random=st.randoms(),
)
def test_any_lists_are_read_back(tmp_path_factory, categories, names, line_end, last, random):
    root = tmp_path_factory.mktemp("mit67")
    listed = {"Train": [], "Test": []}
    for category in categories:
        (root / "Images" / category).mkdir(parents=True)
        for name in names:
            (root / "Images" / category / name).touch()
        listed["Train"] += [f"{category}/{name}" for name in names[1:]]
        listed["Test"].append(f"{category}/{names[0]}")
    for part, paths in listed.items():
        random.shuffle(paths)
        (root / f"{part}Images.txt").write_bytes((line_end.join(paths) + line_end * last).encode())
    benchmark = read(root)
    assert benchmark.train.class_names == tuple(sorted(categories, key=str.encode))
    assert list(benchmark.train.keys) == sorted(listed["Train"], key=str.encode)
    assert list(benchmark.query.keys) == sorted(listed["Test"], key=str.encode)


def test_the_pictures_may_lie_nested_beside_the_lists_as_in_a_web_copy(root):
    before = read(root)
    (root / "indoorCVPR_09").mkdir()
    (root / "Images").rename(root / "indoorCVPR_09" / "Images")
    assert read(root).train.keys == before.train.keys


@pytest.mark.parametrize("wrong", ["picture.jpg", "Images/bar/picture.jpg", "../bar/picture.jpg"])
def test_a_path_of_another_form_is_named_with_its_line(root, wrong):
    path = root / "TestImages.txt"
    path.write_text(path.read_text() + f"\n{wrong}")
    message = refused(root)
    assert "TestImages.txt, line 13" in message
    assert repr(wrong) in message


def test_a_category_that_is_not_trained_on_is_named(root):
    path = root / "TrainImages.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "winecellar" not in line))
    assert "winecellar" in refused(root)


def test_an_image_in_both_lists_is_named(root):
    path = root / "TestImages.txt"
    path.write_text(path.read_text() + "\nbar/train_bar_1_altavista.jpg")
    assert "bar/train_bar_1_altavista.jpg" in refused(root)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (14280, 1340, "every image that is not in the test list"),
        (15620, 1340, "all 15,620 images"),
        (5360, 5360, "Both lists seem to be TrainImages.txt"),
        (1340, 1340, "Both lists seem to be TestImages.txt"),
    ],
)
def test_wrong_lists_are_recognized_by_their_length(train, test, said):
    assert said in official_lists.COUNTS["mit67"].suspects[train + test]


def test_the_suspicion_is_said(root, monkeypatch):
    counts = official_lists.COUNTS["mit67"]
    small = PublishedCounts(counts.parts, suspects={36: counts.suspects[15620]})
    monkeypatch.setitem(official_lists.COUNTS, "mit67", small)
    assert "not in the test list" in refused(root, verify_counts=True)


def test_pictures_without_lists_are_recognized(root):
    for name in LISTS:
        (root / name).unlink()
    message = refused(root)
    assert "missing: TrainImages.txt, TestImages.txt" in message
    assert "not in indoorCVPR_09.tar" in message
