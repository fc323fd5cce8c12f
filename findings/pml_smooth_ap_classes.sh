#!/usr/bin/env bash
# Expected: SmoothAPLoss of pytorch-metric-learning asks for batches with equally many pictures of every class, one
#   class after another, and then approximates one minus the average precision (Brown et al., ECCV 2020): where it
#   reaches 0, every picture has those of its class nearest.
# Happens: what the code calls the number of classes is batch size // number of classes, which is the number of
#   pictures per class. With 16 classes of 4 it works as if there were 4 classes of 16 and pulls four classes
#   together: the loss falls to 0 while one picture in five has its own class nearest. Only where both numbers are
#   equal (8 classes of 8) is it what it says.
# Why it matters: no error, and a loss that falls as it should; the usual batches (many classes, four pictures of
#   each) train an embedding that mixes classes.
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


def trained(loss, classes, each):
    """Loss and Recall@1 of free vectors after 60 steps of gradient descent on the loss."""
    torch.manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(each)
    vectors = torch.randn(classes * each, 32).requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(normalize(vectors), labels)
        value.backward()
        optimizer.step()
    similarities = normalize(vectors.detach()) @ normalize(vectors.detach()).T
    similarities.fill_diagonal_(-2)
    return float(value), float((labels[similarities.argmax(1)] == labels).float().mean())


print(f"pytorch-metric-learning {pytorch_metric_learning.__version__}, torch {torch.__version__}")
found = {}
for loss in (losses.SmoothAPLoss(), losses.FastAPLoss()):
    for classes, each in ((8, 8), (16, 4)):
        value, recall = found[type(loss).__name__, classes] = trained(loss, classes, each)
        print(f"  {type(loss).__name__}, {classes} classes of {each}: loss {value:.3f}, Recall@1 {recall:.2f}")
value, recall = found["SmoothAPLoss", 16]
as_seen = value < 0.01 and recall < 0.5
others = all(recall > 0.9 for key, (_, recall) in found.items() if key != ("SmoothAPLoss", 16))
sys.exit(not (as_seen and others))
PYTHON
