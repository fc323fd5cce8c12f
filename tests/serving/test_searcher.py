"""How many threads a forward pass gets, and what a change beside a search does to it."""

from threading import RLock
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ke_metric.networks.description import Normalization
from ke_metric.retrieval.index import Index
from ke_metric.retrieval.store_settings import StoreSettings
from ke_metric.retrieval.vector_store import Item, ItemGoneError
from ke_metric.serving import searcher


class Slow:
    """An embedder that notes its threads and takes processor time."""

    normalization = Normalization(image_size=8, mean=(0, 0, 0), std=(1, 1, 1))

    def __init__(self, work):
        self._work, self.threads, self.shapes = work, [], []

    def embed_pixels(self, pixels):
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
        assert searcher.choose_threads(embedder) == expected
        assert torch.get_num_threads() == 2
        assert set(embedder.threads) == {1}
        assert embedder.shapes[0] == (searcher.TRIED, 8, 8, 3)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("times", [1, searcher.SEARCHES])
def test_what_another_process_removed_after_it_was_found_is_searched_again(tmp_path, monkeypatch, times):
    """Between a search and the reading of its items, another process removes the first of them, so many times."""
    vectors = np.eye(10, dtype=np.float32)
    settings = StoreSettings(kind="memmap")
    with Index.create(tmp_path / "index", digest="a" * 64, dimension=10, settings=settings) as writer:
        writer.add([Item(str(number)) for number in range(10)], vectors, digest="a" * 64)
        served = object.__new__(searcher.IndexSearcher)
        served._store, served._embedder = RLock(), SimpleNamespace(digest="a" * 64)
        with Index.open(tmp_path / "index") as served._index:
            real, left = served._index.search, [str(number) for number in range(times)]

            def search(*arguments, **more):
                hits = real(*arguments, **more)
                if left:
                    writer.remove([left.pop(0)])
                return hits

            monkeypatch.setattr(served._index, "search", search)
            query = (np.linspace(10, 1, 10) / np.linalg.norm(np.linspace(10, 1, 10))).astype(np.float32)[None]
            if times == searcher.SEARCHES:
                with pytest.raises(ItemGoneError, match="removed or replaced since"):
                    served.search(query, 3, None)
            else:
                assert [result.id for result in served.search(query, 3, None)[0]] == ["1", "2", "3"]
