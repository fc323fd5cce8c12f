"""How a store of a database is opened; of their libraries, only the one that is asked for is imported."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.stores.contract import ServerStore

TOKEN_VARIABLE = "KE_METRIC_MILVUS_TOKEN"
CONSISTENCY_VARIABLE = "KE_METRIC_MILVUS_CONSISTENCY"


def server_store(kind: str) -> Callable[..., ServerStore]:
    """Return what opens a store of kind milvus or postgres; for `MilvusStore` with what the environment says.

    Raises:
        KeMetricError: ENVIRONMENT: psycopg is not installed.
    """
    if kind == "milvus":
        from ke_metric.stores.milvus_store import MilvusStore

        return partial(
            MilvusStore,
            token=os.environ.get(TOKEN_VARIABLE),
            consistency=os.environ.get(CONSISTENCY_VARIABLE) or None,
        )
    assert kind == "postgres", "a kind that nothing opens"
    try:
        from ke_metric.stores.postgres_store import PostgresStore
    except ImportError as error:
        raise KeMetricError(f"postgres: {error}: pip install 'ke_metric[postgres]'", ExitCode.ENVIRONMENT) from error
    return PostgresStore
