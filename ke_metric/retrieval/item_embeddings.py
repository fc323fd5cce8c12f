"""Items and their embeddings, batch by batch: what is written into files and added to an index.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evaluation.embeddings import FloatArray
from ke_metric.retrieval.embedder import Embedder
from ke_metric.retrieval.picture_list import LeftOut, PictureList
from ke_metric.retrieval.vector_store import Item


@dataclass(frozen=True, eq=False)
class ItemBatch:
    """Some items with their embeddings.

    Attributes:
        items: B items.
        vectors: [B, D] float32, L2-normalised.
        left_out: Pictures of this stretch that could not be used.
    """

    items: Sequence[Item]
    vectors: FloatArray
    left_out: tuple[LeftOut, ...] = ()


def embed_items(
    embedder: Embedder, items: Sequence[Item], *, strict: bool = False, batch_size: int | None = None
) -> Iterator[ItemBatch]:
    """Embed the pictures of items, in order.

    Args:
        embedder: What embeds them.
        items: Whose paths are read.
        strict: The first picture that cannot be used is an error; False: it is left out and told.
        batch_size: Pictures per forward pass; see `Embedder.stream`.

    Raises:
        KeMetricError: DATA, naming the first picture that cannot be used.
    """
    paths = (item.path for item in items)
    for batch in embedder.stream(paths, skip_bad=not strict, batch_size=batch_size):
        yield ItemBatch(
            [items[position] for position in batch.positions.tolist()],
            batch.vectors,
            tuple(LeftOut(bad.name, bad.reason) for bad in batch.bad),
        )


def require_all_usable(pictures: PictureList) -> None:
    """Refuse pictures whose names no index can hold.

    Raises:
        KeMetricError: DATA, naming the first one.
    """
    if pictures.left_out:
        raise KeMetricError(pictures.left_out[0].reason, ExitCode.DATA)
