#!/usr/bin/env bash
# Expected: a thousand copies of one picture in a gallery of 20,000 cost an HNSW graph nothing but their own places.
# Happens: every copy is linked to other copies, whose distance 0 nothing can beat. What was linked to the original
#   is cut off, and the vectors added before the copies are found less often: a share of the items no longer finds
#   itself (not even its own vector as the first of ten), and a wider search (efSearch 64 to 512) does not mend it.
# Why it matters: copies are common in real galleries (one picture in several folders, placeholders, blank scans).
#   The loss falls on other items than the copies, and nothing reports it.
# What helps: link equal vectors once and keep the list of their ids beside the index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet faiss-cpu==1.15.1 numpy==2.4.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import faiss
import numpy as np

faiss.omp_set_num_threads(1)
rng = np.random.default_rng(0)
plain = rng.standard_normal((20_000, 64), dtype=np.float32)
plain /= np.linalg.norm(plain, axis=1, keepdims=True)
queries = plain[1:501]


def found(vectors, ef):
    graph = faiss.IndexHNSWFlat(64, 32)
    graph.add(vectors)
    graph.hnsw.efSearch = ef
    nearest = graph.search(queries, 10)[1]
    return np.mean([(vectors[rows] == query).all(axis=1).any() for rows, query in zip(nearest, queries)])


print(f"faiss {faiss.__version__}, HNSW32, share of 500 items that are among their own ten nearest:")
without = found(plain, 64)
copies = np.concatenate([plain, np.repeat(plain[:1], 1000, axis=0)])
narrow, wide = found(copies, 64), found(copies, 512)
print(f"  20,000 vectors, efSearch 64: {without:.3f}")
print(f"  and 1,000 copies of the first, efSearch 64: {narrow:.3f}, efSearch 512: {wide:.3f}")
sys.exit(not (without > 0.99 and narrow < 0.97 and wide < 0.97))
PYTHON
