"""The contact sheet: what it shows is what a scoring and a training give a network, one row for a picture."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.cli import main
from ke_metric.datasets import contact_sheet
from ke_metric.datasets.contact_sheet import draw_sheet, sheet_rows
from ke_metric.errors import ExitCode
from ke_metric.images.batches import TrainingEpochs, first_pictures
from ke_metric.images.preparation import Preparation
from ke_metric.recipe.schema import Recipe

CLASSES, EACH, SIZE = 4, 3, 24
STILL = {"scale": [1, 1], "ratio": [1, 1], "flip": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pictures of noise, 24 x 24 pixels, of four classes."""
    folder, generator = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / f"class {label}").mkdir()
        for number in range(2 * EACH):
            pixels = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class {label}" / f"{number}.png")
    return folder


def recipe_of(root, task="classification", sampler="shuffled", size=8, workers=0, **augmentation):
    data = {"benchmark": "folder", "root": str(root), "image_size": SIZE, "store_size": SIZE, "workers": workers}
    return Recipe.model_validate(
        {
            "name": "noise",
            "task": task,
            "data": data,
            "augmentation": augmentation,
            "batches": {"sampler": sampler, "size": size, "images_per_class": 2},
            "evaluation": {"resize": SIZE, "batch_size": 5},
        }
    )


def rows_of(recipe, pictures=6, draws=3):
    return sheet_rows(load_benchmark(recipe.data, recipe.task), recipe, pictures=pictures, draws=draws)


def levels(picture):
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize("sampler", ["shuffled", "class_balanced", "paired"])
@pytest.mark.parametrize("pictures", [1, 6, 12])
def test_a_picture_that_nothing_happens_to_is_the_file_in_every_draw(sampler, pictures, root):
    """12 are more than a batch has: those of the next batches are shown too, if the epoch has any."""
    rows = rows_of(recipe_of(root, sampler=sampler, **STILL), pictures)
    pictures = min(pictures, 8 if sampler == "class_balanced" else 12)
    assert len({row.key for row in rows}) == len(rows) == pictures
    assert len({row.name for row in rows}) == min(pictures, CLASSES)
    for row in rows:
        with Image.open(root / row.key) as image:
            for shown in (row.scored, *row.drawn):
                assert np.array_equal(levels(shown), levels(image))
        assert len(row.drawn) == 3
        assert row.key.startswith(row.name)
        assert row.shares == []


def test_there_are_no_more_rows_than_pictures(root):
    assert len(rows_of(recipe_of(root), 50)) == CLASSES * EACH


def test_draws_are_those_of_a_training_in_successive_epochs(root):
    recipe = recipe_of(root, "retrieval", "class_balanced", 4, workers=2, brightness=0.3, erasing=0.5)
    rows = {row.key: row for row in rows_of(recipe, 4, 3)}
    small, _ = first_pictures(load_benchmark(recipe.data, recipe.task), recipe, 4)
    epochs, how = (
        TrainingEpochs(small, recipe, generation=1, device=torch.device("cpu")),
        Preparation.of_recipe(recipe),
    )
    for number in (1, 2, 3):
        (batch,) = epochs.epoch(number)
        for key, image in zip(batch.keys, batch.images, strict=True):
            seen = torch.from_numpy(np.asarray(rows[key].drawn[number - 1]).copy()) / 255
            again = how.standardize(seen.permute(2, 0, 1)[None])[0]
            # Half a level, in standard deviations.
            assert (again - image).abs().max() <= 0.5 / 255 / min(recipe.data.std) + 1e-5
        assert batch.keys == tuple(dict.fromkeys(batch.keys))


def test_a_picture_that_repeats_in_an_epoch_is_drawn_once_of_it(root):
    """A partner may be a picture of the batch: what is shown is of successive epochs all the same."""
    recipe = recipe_of(root, sampler="paired")
    rows = {row.key: row for row in rows_of(recipe, 6, 3)}
    small, _ = first_pictures(load_benchmark(recipe.data, recipe.task), recipe, 6)
    epochs = TrainingEpochs(small, recipe, generation=1, device=torch.device("cpu"))
    repeated = 0
    for number in (1, 2, 3):
        firsts = {}
        for batch in epochs.epoch(number):
            for key, picture in zip(batch.keys, contact_sheet._pictures([batch.images], recipe), strict=True):
                repeated += key in firsts and key in rows
                firsts.setdefault(key, levels(picture))
        for key, row in rows.items():
            assert np.array_equal(levels(row.drawn[number - 1]), firsts[key])
    assert repeated


def test_mixed_pictures_say_what_they_are_of(root):
    rows = rows_of(recipe_of(root, cutmix=1.0, **STILL), 8, 6)
    told = 0
    for row in rows:
        with Image.open(root / row.key) as image:
            own = levels(image)
        for shown, (share, other) in zip(row.drawn, row.shares, strict=True):
            left = (levels(shown) == own).all(axis=2).mean()
            if other:
                assert share == f"{100 * left:.0f} % its own"
                assert other.split(" % ")[1] in {f"class {label}" for label in range(CLASSES)} - {row.name}
                told += 1
    assert told > 20


def test_pictures_lie_in_rows_and_columns(root):
    rows = rows_of(recipe_of(root), 3, 2)
    sheet = draw_sheet("a title that is longer than two pictures are wide, and is shown whole all the same", rows)
    cell = 4 * SIZE
    for number, row in enumerate(rows):
        for column, picture in enumerate((row.scored, *row.drawn)):
            left, top = contact_sheet._left_of(column, cell), contact_sheet.HEAD + number * (cell + contact_sheet.GAP)
            shown = sheet.crop((left, top, left + cell, top + cell))
            assert np.array_equal(levels(shown), levels(picture).repeat(4, axis=0).repeat(4, axis=1))
    assert {pixel[1] for pixel in sheet.crop((sheet.width - 8, 0, sheet.width, sheet.height)).getcolors()} == {
        (0xE4, 0xE6, 0xE9)
    }


def test_captions_of_mixed_pictures_lie_below_them(root):
    plain, mixed = (draw_sheet("title", rows_of(recipe_of(root, **more), 2, 2)) for more in ({}, {"mixup": 0.4}))
    assert mixed.height == plain.height + 2 * contact_sheet.CAPTION * contact_sheet.LINE


@pytest.fixture
def recipe(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise.yaml").write_text(recipe_of(root).to_yaml())


def show(*arguments):
    return CliRunner().invoke(main, ["data", "show", "noise.yaml", *arguments])


@pytest.mark.usefixtures("recipe")
def test_the_command_writes_a_sheet_over_what_is_there(tmp_path):
    sheet = tmp_path / "sheet.png"
    sheet.write_text("old")
    result = show("--to", "sheet.png", "--pictures", "3", "--draws", "2", "--set", "augmentation.mixup=0.2", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert len(document.pop("keys")) == 3
    assert document == {
        "sheet": "sheet.png",
        "bytes": sheet.stat().st_size,
        "benchmark": "folder",
        "pictures": 3,
        "draws": 2,
        "image_size": SIZE,
    }
    with Image.open(sheet) as image:
        assert image.format == "PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["noise.yaml", "sheet.png"]
    result = show("--to", "sheet.png")
    assert result.stdout.startswith("12 of 12 training pictures of folder, 8 draws of each: sheet.png (")
    assert "folder, one draw of each: sheet.png (" in show("--to", "sheet.png", "--draws", "1").stdout


@pytest.mark.usefixtures("recipe")
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--to", "sheet.jpg"], ExitCode.USAGE, "must end in .png"),
        (["--to", "none/sheet.png"], ExitCode.USAGE, "there is no such folder"),
        (["--to", "s.png", "--draws", "0"], ExitCode.USAGE, "0 is not in the range"),
        ([], ExitCode.USAGE, "--to"),
        (["--to", "s.png", "--set", "augmentation.mixup=-1"], ExitCode.RECIPE, "augmentation.mixup = -1"),
        (["--to", "s.png", "--set", "batches.size=1"], ExitCode.RECIPE, "batches.size = 1"),
        (["--to", "s.png", "--set", "data.root=nowhere"], ExitCode.DATA, "nowhere"),
    ],
)
def test_what_cannot_be_shown_is_said(arguments, code, words, tmp_path):
    result = show(*arguments)
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["noise.yaml"]
