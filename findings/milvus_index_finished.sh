#!/usr/bin/env bash
# Expected: an index whose state is "Finished" has been built: all rows that were written and flushed are in it.
# Happens: describe_index says state "Finished" while pending_index_rows says that rows are not in the index yet, right
#   after a flush up to all of them. Loops of examples and benchmarks that wait for the state to be Finished go on at
#   once; "total_rows" and "indexed_rows" are of segments, and change with compactions.
# Why it matters: a benchmark or a pipeline that waits for "Finished" measures, or serves, searches through rows without
#   an index. What tells is pending_index_rows == 0.
# Needs Linux on x86-64; the server (milvus 2.3.5 of PyPI, standalone) runs for a minute, with its data in the folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'setuptools<81' 'numpy==2.4.6' 'pymilvus==3.0.2'
"$folder/venv/bin/pip" install --quiet --no-deps 'milvus==2.3.5'
"$folder/venv/bin/python" - "$folder/data" <<'PYTHON'
import sys
import time
from importlib.metadata import version

import numpy as np
from milvus import MilvusServer, MilvusServerConfig
from pymilvus import DataType, MilvusClient

ROWS, LENGTH = 60_000, 128
server = MilvusServer(MilvusServerConfig(data_dir=sys.argv[1]))
server.start()
early = []
try:
    client = MilvusClient(f"http://127.0.0.1:{server.listen_port}")
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=LENGTH)
    client.create_collection("gallery", schema=schema)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="HNSW", metric_type="IP", params={"M": 16, "efConstruction": 200})
    client.create_index("gallery", index)
    vectors = np.random.default_rng(0).normal(size=(ROWS, LENGTH)).astype(np.float32)
    for begin in range(0, ROWS, 5_000):
        rows = range(begin, begin + 5_000)
        client.insert("gallery", [{"id": row, "vector": vectors[row].tolist()} for row in rows])
    client.flush("gallery")
    print(f"milvus {version('milvus')}, pymilvus {version('pymilvus')}, {ROWS:,} rows, flushed")
    until = time.monotonic() + 60
    last = None
    while time.monotonic() < until:
        facts = client.describe_index("gallery", "vector")
        told = tuple(facts[name] for name in ("state", "total_rows", "indexed_rows", "pending_index_rows"))
        if told != last:
            print("  state {}, total_rows {}, indexed_rows {}, pending_index_rows {}".format(*told))
        last = told
        early.append(told[0] == "Finished" and int(told[3]) > 0)
        if told[0] == "Finished" and int(told[3]) == 0 and int(told[2]) >= ROWS:
            break
        time.sleep(0.2)
    client.close()
finally:
    server.stop()
sys.exit(not any(early))
PYTHON
