#!/usr/bin/env bash
# Expected: a loss saved with state_dict and loaded into a new one goes on as if nothing had happened, as a module with
#   buffers does.
# Happens: CrossBatchMemory of pytorch-metric-learning keeps the embeddings and labels of its queue in buffers, but
#   where the queue goes on (queue_idx) and whether it is full (has_been_filled) are plain attributes and not in the
#   state dict. What was loaded takes the memory for empty: its loss is that of the batch alone, and it writes over
#   the newest embeddings first.
# Why it matters: a training that is resumed from a checkpoint silently differs from one that was not interrupted,
#   and load_state_dict with strict=True says that all keys match.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pytorch-metric-learning==2.9.0 torch==2.14.1
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import pytorch_metric_learning
import torch
from pytorch_metric_learning import losses


def new():
    return losses.CrossBatchMemory(losses.ContrastiveLoss(), embedding_size=4, memory_size=16)


torch.manual_seed(0)
labels = torch.arange(4).repeat_interleave(2)
uninterrupted, resumed = new(), new()
for _ in range(3):
    uninterrupted(torch.randn(8, 4), labels)
print(f"pytorch-metric-learning {pytorch_metric_learning.__version__}, torch {torch.__version__}")
print(f"  state dict: {sorted(uninterrupted.state_dict())}; {resumed.load_state_dict(uninterrupted.state_dict())}")
for name in ("queue_idx", "has_been_filled"):
    print(f"  {name}: {getattr(uninterrupted, name)}, loaded: {getattr(resumed, name)}")
batch = torch.randn(8, 4)
one, other = float(uninterrupted(batch, labels)), float(resumed(batch, labels))
print(f"  the next batch: loss {one:.4f}, from the loaded one {other:.4f}")
sys.exit(abs(one - other) < 1e-3)
PYTHON
