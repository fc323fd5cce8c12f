"""Which pictures are meant: ids, labels, order, what is passed over, and what is refused."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ke_metric.benchmarks.listings import Columns
from ke_metric.datasets.pictures import write_pictures
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.image_set import Benchmark, FolderSource, labelled_set
from ke_metric.retrieval.picture_list import list_pictures
from ke_metric.stores.contract import LONGEST_TEXT, Item


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def items_of(*sources, **options):
    return list(list_pictures(list(sources), **options).items)


def refused(*sources, **options):
    with pytest.raises(KeMetricError) as caught:
        list_pictures(list(sources), **options)
    assert caught.value.exit_code == ExitCode.DATA
    return str(caught.value)


def test_a_folder_gives_what_lies_below_it_sorted_by_id(tmp_path):
    touch(tmp_path, "b/2.JPG", "b/10.png", "a/deep/er/1.webp", "top.tiff", "B/1.bmp", "b.jpeg")
    assert items_of(tmp_path) == [
        Item(name, str(tmp_path / name), label)
        for name, label in [
            ("B/1.bmp", "B"), ("a/deep/er/1.webp", "a/deep/er"), ("b.jpeg", ""), ("b/10.png", "b"),
            ("b/2.JPG", "b"), ("top.tiff", ""),
        ]
    ]  # fmt: skip


def test_what_is_hidden_or_no_picture_is_passed_over(tmp_path):
    touch(
        tmp_path, ".hidden/1.png", "a/.2.png", "a/notes.txt", "__MACOSX/a/1.png", "a/1.png.part", "a/png", "a/1.png"
    )
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert [item.id for item in items_of(tmp_path)] == ["a/1.png"]


def test_links_are_followed_by_every_name_and_never_in_a_circle(tmp_path):
    root = touch(tmp_path / "root", "z/1.png", "z/y/2.png")
    outside = touch(tmp_path / "outside", "3.png")
    (root / "a").symlink_to(root / "z")
    (root / "z" / "circle").symlink_to(root)
    (root / "self").symlink_to("self")
    (root / "far").symlink_to(outside)
    (outside / "back").symlink_to(root)
    (root / "link.png").symlink_to(root / "z" / "1.png")
    assert [(item.id, item.label) for item in items_of(root)] == [
        ("a/1.png", "a"), ("a/y/2.png", "a/y"), ("far/3.png", "far"), ("link.png", ""), ("z/1.png", "z"),
        ("z/y/2.png", "z/y"),
    ]  # fmt: skip


def test_a_link_to_nothing_is_listed_so_that_it_can_be_reported(tmp_path):
    touch(tmp_path, "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "gone.png")
    assert [item.id for item in items_of(tmp_path)] == ["1.png", "2.png"]


def test_a_file_is_taken_whatever_its_suffix(tmp_path):
    touch(tmp_path, "a/picture", "b/2.png")
    assert items_of(tmp_path / "b" / "2.png", tmp_path / "a" / "picture") == [
        Item("2.png", str(tmp_path / "b" / "2.png")),
        Item("picture", str(tmp_path / "a" / "picture")),
    ]


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    touch(tmp_path, "a/b/1.png")
    monkeypatch.chdir(tmp_path / "a")
    for source in (Path("b"), Path("../a/b"), Path("./b/")):
        assert items_of(source) == [Item("1.png", str(tmp_path / "a/b/1.png"))]


def test_a_csv_file_lists_paths_relative_to_itself(tmp_path):
    touch(tmp_path / "d", "x/2.png", "x/1.png")
    (tmp_path / "d" / "list.csv").write_text("label,path,split\ncrow,x/2.png,query\njay,./x//1.png,anything\n")
    assert items_of(tmp_path / "d" / "list.csv") == [
        Item("x/2.png", str(tmp_path / "d/x/2.png"), "crow"),
        Item("x/1.png", str(tmp_path / "d/x/1.png"), "jay"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,label\na,b\n", "no column 'path'"),
        ("path,label\n../a.png,b\n", "leaves the data folder"),
        ("path,label\n", "no rows"),
        ("path,label\na.png,b\na.png,c\n", "more than one label"),
        ("path,label\na.png,b\na.png,b\n", "a.png: is named twice"),
    ],
)
def test_csv_files_that_are_refused(text, words, tmp_path):
    touch(tmp_path, "a.png")
    (tmp_path / "list.csv").write_text(text)
    assert words in refused(tmp_path / "list.csv")


def test_a_csv_of_pictures_that_are_only_looked_at_needs_no_labels(tmp_path):
    touch(tmp_path, "a.png", "b.png", "elsewhere/c.png")
    file = tmp_path / "d" / "list.csv"
    touch(tmp_path, "d/a.png", "d/b.png")
    a, b = (Item(name, str(tmp_path / "d" / name), "") for name in ("a.png", "b.png"))
    for text in ("path\na.png\nb.png\n", "path;split\na.png;x\nb.png;y\n", "path,label\na.png,\nb.png,\n"):
        file.write_text(text)
        assert items_of(file) == items_of(file, labels=False) == [a, b]
    file.write_text("path,label\na.png,crow\nb.png,\n")
    assert items_of(file) == [Item(a.id, a.path, "crow"), b]
    file.write_text("path,width\na.png,3\nb.png,4\n")
    assert items_of(file, labels=False) == [a, b]
    assert "--no-labels" in refused(file)
    file.write_text("path\na.png\n")
    assert "no column 'class'" in refused(file, columns=Columns("path", "class"))
    assert items_of(file, columns=Columns("path", "class"), labels=False) == [a]
    for text in ("label\na.png\n", "split\na.png\n", ""):
        file.write_text(text)
        assert "no column 'path'" in refused(file)
    file.write_text("path,label\na.png,b\n,b\n")
    assert "line 3: path '' must not be empty" in refused(file)
    outside = str(tmp_path / "elsewhere" / "c.png")
    file.write_text(f"path,label\na.png,b\n{tmp_path}/./elsewhere//c.png,\n")
    assert items_of(file) == [Item(a.id, a.path, "b"), Item(outside, outside, "")]


def test_a_csv_none_of_whose_pictures_is_there_says_where_paths_begin(tmp_path):
    touch(tmp_path, "photos/a.png", "lists/x").joinpath("lists/list.csv").write_text("path,label\nphotos/a.png,b\n")
    said = refused(tmp_path / "lists" / "list.csv")
    assert str(tmp_path / "lists" / "photos" / "a.png") in said
    assert "relative to the folder of the CSV file" in said


def test_labels_can_be_forgotten(tmp_path):
    touch(tmp_path, "a/1.png")
    assert items_of(tmp_path, labels=False) == [Item("a/1.png", str(tmp_path / "a/1.png"))]


def test_the_same_id_twice_names_both_pictures(tmp_path):
    touch(tmp_path, "one/a/1.png", "two/a/1.png", "two/a/2.png")
    said = refused(tmp_path / "one", tmp_path / "two")
    assert "'a/1.png'" in said
    assert str(tmp_path / "one/a/1.png") in said
    assert str(tmp_path / "two/a/1.png") in said
    assert [item.id for item in items_of(tmp_path / "one", tmp_path / "two", unique=False)] == [
        "a/1.png", "a/1.png", "a/2.png",
    ]  # fmt: skip
    assert "is named twice" in refused(tmp_path / "one", tmp_path / "one")


def test_nothing_there_is_refused(tmp_path):
    assert "no such file or folder" in refused(tmp_path / "none")
    assert "no such file or folder" in refused(tmp_path / "none.csv")
    touch(tmp_path, "notes.txt")
    assert "no pictures in" in refused(tmp_path)


def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    touch(tmp_path, "a/1.png")
    monkeypatch.setattr(os, "scandir", denied)
    assert f"{tmp_path}: cannot be read: Permission denied" in refused(tmp_path)


def test_names_that_no_index_can_hold_are_left_out_and_told(tmp_path):
    touch(tmp_path, "good.png")
    (tmp_path / os.fsdecode(b"b\xe4d.png")).write_bytes(b"")
    listed = list_pictures([tmp_path])
    assert [item.id for item in listed.items] == ["good.png"]
    (left_out,) = listed.left_out
    assert "not UTF-8" in left_out.reason
    assert r"b\udce4d.png" in left_out.name
    left_out.reason.encode()


def test_a_path_that_is_too_long_is_left_out_and_told(tmp_path):
    deep = tmp_path.joinpath(*["d" * 200] * (LONGEST_TEXT // 200 + 1))
    touch(deep, "1.png")
    touch(tmp_path, "2.png")
    listed = list_pictures([tmp_path])
    assert [item.id for item in listed.items] == ["2.png"]
    assert "longer than 1,024 characters" in listed.left_out[0].reason


def test_a_name_that_no_file_can_have_is_told():
    assert "cannot be read: File name too long" in refused(Path("x" * 5000))


NAMES = st.text(alphabet="ab.", min_size=1, max_size=3).filter(lambda name: name.strip("."))


@settings(max_examples=50, deadline=None)
@given(paths=st.sets(st.tuples(NAMES, NAMES).map("/".join) | NAMES, min_size=1, max_size=8))
def test_a_folder_gives_what_a_plain_walk_gives(paths, tmp_path_factory):
    root = tmp_path_factory.mktemp("r")
    for path in paths:
        touch(root, f"{path}.png")
    twin = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*.png")
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    if not twin:
        assert "no pictures" in refused(root)
        return
    items = items_of(root)
    assert [item.id for item in items] == twin
    assert all(Path(item.path) == root / item.id for item in items)
    assert all(item.label == item.id.rpartition("/")[0] for item in items)


def test_labels_of_written_pictures_are_the_names_of_their_classes(tmp_path):
    """`data pictures` makes folders that every file system takes, and lists what the classes are called."""
    touch(tmp_path, "x/A.jpg", "x/B.jpg", "y/A.jpg", "y/B.jpg")
    source = FolderSource(tmp_path)
    for path in ("x/A.jpg", "x/B.jpg", "y/A.jpg", "y/B.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / path)
    images = labelled_set(["x/A.jpg", "x/B.jpg", "y/A.jpg", "y/B.jpg"], [0, 0, 1, 1], {0: "A/a", 1: "A:a"}, source)
    written = tmp_path / "written"
    write_pictures(Benchmark("mine", images, images, images), written)
    assert {(item.id, item.label) for item in items_of(written)} == {
        ("query/A_a/A.png", "A/a"), ("gallery/A_a/B.png", "A/a"), ("query/A_a-2/A.png", "A:a"),
        ("gallery/A_a-2/B.png", "A:a"),
    }  # fmt: skip
    assert {(item.id, item.label) for item in items_of(written / "gallery")} == {
        ("A_a/B.png", "A/a"), ("A_a-2/B.png", "A:a"),
    }  # fmt: skip
    assert items_of(written / "query" / "A_a-2" / "A.png")[0].label == "A:a"
    assert list_pictures([written]).skipped == ()
    (written / "gallery" / "A_a" / "more.png").write_bytes(b"")
    added = [item.label for item in items_of(written / "gallery") if item.id == "A_a/more.png"]
    assert added == ["A_a"], "what the list does not have is told by its folder"


def test_another_list_of_that_name_says_nothing(tmp_path):
    touch(tmp_path, "x/1.png")
    (tmp_path / "pictures.csv").write_text("path,label\nx/1.png,crow\n")
    assert [item.label for item in items_of(tmp_path)] == ["x"]
    assert list_pictures([tmp_path]).skipped == ("pictures.csv",)


@pytest.mark.parametrize("kind", [str, Path])
def test_one_path_is_no_list_of_them(tmp_path, kind):
    touch(tmp_path, "crow/1.png")
    with pytest.raises(KeMetricError, match="must be a list of paths") as raised:
        list_pictures(kind(tmp_path))
    assert raised.value.exit_code == ExitCode.DATA
    assert [item.id for item in list_pictures([str(tmp_path)]).items] == ["crow/1.png"]
