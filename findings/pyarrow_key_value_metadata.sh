#!/usr/bin/env bash
# Expected: what ParquetWriter.add_key_value_metadata writes into a Parquet file (which network computed its vectors,
#   for example) is among the metadata of the table that pyarrow reads from it, as what a schema's with_metadata gives.
# Happens: it is not. It is in the file, as pq.read_metadata shows, but pq.read_table(...).schema.metadata and
#   pq.read_schema(...).metadata do not have it: these are of the Arrow schema that lies in the file beside it.
# Why it matters: a program that writes in the one way and looks in the other finds no metadata and no error, and takes
#   a file that says what it holds for one that does not. What is known before the first row belongs into the schema.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyarrow==26.0.0 numpy
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import pyarrow as pa
import pyarrow.parquet as pq

schema = pa.schema([("id", pa.string())]).with_metadata({"of_schema": "yes"})
with pq.ParquetWriter("vectors.parquet", schema) as writer:
    writer.write_table(pa.table({"id": ["a", "b"]}, schema=schema))
    writer.add_key_value_metadata({"added": "yes"})

places = {
    "pq.read_metadata(...).metadata": pq.read_metadata("vectors.parquet").metadata,
    "pq.read_schema(...).metadata": pq.read_schema("vectors.parquet").metadata,
    "pq.read_table(...).schema.metadata": pq.read_table("vectors.parquet").schema.metadata,
}
print(f"pyarrow {pa.__version__}")
for place, found in places.items():
    print(f"  {place}: of_schema {b'of_schema' in found}, added {b'added' in found}")
first, *others = (b"added" in found for found in places.values())
assert all(b"of_schema" in found for found in places.values())
sys.exit(not (first and not any(others)))
PYTHON
