#!/usr/bin/env bash
# Expected: a product quantiser named in a factory string is trained for what its search will read.
# Happens: "PQ8x8" also trains polysemous codes: after k-means every sub-quantiser's 256 centroids are renumbered by
#   simulated annealing, so that Hamming distances of codes resemble distances of vectors. Only a search with
#   polysemous_ht > 0 reads that, and it is 0 unless it is set by hand. Training takes several times the processor
#   time of the same string with "np" (no polysemous), for the same neighbours.
# Why it matters: on the product quantisers that large galleries use (32 sub-quantisers) most of the training time is
#   spent on something that no search reads. "PQ8x8np" is the string to write.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet faiss-cpu==1.15.1 numpy==2.4.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import time

import faiss
import numpy as np

faiss.omp_set_num_threads(1)
vectors = np.random.default_rng(0).standard_normal((2000, 64), dtype=np.float32)
seconds, found = {}, {}
for name in ("IVF8,PQ8x8", "IVF8,PQ8x8np"):
    index = faiss.index_factory(64, name)
    started = time.process_time()
    index.train(vectors)
    seconds[name] = time.process_time() - started
    index.add(vectors)
    index.nprobe = 8
    found[name] = index.search(vectors[:200], 10)[0]
    print(f"faiss {faiss.__version__}, {name}: {seconds[name]:.1f} s of processor time, polysemous_ht {index.polysemous_ht}")
ratio = seconds["IVF8,PQ8x8"] / seconds["IVF8,PQ8x8np"]
same = np.array_equal(found["IVF8,PQ8x8"], found["IVF8,PQ8x8np"])
print(f"ratio {ratio:.1f}, same distances: {same}")
sys.exit(not (ratio > 3 and same))
PYTHON
