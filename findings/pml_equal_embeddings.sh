#!/usr/bin/env bash
# Expected: a pair loss of batches that occur in any training is a number: copies of a picture are embedded alike, and
#   a batch may hold no two pictures of one class. Most losses of pytorch-metric-learning give 0 or a finite number.
# Happens: TupletMarginLoss is NaN, and so are its gradients, as soon as two pictures of a class have equal
#   embeddings (the angle of parallel vectors is taken with acos, whose slope is infinite there). NCALoss is NaN
#   where no picture has another one of its class, with gradients that are finite.
# Why it matters: one duplicate in a data set, or a picture that a sampler repeats, turns all weights into NaN, and
#   no smaller learning rate helps.
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
drawn = torch.nn.functional.normalize(torch.randn(8, 8))
copies = drawn.clone()
copies[1] = copies[0]
pairs, apart = torch.arange(4).repeat_interleave(2), torch.arange(8)


def outcome(loss, embeddings, labels):
    leaf = embeddings.clone().requires_grad_()
    value = loss(leaf, labels)
    value.backward()
    finite = bool(torch.isfinite(value)) and bool(torch.isfinite(leaf.grad).all())
    return f"loss {value.item():.3f}, gradient {'finite' if torch.isfinite(leaf.grad).all() else 'NaN'}", finite


rows = {
    "TupletMarginLoss, no two embeddings equal": outcome(losses.TupletMarginLoss(), drawn, pairs),
    "TupletMarginLoss, two pictures of a class embedded alike": outcome(losses.TupletMarginLoss(), copies, pairs),
    "TripletMarginLoss, the same": outcome(losses.TripletMarginLoss(), copies, pairs),
    "NCALoss, every picture of another class": outcome(losses.NCALoss(), drawn, apart),
    "TripletMarginLoss, the same ": outcome(losses.TripletMarginLoss(), drawn, apart),
}
print(f"pytorch-metric-learning {pytorch_metric_learning.__version__}, torch {torch.__version__}")
for name, (text, _) in rows.items():
    print(f"  {name.strip()}: {text}")
sys.exit([finite for _, finite in rows.values()] != [True, False, True, False, True])
PYTHON
