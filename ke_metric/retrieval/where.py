"""The documented place of `Where`; it lives in `ke_metric.stores.contract`."""

from ke_metric.stores.contract import Condition, Where

__all__ = ["Condition", "Where"]
