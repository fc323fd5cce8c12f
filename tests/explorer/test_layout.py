"""Maps of networks fit together: what did not move in the embedding does not move on the map."""

import numpy as np
import pytest
from drawn_collection import DrawnCollection, unit

from ke_metric.explorer.exploration import Exploration
from ke_metric.explorer.layout import map_of, turned_onto


@pytest.fixture
def vectors():
    return unit(np.random.default_rng(0).normal(size=(60, 12)) * np.linspace(2, 0.1, 12))


def test_the_map_shows_the_two_directions_of_most_variance(vectors):
    plane = map_of(vectors)
    centered = vectors - vectors.mean(axis=0)
    variances = np.linalg.svd(centered, compute_uv=False) ** 2
    assert plane.share == pytest.approx(variances[:2].sum() / variances.sum(), rel=1e-4)
    between = np.linalg.norm(plane.positions[:, None] - plane.positions[None], axis=2)
    _, _, axes = np.linalg.svd(centered)
    flat = centered @ axes[:2].T
    expected = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    np.testing.assert_allclose(between, expected / np.linalg.norm(flat, axis=1).max(), atol=1e-4)
    assert np.linalg.norm(plane.positions, axis=1).max() == pytest.approx(1, abs=1e-5)


def test_a_turned_and_mirrored_embedding_has_the_same_map(vectors):
    plane = map_of(vectors)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    for turn in (rotation, rotation * np.where(np.arange(12) % 2, 1, -1)):
        turned = turned_onto(map_of((vectors @ turn).astype(np.float32)), plane)
        np.testing.assert_allclose(turned.positions, plane.positions, atol=1e-3)


def test_turning_keeps_distances(vectors):
    plane = map_of(vectors)
    turned = turned_onto(plane, map_of(vectors[::-1]))
    np.testing.assert_allclose(
        np.linalg.norm(turned.positions - turned.positions[0], axis=1),
        np.linalg.norm(plane.positions - plane.positions[0], axis=1),
        atol=1e-5,
    )


@pytest.mark.parametrize("vectors", [np.ones((1, 4)), np.ones((5, 4)), np.ones((3, 1))], ids=["one", "equal", "D=1"])
def test_what_has_no_plane_lies_somewhere(vectors):
    plane = map_of(unit(vectors))
    assert plane.positions.shape == (len(vectors), 2)
    assert np.isfinite(plane.positions).all()
    assert 0 <= plane.share <= 1
    assert np.isfinite(turned_onto(plane, plane).positions).all()


def test_every_generation_is_turned_onto_the_next_one():
    collection = DrawnCollection(apart=True, per_class=40)
    exploration = Exploration(collection)
    exploration.networks.start()
    for network in collection.networks:
        own = exploration.map(network).positions
        assert len(own) == 200 + 10, "the gallery, then the queries"
        if network.generation < 3:
            after = exploration.map(exploration.find(network.generation + 1, network.name)).positions
            plane = exploration.networks.ask(network).result().plane
            best = turned_onto(plane, exploration.map(exploration.find(network.generation + 1, network.name)))
            np.testing.assert_array_equal(own, best.positions)
            mirrored = own * np.array([1, -1])
            assert ((own - after) ** 2).sum() < ((mirrored - after) ** 2).sum()
    exploration.networks.close(20)
