"""Embeddings that exist: the network beside them must be the one that made them."""

import shutil

import numpy as np
import pytest

from ke_metric import Embedder
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval.embedding_files import ItemBatch, write_embeddings
from ke_metric.retrieval.stored_embeddings import StoredEmbeddings
from ke_metric.stores.contract import Item


def test_another_network_beside_the_vectors_is_refused(grown, tmp_path):
    embedder = Embedder.load(grown.folder, 1)
    vectors = np.eye(1, embedder.dimension, dtype=np.float32)
    write_embeddings(tmp_path / "e", embedder, [ItemBatch([Item("a", "/a", "")], vectors)])
    with StoredEmbeddings.open(tmp_path / "e") as there:
        found = there.embedder()
        assert (found.digest, found.description) == (embedder.digest, embedder.description)
        shutil.rmtree(tmp_path / "e" / "model")
        Embedder.load(grown.folder, 2).save(tmp_path / "e" / "model")
        with pytest.raises(KeMetricError, match="another network than the one that made the vectors") as caught:
            there.embedder()
    assert caught.value.exit_code is ExitCode.DATA
    shutil.rmtree(tmp_path / "e" / "model")
    with StoredEmbeddings.open(tmp_path / "e") as there:
        assert there.embedder() is None
