"""Embeddings: refused, normalised, numbered; made by a network from all batches, and nothing kept but the vectors."""

import io
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from ke_metric.arrays import row_chunks
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation import embeddings as embedding_module
from ke_metric.evaluation.embeddings import Embeddings, embed, number_rows, stacked

VECTORS = np.array([[3.0, 4.0], [0.0, -2.0], [1.0, 0.0]])
LABELS = np.array([7, 7, -1])
UNIT = np.array([[0.6, 0.8], [0.0, -1.0], [1.0, 0.0]], dtype=np.float32)


def refused(match, vectors=VECTORS, labels=LABELS, ids=None):
    with pytest.raises(KeMetricError, match=match) as caught:
        Embeddings(vectors, labels, ids)
    assert caught.value.exit_code == ExitCode.DATA


@pytest.mark.parametrize(
    "vectors",
    [
        VECTORS,
        VECTORS.astype(np.float32),
        VECTORS.astype(np.float16),
        VECTORS.astype(np.int8),
        VECTORS.tolist(),
        VECTORS[:, ::-1].copy()[:, ::-1],
        torch.tensor(VECTORS, requires_grad=True),
        torch.tensor(VECTORS, dtype=torch.bfloat16),
        VECTORS * 1e200,
        VECTORS * 1e-300,
    ],
    ids=["f64", "f32", "f16", "i8", "list", "strided", "tensor", "bf16", "huge", "tiny"],
)
def test_whatever_comes_in_unit_float32_comes_out(vectors):
    found = Embeddings(vectors, LABELS).vectors
    assert found.dtype == np.float32
    assert found.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(found, UNIT, atol=1e-7)


@given(
    arrays(np.float32, (4, 3), elements=st.floats(-100, 100, width=32)).filter(
        lambda a: (abs(a) > 1e-3).any(1).all()
    ),
    st.lists(st.integers(-40, 40), min_size=4, max_size=4),
)
@settings(deadline=None)
def test_length_is_one_and_scale_does_not_matter(vectors, exponents):
    unit = Embeddings(vectors, range(4)).vectors
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    scaled = vectors.astype(np.float64) * 2.0 ** np.array(exponents)[:, None]
    np.testing.assert_array_equal(Embeddings(scaled, range(4)).vectors, unit)


def test_input_is_not_changed_nor_shared():
    vectors, labels = UNIT.copy(), LABELS.copy()
    found = Embeddings(vectors, labels)
    found.vectors[:], found.labels[:] = 9, 9
    np.testing.assert_array_equal(vectors, UNIT)
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("shape", [(3,), (0, 2), (3, 0), (3, 2, 1)])
def test_shape_of_embeddings(shape):
    refused("must be \\[N, D\\]", np.ones(shape))


@pytest.mark.parametrize("dtype", [bool, complex, object, str])
def test_type_of_embeddings(dtype):
    refused("real numbers", VECTORS.astype(dtype))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("item", [0, 8191, 8192, 9000])
def test_values_that_are_not_finite_name_the_item(value, item):
    vectors = np.ones((9001, 2))
    vectors[item, 1] = value
    refused(f"item {item} holds a value that is not finite", vectors, np.zeros(9001, dtype=int))


@pytest.mark.parametrize("item", [0, 9000])
def test_a_zero_vector_names_the_item(item):
    vectors = np.ones((9001, 2))
    vectors[item] = 0
    refused(f"item {item} is all zero", vectors, np.zeros(9001, dtype=int))


@pytest.mark.parametrize("labels", [LABELS[:2], LABELS[:, None], LABELS + 0.5, ["a", "b", "c"], [True, False, True]])
def test_labels(labels):
    refused("must be \\[3\\] integers", labels=labels)


@pytest.mark.parametrize("labels", [LABELS.astype(np.int8), LABELS.tolist(), torch.tensor(LABELS), range(3)])
def test_labels_become_int64(labels):
    found = Embeddings(VECTORS, labels).labels
    assert found.dtype == np.int64
    assert found.tolist() == list(labels)


@pytest.mark.parametrize("ids", [["a", "b", "c"], ("a", "b", "c"), np.array(["a", "b", "c"])])
def test_ids_become_a_tuple(ids):
    assert Embeddings(VECTORS, LABELS, ids).ids == ("a", "b", "c")


@pytest.mark.parametrize("ids", [np.arange(3), torch.arange(3), range(3)])
def test_numbers_as_ids(ids):
    assert Embeddings(VECTORS, LABELS, ids).ids == (0, 1, 2)


@pytest.mark.parametrize(
    ("ids", "match"),
    [
        (["a", "b"], "2 item ids for 3 embeddings"),
        (["a", "b", "a"], "'a' occurs at positions 0 and 2"),
        (["a", 1, "c"], "type int and str"),
        ([0.0, 1.0, 2.0], "type float"),
        ([True, False, 2], "type bool and int"),
    ],
)
def test_ids(ids, match):
    refused(match, ids=ids)


@given(st.integers(0, 50), st.integers(1, 60))
@settings(deadline=None)
def test_row_chunks_cover_everything_once(count, rows):
    chunks = list(row_chunks(count, rows))
    assert [row for chunk in chunks for row in range(count)[chunk]] == list(range(count))
    assert all(0 < chunk.stop - chunk.start <= rows for chunk in chunks)


def batches(*sizes):
    count = 0
    for size in sizes:
        yield torch.arange(count, count + size, dtype=torch.float32).view(size, 1, 1, 1).expand(size, 3, 2, 2).clone()
        count += size


def twice(images):
    return 2 * images[:, :2, 0, 0]


def test_vectors_come_in_the_order_of_the_batches():
    vectors = embed(twice, batches(3, 1, 4))
    np.testing.assert_array_equal(vectors, np.repeat(2.0 * np.arange(8), 2).reshape(8, 2))
    assert vectors.dtype == np.float32


def test_no_gradient_is_kept():
    layer, outputs = nn.Linear(12, 4), []
    vectors = embed(lambda images: outputs.append(layer(images.flatten(1))) or outputs[-1], batches(2, 2))
    assert not any(output.requires_grad for output in outputs)
    assert vectors.shape == (4, 4)
    assert torch.is_grad_enabled()


def test_only_one_batch_is_in_memory():
    alive, most = weakref.WeakSet(), []

    def watched():
        for batch in batches(2, 2, 2, 2):
            alive.add(batch)
            most.append(len(alive))
            yield batch
            del batch

    embed(twice, watched())
    # While the next one is made the last one may still be held by the loop.
    assert max(most) <= 2
    assert not alive


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_vectors_are_float32(dtype):
    vectors = embed(lambda images: twice(images).to(dtype), batches(2))
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, [[0, 0], [2, 2]])


def test_a_network_that_remembers_can_be_trained_afterwards():
    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.grid = nn.Parameter(torch.ones(12)), None

        def forward(self, images):
            if self.grid is None:
                self.grid = torch.linspace(0, 1, 12)
            return images.flatten(1) * self.scale * self.grid

    network = Remembering()
    embed(network, batches(2))
    network(next(batches(2))).sum().backward()
    assert network.scale.grad is not None


def test_the_mode_of_the_network_is_the_callers():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12))
    embed(network, batches(4))
    assert network.training
    assert network[1].num_batches_tracked == 1


def test_no_pictures():
    assert embed(twice, iter(())).shape == (0, 0)


def test_what_is_too_large_for_memory_lies_in_a_file(monkeypatch):
    whole = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    in_memory = Embeddings(whole, range(100)).vectors
    monkeypatch.setattr(embedding_module, "IN_MEMORY", 1000)
    parts = [whole[:1], whole[1:20], whole[20:40, :], np.asfortranarray(whole[40:]), whole[:0]]
    found = stacked(iter(parts))
    assert isinstance(found.base, np.memmap)
    np.testing.assert_array_equal(found, whole)
    np.testing.assert_array_equal(stacked(iter([whole[:31]])), whole[:31])
    np.testing.assert_array_equal(Embeddings(found, range(100)).vectors, in_memory)
    assert isinstance(Embeddings(found, range(100)).vectors.base, np.memmap)


def test_no_room_for_what_is_too_large(monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedding_module, "IN_MEMORY", 10)
    monkeypatch.setattr(embedding_module.tempfile, "TemporaryFile", full)
    with pytest.raises(KeMetricError, match=r"No space left on device\); name a larger one .* TMPDIR") as caught:
        stacked(iter([np.ones((2, 2), np.float32)]))
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


class Disk(io.FileIO):
    """Takes some bytes at a time, and so many in all."""

    def __init__(self, path, room):
        super().__init__(path, "w+")
        self.room = room

    def write(self, some):
        if self.room == 0:
            raise OSError(28, "No space left on device")
        taken = super().write(some[: min(self.room, 7)])
        self.room -= taken
        return taken


@pytest.mark.parametrize("room", [200, 0, 199])
def test_a_disk_that_fills_up(room, monkeypatch, tmp_path):
    disk, whole = Disk(tmp_path / "disk", room), np.arange(50, dtype=np.float32).reshape(25, 2)
    monkeypatch.setattr(embedding_module, "IN_MEMORY", 10)
    monkeypatch.setattr(embedding_module.tempfile, "TemporaryFile", lambda **_: disk)
    if room < whole.nbytes:
        with pytest.raises(KeMetricError, match="No space left on device"):
            stacked([whole[:10], whole[10:]])
    else:
        np.testing.assert_array_equal(stacked([whole[:10], whole[10:]]), whole)
    assert disk.closed


@pytest.mark.parametrize("in_memory", [0, 1000])
def test_what_fails_before_there_are_embeddings_is_not_the_disk(in_memory, monkeypatch, tmp_path):
    def parts():
        yield np.ones((2, 2), np.float32)
        (tmp_path / "picture.png").read_bytes()

    disk = Disk(tmp_path / "disk", 100)
    monkeypatch.setattr(embedding_module, "IN_MEMORY", in_memory)
    monkeypatch.setattr(embedding_module.tempfile, "TemporaryFile", lambda **_: disk)
    with disk, pytest.raises(FileNotFoundError, match=r"picture\.png"):
        stacked(parts())
    assert disk.closed


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 40))
def test_rows_are_numbered_in_their_order(values, rows):
    vectors = np.array([[value, -0.0] if value % 2 else [value, 0.0] for value in values], np.float32).reshape(-1, 2)
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    found = number_rows(vectors[start : start + rows] for start in range(0, len(values), rows))
    assert found.tolist() == [numbers[value] for value in values]
