#!/usr/bin/env bash
# Expected: of items that are equally near, an exact index lists the same ones first however many are asked for, so
#   that the three nearest are the first three of the five nearest. IndexFlatL2 does so: 0 1 2, then 0 1 2 3 4.
# Happens: IndexFlatIP lists equal items backwards, beginning with the last one that it still had to take: 2 1 0 for
#   k = 3, 4 3 2 1 0 for k = 5. The first hit depends on k.
# Why it matters: pictures that occur several times (copies in a data set, one picture under two labels) are exact
#   ties. Recall@1 and the label of "the nearest neighbour" then depend on how many neighbours happened to be asked
#   for, and an answer for k = 3 is not the beginning of the answer for k = 5.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet faiss-cpu==1.15.1 numpy==2.4.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import faiss
import numpy as np

vectors = np.tile(np.float32([[1, 0, 0, 0]]), (6, 1))
found = {}
for kind in (faiss.IndexFlatL2, faiss.IndexFlatIP):
    index = kind(4)
    index.add(vectors)
    found[kind.__name__] = {k: index.search(vectors[:1], k)[1][0].tolist() for k in (1, 3, 5)}
print(f"faiss {faiss.__version__}, six times the same vector, rows found for k = 1, 3, 5:")
for name, rows in found.items():
    print(f"  {name}: {rows[1]} {rows[3]} {rows[5]}")
expected = {
    "IndexFlatL2": {1: [0], 3: [0, 1, 2], 5: [0, 1, 2, 3, 4]},
    "IndexFlatIP": {1: [0], 3: [2, 1, 0], 5: [4, 3, 2, 1, 0]},
}
sys.exit(found != expected)
PYTHON
