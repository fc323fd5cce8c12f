"""Embedding: all batches in order, and nothing kept but the vectors."""

import weakref

import numpy as np
import pytest
import torch
from torch import nn

from ke_metric.evaluation.embeddings import embed


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
