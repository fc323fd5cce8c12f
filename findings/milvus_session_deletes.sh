#!/usr/bin/env bash
# Expected: with consistency level Session a client sees whatever it has written itself ("read your own writes"), at
#   less cost than Strong: what it has deleted is not found any more.
# Happens: what the same client has just deleted is found again in most queries with Session, in none with Strong. The
#   server answers a delete with the timestamp 0, and pymilvus keeps that as the time of the client's last write, also
#   over the right one of an earlier upsert: from then on Session asks for no more than Eventually does.
# Why it matters: Session is the level that is recommended for programs that read what they write, such as one that
#   removes a picture from a gallery and searches it again; they are given the removed picture as a neighbour.
# Needs Linux on x86-64; the server (milvus 2.3.5 of PyPI, standalone) runs for a minute, with its data in the folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'setuptools<81' 'pymilvus==3.0.2'
"$folder/venv/bin/pip" install --quiet --no-deps 'milvus==2.3.5'
"$folder/venv/bin/python" - "$folder/data" <<'PYTHON'
import sys
from importlib.metadata import version

from milvus import MilvusServer, MilvusServerConfig
from pymilvus import DataType, MilvusClient

TRIES = 20
server = MilvusServer(MilvusServerConfig(data_dir=sys.argv[1]))
server.start()
try:
    client = MilvusClient(f"http://127.0.0.1:{server.listen_port}")
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.VARCHAR, max_length=64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=4)
    client.create_collection("gallery", schema=schema)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="IP")
    client.create_index("gallery", index)
    client.load_collection("gallery")
    print(f"milvus {version('milvus')}, pymilvus {version('pymilvus')}, {TRIES} rows for each level")
    found = {}
    for level in ("Session", "Strong"):
        written = deleted = 0
        for number in range(TRIES):
            name = f"{level} {number}"
            only = f'id == "{name}"'
            client.upsert("gallery", [{"id": name, "vector": [1.0, 0.0, 0.0, 0.0]}])
            written += bool(client.query("gallery", filter=only, output_fields=["id"], consistency_level=level))
            client.delete("gallery", filter=f'id in ["{name}"]')
            deleted += bool(client.query("gallery", filter=only, output_fields=["id"], consistency_level=level))
        found[level] = written, deleted
        print(f"  {level}: found after the upsert {written}, found after the delete {deleted}")
    client.close()
finally:
    server.stop()
sys.exit(not (found["Strong"] == (TRIES, 0) and found["Session"][1] > TRIES / 2))
PYTHON
