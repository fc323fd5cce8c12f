"""What is found out about pictures is what they are, and what cannot be trained on is refused with what is needed."""

import shutil

import numpy as np
import pytest
from PIL import Image

from ke_metric.benchmarks.listings import Columns
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.suggestion.survey import Mirrored, survey_pictures


def test_sizes_colours_and_classes_are_those_of_the_pictures(folders):
    found = survey_pictures(folders["long"], task="retrieval")
    assert found.sides.median == 120
    assert found.aspects.low == found.aspects.high == 2
    assert found.grey == found.transparent == found.vanished == 0
    assert (found.train_classes, found.class_sizes.smallest, found.class_sizes.largest) == (6, 5, 5)
    assert found.looked_at == 60
    assert found.problems == {}


def test_grey_and_transparent_pictures_are_seen(folders, tmp_path):
    assert survey_pictures(folders["grey"]).grey == 1
    assert survey_pictures(folders["transparent"]).transparent == 1
    for number in range(4):
        path = tmp_path / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGBA", (20, 20 + number), (255, 255, 255, 0)).save(path)
    assert survey_pictures(tmp_path).vanished == 4


def test_a_grey_picture_stored_in_colours_with_loss_is_grey(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(4):
        path = tmp_path / f"class {number % 2}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        smooth = Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).resize((64, 64))
        smooth.convert("RGB").save(path, quality=60)
    assert survey_pictures(tmp_path).grey == 1


def test_which_way_pictures_look_is_measured(folders):
    """A dark stripe of the class's own place is another class's where it is mirrored; noise has no side."""
    leaning = survey_pictures(folders["grey"]).mirrored
    assert leaning.straight > 0.9
    assert leaning.matters
    assert not survey_pictures(folders["transparent"]).mirrored.matters


def test_a_difference_that_chance_explains_does_not_matter():
    assert not Mirrored(20, 0.5, 0.3).matters
    assert Mirrored(1000, 0.5, 0.3).matters
    assert not Mirrored(0, 0.0, 0.0).matters


@pytest.mark.parametrize(("name", "task"), [("pairs", "retrieval"), ("grey", "classification")])
def test_the_task_follows_from_the_number_of_classes(folders, name, task):
    found = survey_pictures(folders[name])
    assert found.benchmark.task == task
    assert found.task_reason
    assert not survey_pictures(folders["pairs"], task="classification").task_reason


@pytest.mark.parametrize(("other", "task"), [("class 00", "classification"), ("class 05", "retrieval")])
def test_the_task_follows_from_parts_that_are_given(folders, tmp_path, other, task):
    for part, names in {"train": ("class 00", "class 01"), "test": (other, "class 06")}.items():
        for name in names:
            shutil.copytree(folders["long"] / name, tmp_path / part / name)
    if task == "classification":
        shutil.move(tmp_path / "test" / "class 06", tmp_path / "test" / "class 01")
    assert survey_pictures(tmp_path).benchmark.task == task


def test_copies_are_counted(folders, tmp_path):
    folder = shutil.copytree(folders["few classes"], tmp_path / "set")
    first = next((folder / "class 00").iterdir())
    shutil.copy(first, folder / "class 00" / "copy.png")
    assert set(survey_pictures(folder).problems) <= {"same image twice", "same image in training and test"}
    assert survey_pictures(folder).problems


def test_a_very_large_folder_is_sampled(folders, monkeypatch):
    monkeypatch.setattr("ke_metric.suggestion.survey.MOST_DECODED", 10)
    assert 5 <= survey_pictures(folders["long"]).looked_at <= 10


def only(source, target, classes, each):
    for folder in sorted(source.iterdir())[:classes]:
        (target / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:each]:
            shutil.copy(path, target / folder.name)
    return target


@pytest.mark.parametrize(
    ("classes", "each", "task", "needed"),
    [
        (1, 5, None, "1 class, 1 of them with 2 pictures or more; needed are at least 2 such classes"),
        (1, 5, "retrieval", "retrieval needs at least 4 such classes.*--task classification needs 2"),
        (3, 5, "retrieval", "3 classes.*needs at least 4"),
        (6, 1, None, "6 classes, 0 of them with 2 pictures or more"),
        (12, 1, None, "12 classes, 0 of them.*needs at least 4"),
    ],
)
def test_what_is_too_little_is_refused_with_what_is_needed(folders, tmp_path, classes, each, task, needed):
    with pytest.raises(KeMetricError, match=needed) as refused:
        survey_pictures(only(folders["long"], tmp_path / "set", classes, each), task=task)
    assert refused.value.exit_code == ExitCode.DATA


def test_parts_of_which_one_cannot_be_used_are_refused(folders, tmp_path):
    only(folders["long"], tmp_path / "train", 1, 5)
    for name in ("class 03", "class 04", "class 05"):
        shutil.copytree(folders["long"] / name, tmp_path / "test" / name)
    with pytest.raises(KeMetricError, match="the training part has 1 class with 2 pictures or more"):
        survey_pictures(tmp_path)


def test_broken_pictures_and_what_is_not_there_are_named(folders, tmp_path):
    folder = shutil.copytree(folders["few classes"], tmp_path / "set")
    (folder / "class 00" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(KeMetricError, match=r"1 of 13 pictures cannot be decoded.*broken.png") as refused:
        survey_pictures(folder)
    assert refused.value.exit_code == ExitCode.DATA
    with pytest.raises(KeMetricError, match="nowhere: does not exist"):
        survey_pictures(tmp_path / "nowhere")


def test_a_list_is_read_by_the_names_of_its_columns(folders, listing):
    with pytest.raises(KeMetricError, match="column"):
        survey_pictures(listing)
    found, same = survey_pictures(listing, columns=Columns("file", "bird")), survey_pictures(folders["pairs"])
    assert (found.sides, found.train_classes, found.looked_at) == (same.sides, same.train_classes, same.looked_at)
