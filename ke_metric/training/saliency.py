"""How much the loss of a trained network depends on each of its weights."""

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

    Network and loss are in eval mode, so that a batch neither changes norm statistics nor depends on dropout, and
    moves no scale. Where a loss takes partners, the images are their own: what partners add is 0 then.

    Args:
        network: Images [B, 3, H, W] to outputs; placed.
        loss: Outputs and labels to a scalar; placed.
        batches: One or more batches, each process's share of them.
        engine: Device and processes.
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
