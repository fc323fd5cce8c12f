"""The documented place of `Item` and `VectorStore`; they live in `ke_metric.stores.contract`."""

from ke_metric.stores.contract import Hits, Item, VectorStore

__all__ = ["Hits", "Item", "VectorStore"]
