"""The documented place of `Where`; it lives in `ke_metric.stores.where`."""

from ke_metric.stores.where import Condition, Where

__all__ = ["Condition", "Where"]
