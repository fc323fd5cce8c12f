"""Decoded benchmarks, and the batches that a training and a scoring see of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.batches import TrainingEpochs, evaluation_batches, first_pictures
from ke_metric.images.image_set import Benchmark, ImageSet, without_training
from ke_metric.images.pixel_store import Pictures
from ke_metric.recipe.schema import Recipe

CPU = torch.device("cpu")
IMAGES = 6


class Squares:
    """A square on grey; its colour tells the class, its place the image. Counts what is read."""

    def __init__(self):
        self.reads = []

    def read(self, key):
        self.reads.append(key)
        if key == "broken":
            raise KeMetricError("broken: cannot be decoded", ExitCode.DATA)
        label, image = (int(part) for part in key.split("/")[1:])
        picture = Image.new("RGB", (40, 32), (128, 128, 128))
        colour = (60 * label % 256, 255 - 60 * label % 256, 97 * label % 256)
        picture.paste(colour, (4 * image, 4 * image, 4 * image + 12, 4 * image + 12))
        return picture


def part(name, classes, source):
    keys = tuple(f"{name}/{label}/{image}" for label in range(classes) for image in range(IMAGES))
    labels = np.repeat(np.arange(classes), IMAGES)
    return ImageSet(keys, labels, tuple(f"class {label}" for label in range(classes)), source)


@pytest.fixture
def source():
    return Squares()


@pytest.fixture
def benchmark(source):
    test = part("test", 3, source)
    return Benchmark("squares", part("train", 4, source), test, test)


@pytest.fixture
def classification(source):
    """Train, validation and test part with the same classes."""
    train, validation, test = (part(name, 4, source) for name in ("train", "validation", "test"))
    return Benchmark("squares", train, test, test, {}, validation, "classification")


@pytest.fixture
def pictures(benchmark):
    return Pictures.decode(benchmark, 32)


def recipe_of(sampler="class_balanced", size=8, *, channels_last=True, **augmentation):
    return Recipe.model_validate(
        {
            "name": "squares",
            "data": {"image_size": 24, "store_size": 32},
            "augmentation": augmentation,
            "batches": {"sampler": sampler, "size": size, "images_per_class": 2},
            "evaluation": {"resize": 32, "batch_size": 4},
            "training": {"channels_last": channels_last},
        }
    )


def epochs_of(pictures, recipe, generation=1, **process):
    return TrainingEpochs(pictures, recipe, generation=generation, device=CPU, **process)


def test_every_part_is_decoded_in_its_order(benchmark, pictures):
    for images, store in ((benchmark.train, pictures.train), (benchmark.query, pictures.query)):
        assert len(store) == len(images)
        for index in range(len(images)):
            np.testing.assert_array_equal(store.picture(index), np.asarray(images.read(index)))


def test_one_test_set_is_decoded_once(benchmark, source, pictures):
    assert pictures.gallery is pictures.query
    assert sorted(source.reads) == sorted(benchmark.train.keys + benchmark.query.keys)


def test_a_gallery_of_its_own_is_decoded_too(benchmark, source):
    gallery = part("gallery", 3, source)
    pictures = Pictures.decode(replace(benchmark, gallery=gallery), 32)
    assert pictures.gallery is not pictures.query
    np.testing.assert_array_equal(pictures.gallery.picture(7), np.asarray(gallery.read(7)))


def test_a_scoring_decodes_no_training_picture(benchmark, source):
    small = without_training(benchmark)
    assert small.leave_one_out
    assert len(Pictures.decode(small, 32).train) == 0
    assert sorted(source.reads) == sorted(benchmark.query.keys)
    assert len(benchmark.train) == 24


def test_progress_is_told_for_every_part(benchmark):
    told = []
    Pictures.decode(benchmark, 32, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, total) for total in (24, 18) for done in range(1, total + 1)]


def test_a_validation_part_is_decoded_too(classification, source):
    told = []
    pictures = Pictures.decode(classification, 32, progress=lambda done, total: told.append((done, total)))
    assert pictures.gallery is pictures.query
    np.testing.assert_array_equal(pictures.validation.picture(7), np.asarray(classification.validation.read(7)))
    assert told == [(done, 24) for _ in range(3) for done in range(1, 25)]
    assert sorted(source.reads[:72]) == sorted(
        classification.train.keys + classification.validation.keys + classification.query.keys
    )


def test_without_a_validation_part_there_are_no_pictures_of_it(pictures):
    assert pictures.validation is None


def test_a_scoring_of_a_classification_keeps_the_validation_part(classification, source):
    small = without_training(classification)
    assert small.train.class_names == classification.train.class_names
    assert small.validation is classification.validation
    pictures = Pictures.decode(small, 32)
    assert (len(pictures.train), len(pictures.validation), len(pictures.query)) == (0, 24, 24)
    assert not [key for key in source.reads if key.startswith("train")]


def test_every_part_has_the_shape_asked_for(classification):
    pictures = Pictures.decode(classification, 32, store_shape="square")
    for store in (pictures.train, pictures.validation, pictures.query):
        assert store.picture(3).shape == (32, 32, 3)
    assert Pictures.decode(classification, 32).train.picture(3).shape == (32, 40, 3)


def test_a_picture_that_cannot_be_decoded(benchmark, source):
    broken = ImageSet(("broken",), np.zeros(1, np.int64), ("only",), source)
    with pytest.raises(KeMetricError, match="broken: cannot be decoded") as raised:
        Pictures.decode(replace(benchmark, train=broken), 32)
    assert raised.value.exit_code == ExitCode.DATA


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("sampler", ["class_balanced", "shuffled"])
def test_a_training_batch(sampler, channels_last, benchmark, pictures):
    epochs = epochs_of(pictures, recipe_of(sampler, channels_last=channels_last))
    batches = list(epochs.epoch(1))
    assert len(batches) == len(epochs) == 3
    labels = dict(zip(benchmark.train.keys, benchmark.train.labels.tolist(), strict=True))
    for batch in batches:
        assert batch.images.shape == (8, 3, 24, 24)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert batch.labels.tolist() == [labels[key] for key in batch.keys]


def test_a_training_picture_is_standardised(pictures, benchmark):
    """Augmentation that does nothing but cut the centre: the batch can be worked out by hand."""
    recipe = recipe_of("shuffled", geometry="affine", scale=(1.0, 1.0), flip=0.0)
    batch = next(epochs_of(pictures, recipe).epoch(1))
    position = benchmark.train.keys.index(batch.keys[2])
    picture = Image.fromarray(pictures.train.picture(position)).crop((4, 0, 36, 32))
    small = picture.resize((24, 24), Image.Resampling.BILINEAR)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = torch.from_numpy(((np.asarray(small) / 255 - mean) / std).transpose(2, 0, 1).astype(np.float32))
    # Edges of the square are smoothed a little differently; flat regions, which are most, must agree.
    assert float((batch.images[2] - expected).abs().median()) < 1e-5


def test_colours_change_where_the_recipe_says_so(pictures):
    plain, bright = (
        next(epochs_of(pictures, recipe_of(brightness=brightness)).epoch(1)) for brightness in (0.0, 0.5)
    )
    assert plain.keys == bright.keys
    assert not torch.equal(plain.images, bright.images)


def test_an_epoch_is_the_same_whenever_it_is_asked_for(pictures):
    epochs = epochs_of(pictures, recipe_of())
    one = list(epochs.epoch(2))
    list(epochs.epoch(1))
    for found in (list(epochs.epoch(2)), list(epochs_of(pictures, recipe_of()).epoch(2))):
        assert [batch.keys for batch in found] == [batch.keys for batch in one]
        assert all(torch.equal(a.images, b.images) for a, b in zip(found, one, strict=True))


@pytest.mark.parametrize("sampler", ["class_balanced", "shuffled"])
def test_epochs_and_generations_draw_other_batches(sampler, pictures):
    drawn = [
        [batch.keys for batch in epochs_of(pictures, recipe_of(sampler), generation).epoch(epoch)]
        for generation, epoch in ((1, 1), (1, 2), (2, 1))
    ]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


@pytest.mark.parametrize("sampler", ["class_balanced", "shuffled"])
def test_processes_share_every_batch(sampler, pictures):
    whole = list(epochs_of(pictures, recipe_of(sampler)).epoch(1))
    shares = [list(epochs_of(pictures, recipe_of(sampler), rank=rank, processes=2).epoch(1)) for rank in range(2)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert first.keys + second.keys == batch.keys
        assert torch.equal(torch.cat([first.images, second.images]), batch.images)


def test_batches_that_cannot_be_made(pictures):
    with pytest.raises(KeMetricError, match=r"batches\.size = 16.*has 4") as raised:
        epochs_of(pictures, recipe_of(size=16))
    assert raised.value.exit_code == ExitCode.RECIPE


@pytest.mark.parametrize("sampler", ["class_balanced", "shuffled"])
def test_the_first_batch_alone(sampler, benchmark, source):
    recipe = recipe_of(sampler)
    small, batches = first_pictures(benchmark, recipe)
    assert batches == 3
    whole = next(epochs_of(Pictures.decode(benchmark, 32), recipe).epoch(1))
    assert sorted(source.reads[: len(small.train)]) == sorted(small.benchmark.train.keys) == sorted(set(whole.keys))
    assert len(small.query) == len(small.gallery) == 0
    assert small.benchmark.train.class_names == benchmark.train.class_names
    batch = next(epochs_of(small, recipe).epoch(1))
    assert set(batch.keys) == set(whole.keys)
    labels = dict(zip(benchmark.train.keys, benchmark.train.labels.tolist(), strict=True))
    assert batch.labels.tolist() == [labels[key] for key in batch.keys]


@pytest.mark.parametrize(("shape", "width"), [("keep", 40), ("square", 32)])
def test_the_first_batch_of_a_classification(classification, source, shape, width):
    recipe = recipe_of("shuffled")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"store_shape": shape})})
    small, _ = first_pictures(classification, recipe)
    assert small.benchmark.task == "classification"
    assert small.benchmark.train.class_names == classification.train.class_names
    assert small.validation is None
    assert len(small.query) == 0
    assert small.train.picture(0).shape == (32, width, 3)
    assert not [key for key in source.reads if not key.startswith("train")]


def test_evaluation_sees_the_centre(pictures):
    """Pictures of the stored size are not resized: the batch can be worked out by hand."""
    indices = [9, 2, 4, 17, 0, 3]
    batches = list(evaluation_batches(pictures.query, indices, recipe=recipe_of(), device=CPU))
    assert [len(batch) for batch in batches] == [4, 2]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for index, image in zip(indices, torch.cat(batches), strict=True):
        centre = pictures.query.picture(index)[4:28, 8:32]
        expected = ((centre / 255 - mean) / std).transpose(2, 0, 1).astype(np.float32)
        torch.testing.assert_close(image, torch.from_numpy(expected))


def test_no_pictures_to_evaluate(pictures):
    assert not list(evaluation_batches(pictures.query, [], recipe=recipe_of(), device=CPU))
