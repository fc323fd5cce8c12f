#!/usr/bin/env bash
# Expected: a loss that is called in every step of a training computes with that step's embeddings alone, or keeps
#   what it remembers apart from the graph.
# Happens: DynamicSoftMarginLoss of pytorch-metric-learning trains one step. The second one, with new embeddings,
#   raises "Trying to backward through the graph a second time": the histogram that it carries from step to step
#   still belongs to the first step's graph.
# Why it matters: a check that calls a loss once, as most do before a long training, passes. retain_graph, which the
#   message proposes, would keep every step's graph in memory.
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


def step(loss):
    embeddings = torch.nn.functional.normalize(torch.randn(8, 8)).requires_grad_()
    loss(embeddings, labels).backward()


loss = losses.DynamicSoftMarginLoss()
step(loss)
try:
    step(loss)
    second = "trains"
except RuntimeError as error:
    second = f"RuntimeError: {str(error)[:52]}"
print(f"pytorch-metric-learning {pytorch_metric_learning.__version__}, torch {torch.__version__}")
print(f"  DynamicSoftMarginLoss, second step, new embeddings: {second}")
sys.exit("backward through the graph a second time" not in second)
PYTHON
