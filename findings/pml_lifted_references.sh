#!/usr/bin/env bash
# Expected: a loss between embeddings and reference embeddings (ref_emb, or a CrossBatchMemory) does not depend on the
#   order in which the references come.
# Happens: LiftedStructureLoss of pytorch-metric-learning matches positive pairs and negative pairs by comparing
#   positions in the batch with positions among the references as if both counted the same things: with references,
#   its value changes when they are put into another order together with their labels. ContrastiveLoss does not.
# Why it matters: no error; with a memory of earlier batches the loss and its gradients are those of pairs that were
#   put together by chance.
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

torch.manual_seed(0)
labels = torch.arange(4).repeat_interleave(2)
batch, references = torch.randn(8, 16) + 0.5, torch.randn(8, 16) + 0.5
orders = [torch.arange(8), torch.randperm(8), torch.randperm(8)]
print(f"pytorch-metric-learning {pytorch_metric_learning.__version__}, torch {torch.__version__}")
spread = {}
for loss in (losses.LiftedStructureLoss(), losses.ContrastiveLoss()):
    values = [float(loss(batch, labels, ref_emb=references[order], ref_labels=labels[order])) for order in orders]
    spread[type(loss).__name__] = max(values) - min(values)
    print(f"  {type(loss).__name__}, the same references in three orders: {' '.join(f'{value:.4f}' for value in values)}")
sys.exit(not (spread["LiftedStructureLoss"] > 0.01 and spread["ContrastiveLoss"] < 1e-5))
PYTHON
