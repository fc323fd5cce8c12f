#!/usr/bin/env bash
# Expected: InstanceLoss of pytorch-metric-learning, given labels, is a loss of these classes ("else use given label"):
#   with gradient descent on it, pictures of one class come together.
# Happens: it is the cross entropy of a picture's similarities to the pictures of the batch, with the number of its
#   class as target. So class k is compared with the k-th picture of the batch, whichever class that is of: all
#   pictures of class 3 are pulled to picture 3. The loss falls; Recall@1 stays near chance.
# Why it matters: no error and no warning in the usual batches of labelled pictures. Where every picture has a label of
#   its own, in ascending order, the two numberings agree and the loss is what the paper has.
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
from torch.nn.functional import normalize

classes, each = 16, 4
labels = torch.arange(classes).repeat_interleave(each)
found = {}
print(f"pytorch-metric-learning {pytorch_metric_learning.__version__}, torch {torch.__version__}")
for loss in (losses.InstanceLoss(), losses.NTXentLoss()):
    torch.manual_seed(0)
    vectors = torch.randn(classes * each, 32).requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=0.05)
    values = []
    for _ in range(200):
        optimizer.zero_grad()
        value = loss(normalize(vectors), labels)
        value.backward()
        optimizer.step()
        values.append(float(value))
    unit = normalize(vectors.detach())
    similarities = (unit @ unit.T).fill_diagonal_(-2)
    recall = found[type(loss).__name__] = float((labels[similarities.argmax(1)] == labels).float().mean())
    pulled = float((unit @ unit.T)[torch.arange(len(labels)), labels].mean())
    print(
        f"  {type(loss).__name__}: loss {values[0]:.2f} to {values[-1]:.2f}, Recall@1 {recall:.2f}, mean similarity of "
        f"a picture of class k to picture k of the batch {pulled:.2f}"
    )
sys.exit(not (found["InstanceLoss"] < 0.5 and found["NTXentLoss"] > 0.9))
PYTHON
