"""Thumbnails: small, true where every pixel is seen, and no more of them held than was said."""

import io

import numpy as np
import pytest
from drawn_collection import picture_of
from PIL import Image

from ke_metric.explorer.thumbnails import SIDE, Thumbnails, encode_thumbnail


@pytest.mark.parametrize("size", [(1000, 500), (30, 2000), (SIDE, SIDE)])
def test_a_large_picture_becomes_small_and_keeps_its_shape(size):
    small = Image.open(io.BytesIO(encode_thumbnail(picture_of(0, size))))
    assert max(small.size) == SIDE
    assert small.width / small.height == pytest.approx(size[0] / size[1], rel=0.2)


def test_a_small_picture_is_left_as_it_is():
    picture = picture_of(3)
    np.testing.assert_array_equal(Image.open(io.BytesIO(encode_thumbnail(picture))), picture)


def test_each_is_read_once_while_it_is_held():
    thumbnails, read = Thumbnails(), []
    for _ in range(3):
        for key in range(4):
            encoded = thumbnails.get(key, lambda key=key: read.append(key) or picture_of(key))
            assert encoded == encode_thumbnail(picture_of(key))
    assert read == [0, 1, 2, 3]


def test_those_that_were_asked_for_least_recently_make_room():
    size = max(len(encode_thumbnail(picture_of(key))) for key in range(4))
    thumbnails, read = Thumbnails(3 * size), []

    def ask(key):
        thumbnails.get(key, lambda: read.append(key) or picture_of(key))

    for key in (0, 1, 2, 0, 3):
        ask(key)
    read.clear()
    for key in (0, 3, 2):
        ask(key)
    assert read == []
    ask(1)
    assert read == [1]
