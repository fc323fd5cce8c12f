"""The comparison sees every way in which a file can differ, and lets through what does not."""

import numpy as np
import pytest

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.export.record import BATCHES, compare, in_batches, require_agreement
from ke_metric.images.preparation import unit_range

COUNT, DIMENSION = 40, 6
WEIGHTS = np.random.default_rng(3).normal(size=(12, DIMENSION))
PICTURES = np.random.default_rng(4).integers(0, 256, (COUNT, 2, 2, 3)).astype(np.uint8)


def network(pixels):
    vectors = (pixels.reshape(len(pixels), -1) / 127.5 - 1) @ WEIGHTS
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def nearest(vectors):
    """The neighbours, found one by one."""
    found = []
    for query in range(len(vectors)):
        others = [other for other in range(len(vectors)) if other != query]
        found.append(max(others, key=lambda other: vectors[query].astype(float) @ vectors[other].astype(float)))
    return found


def test_the_same_network_agrees_at_every_size():
    agreements = compare(network, network, PICTURES)
    assert [found.batch for found in agreements] == [1, 3, 32]
    for found in agreements:
        assert found.max_difference < 1e-6
        assert found.smallest_cosine == pytest.approx(1)
        assert found.same_nearest == 1
    require_agreement(agreements)


def test_numbers_are_those_of_the_obvious_computation():
    noise = np.random.default_rng(5).normal(scale=0.2, size=(COUNT, DIMENSION)).astype(np.float32)
    rows = {pixels.tobytes(): row for pixels, row in zip(PICTURES, noise, strict=True)}

    def noisy(pixels):
        return network(pixels) + np.stack([rows[picture.tobytes()] for picture in pixels])

    ours, theirs = network(PICTURES), noisy(PICTURES)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(ours, theirs, strict=True)]
    same = np.mean([a == b for a, b in zip(nearest(ours), nearest(theirs), strict=True)])
    assert 0 < same < 1
    for found in compare(network, noisy, PICTURES):
        assert found.max_difference == pytest.approx(np.abs(ours - theirs).max(), rel=1e-4)
        assert found.smallest_cosine == pytest.approx(min(cosines), rel=1e-4)
        assert found.same_nearest == pytest.approx(same)


@pytest.mark.parametrize("wrong", BATCHES)
def test_a_difference_at_one_size_alone_is_seen(wrong):
    def differs(pixels):
        return network(pixels) + np.float32(2e-4 * (len(pixels) == wrong))

    with pytest.raises(KeMetricError, match=rf"with {wrong} pictures at a time by up to 0.0002") as caught:
        require_agreement(compare(network, differs, PICTURES))
    assert caught.value.exit_code is ExitCode.GATE


def test_another_nearest_neighbour_is_refused_whatever_the_numbers():
    close = np.full((COUNT, 2), 1, np.float32)
    close[:, 1] = np.linspace(0, 0.01, COUNT)
    close /= np.linalg.norm(close, axis=1, keepdims=True)
    positions = {picture.tobytes(): n for n, picture in enumerate(PICTURES)}

    def embed(pixels):
        return close[[positions[picture.tobytes()] for picture in pixels]]

    def far_off(pixels):
        return close[::-1][[positions[picture.tobytes()] for picture in pixels]] * [[1, -1]]

    agreements = compare(embed, lambda pixels: far_off(pixels).astype(np.float32), PICTURES)
    assert all(found.same_nearest == 1 for found in agreements), "mirrored, but neighbours stay"
    changed = agreements[0].model_copy(update={"max_difference": 0.0, "same_nearest": 0.9})
    with pytest.raises(KeMetricError, match=r"same nearest neighbour for 90.0%"):
        require_agreement((changed,))


def test_ties_may_be_broken_either_way():
    def constant(pixels):
        return np.tile(np.float32([0.6, 0.8]), (len(pixels), 1))

    def tilted(pixels):
        return constant(pixels) + np.random.default_rng(0).normal(scale=1e-7, size=(len(pixels), 2)).astype("f4")

    assert all(found.same_nearest == 1 for found in compare(constant, tilted, PICTURES))


def test_what_cannot_be_run_or_is_not_finite_is_refused():
    def frozen(pixels):
        if len(pixels) != 1:
            raise ValueError("batch must be 1")
        return network(pixels)

    def broken(pixels):
        return np.where(pixels.reshape(len(pixels), -1)[:, :1] > 250, np.nan, network(pixels))

    for wrong, words in (
        (frozen, "cannot be run with 3 pictures at a time: batch must be 1"),
        (broken, r"gives \[40, 6\] numbers for 40 pictures, 1 at a time, must be \[40, 6\] finite"),
        (lambda pixels: network(pixels)[:, :5], r"gives \[40, 5\] finite numbers"),
    ):
        with pytest.raises(KeMetricError, match=words) as caught:
            compare(network, wrong, PICTURES)
        assert caught.value.exit_code is ExitCode.GATE


def test_the_last_batch_may_be_smaller():
    sizes = []

    def embed(pixels):
        sizes.append(len(pixels))
        return network(pixels)

    np.testing.assert_allclose(in_batches(embed, PICTURES, 32), network(PICTURES), rtol=1e-5)
    assert sizes == [32, 8]


def test_pixels_become_numbers_up_to_one():
    pixels = np.zeros((1, 2, 3, 3), np.uint8)
    pixels[0, 1, 2] = (51, 102, 255)
    images = unit_range(pixels).numpy()
    assert images.dtype == np.float32
    assert images.shape == (1, 3, 2, 3)
    np.testing.assert_array_equal(images[0, :, 1, 2], np.float32([0.2, 0.4, 1]))
    assert images.sum() == np.float32(1.6)
