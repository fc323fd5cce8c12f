"""The gradients of what was trained, for methods that go by how much a weight matters to the loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ke_metric.training.engine import Engine
from ke_metric.training.one_generation import TrainingBatch


def mean_gradients(
    network: nn.Module, loss: nn.Module, batches: Iterable[TrainingBatch], engine: Engine
) -> dict[str, Tensor]:
    """Return the mean over batches of the absolute gradient of every parameter, on the CPU, in float32.

    Network and loss, both placed, are in eval mode, so that a batch neither changes norm statistics nor depends on
    dropout, and moves no scale. Where a loss takes partners, the images are their own: what partners add is 0 then.
    Each process has its share of the batches.
    """
    network.eval()
    loss.eval()
    sums = {name: torch.zeros_like(parameter) for name, parameter in network.named_parameters()}
    count = 0
    for batch in batches:
        network.zero_grad(set_to_none=True)
        outputs, labels = engine.gather(network(batch.images), batch.labels)
        partners = (outputs.detach(),) if getattr(loss, "takes_partners", False) else ()
        loss(outputs, labels, *partners).backward()
        engine.average_gradients(network)
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                sums[name] += parameter.grad.abs()
        count += 1
    assert count, "there are no batches"
    return {name: (total / count).float().cpu() for name, total in sums.items()}
