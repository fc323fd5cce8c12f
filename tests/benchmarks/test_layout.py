"""Finding files: where they may lie, and what is said when they do not."""

from dataclasses import replace

import pytest

from ke_metric.benchmarks.layout import Hint, Layout, find_layout
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.schema import Data

LISTED = Layout("listed", {"list": ["list.txt", "Eval/list.txt"], "pictures": ["images/"]})
PACKED = Layout("packed", {"pack": ["all.bin"]})


def write(base, *places):
    for place in places:
        path = base / place
        if place.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def find(root, layouts=(LISTED, PACKED)):
    return find_layout(Data(benchmark="cub", root=str(root)), layouts)


def refused(root, **named):
    with pytest.raises(KeMetricError) as raised:
        find(root, **named)
    assert raised.value.exit_code is ExitCode.DATA
    return str(raised.value)


def test_files_lie_in_the_root_or_one_folder_below(tmp_path):
    write(tmp_path / "top", "list.txt", "images/")
    for root in (tmp_path, tmp_path / "top"):
        found = find(root)
        assert found.layout is LISTED
        assert found.base == tmp_path / "top"
        assert found.paths == {"list": tmp_path / "top" / "list.txt", "pictures": tmp_path / "top" / "images"}


def test_the_usual_place_wins(tmp_path):
    write(tmp_path, "list.txt", "Eval/list.txt", "images/")
    assert find(tmp_path).paths["list"] == tmp_path / "list.txt"


def test_a_folder_in_a_folder_of_its_own_name_is_looked_into(tmp_path):
    write(tmp_path, "list.txt", "images/images/")
    assert find(tmp_path).paths["pictures"] == tmp_path / "images" / "images"


def test_the_first_complete_layout_wins(tmp_path):
    write(tmp_path, "list.txt", "all.bin")
    assert find(tmp_path).layout is PACKED
    write(tmp_path, "images/")
    assert find(tmp_path).layout is LISTED


def test_the_root_wins_over_folders_below(tmp_path):
    write(tmp_path, "all.bin")
    write(tmp_path / "top", "list.txt", "images/")
    assert find(tmp_path).base == tmp_path


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path):
    write(tmp_path, "list.txt/", "images", "all.bin/")
    assert "are not there" in refused(tmp_path)


def test_two_complete_folders_are_refused(tmp_path):
    write(tmp_path / "one", "all.bin")
    write(tmp_path / "two", "all.bin")
    message = refused(tmp_path)
    assert "more than one folder: one, two" in message


def test_the_message_lists_the_layouts_and_what_is_missing(tmp_path):
    write(tmp_path / "top", "list.txt")
    message = refused(tmp_path)
    assert "listed: list.txt, images/" in message
    assert "packed: all.bin" in message
    assert f"Closest: {tmp_path / 'top'} has a part of listed; missing: images/." in message
    assert "ke-metric data prepare cub --from PATH" in message


def test_without_any_file_nothing_is_called_close(tmp_path):
    assert "Closest" not in refused(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "archive.tgz"])
def test_a_root_that_is_no_folder_is_said_to_be_none(tmp_path, name):
    write(tmp_path, "archive.tgz")
    assert "which is no folder" in refused(tmp_path / name)


def test_what_is_recognized_is_said_once(tmp_path):
    write(tmp_path, "one/", "two/", "one/other/", "two/other/", "three/other/", "three/all/")
    hints = (Hint("Another archive.", "other/", "all/"), Hint("{folder} has {path}.", "other/"))
    message = refused(tmp_path, layouts=(LISTED, replace(PACKED, hints=hints)))
    assert message.count("Another archive.") == 1
    three = tmp_path / "three"
    assert message.count(" has ") == 1
    assert f"{three} has {three / 'other'}." in message


def test_the_default_root_is_called_a_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeMetricError, match=r"the default of data\.benchmark = cub"):
        find_layout(Data(benchmark="cub"), [PACKED])
    write(tmp_path / "data" / "cub", "all.bin")
    assert find_layout(Data(benchmark="cub"), [PACKED]).layout is PACKED


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "birds", "all.bin")
    assert find("~/birds").base == tmp_path / "birds"
