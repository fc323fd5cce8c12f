"""How many threads a forward pass gets."""

import numpy as np
import pytest
import torch

from ke_metric.images.preparation import Preparation
from ke_metric.serving import service


class Slow:
    """An embedder that notes its threads and takes processor time."""

    normalization = Preparation(image_size=8, mean=(0, 0, 0), std=(1, 1, 1))

    def __init__(self, work):
        self._work, self.threads, self.shapes = work, [], []

    def compute(self, pixels):
        self.threads.append(torch.get_num_threads())
        self.shapes.append(pixels.shape)
        for _ in range(self._work):
            np.sort(np.arange(300_000)[::-1])
        return np.zeros((len(pixels), 2), np.float32)


@pytest.mark.parametrize(("work", "expected"), [(0, 1), (40, 2)])
def test_a_small_network_gets_one_thread_and_a_large_one_all(monkeypatch, work, expected):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        embedder = Slow(work)
        assert service.choose_threads(embedder) == expected
        assert torch.get_num_threads() == 2
        assert set(embedder.threads) == {1}
        assert embedder.shapes[0] == (service.TRIED, 8, 8, 3)
    finally:
        torch.set_num_threads(before)
