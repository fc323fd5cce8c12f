"""Parameters over one memory: what one of them keeps, another must not reset."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.masks import ChannelMask, WeightMask
from ke_metric.split.plan import SplitPlan


def refuse_conflicts(network: nn.Module, plan: SplitPlan) -> None:
    """Demand that no number is fit in one parameter or buffer of a network and reset in another one.

    A parameter that several modules hold is one parameter and has one mask; several parameters can be views of one
    memory, and have masks of their own.

    Raises:
        KeMetricError: A plan keeps in one what it resets in another.
    """
    sharing: dict[tuple[torch.device, int], list[tuple[str, Tensor]]] = {}
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.layout is torch.strided and tensor.numel() and tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            sharing.setdefault((storage.device, storage.data_ptr()), []).append((name, tensor))
    for tensors in sharing.values():
        if len(tensors) > 1 and any(name in plan.weights for name, _ in tensors):
            _compare(_without_other_views(tensors, plan), plan)


def _without_other_views(tensors: list[tuple[str, Tensor]], plan: SplitPlan) -> list[tuple[str, Tensor]]:
    """Leave out what wels takes for the same weight: what starts where one of its weights does."""
    if plan.kind != "wels":
        return tensors
    starts = {tensor.data_ptr() for name, tensor in tensors if name in plan.weights}
    return [(name, tensor) for name, tensor in tensors if name in plan.weights or tensor.data_ptr() not in starts]


def _compare(tensors: list[tuple[str, Tensor]], plan: SplitPlan) -> None:
    """Write into a copy of the memory who keeps or resets each number; raise where two do not agree."""
    size = min(tensor.element_size() for _, tensor in tensors)
    # Twice the number of a tensor, and 1 where it resets; below 0 where nobody has been.
    marks = torch.full((tensors[0][1].untyped_storage().nbytes() // size,), -1, device="cpu")
    for number, (name, tensor) in enumerate(tensors):
        mine = 2 * number + _resets(plan.weights.get(name), tensor)
        ratio = tensor.element_size() // size
        strides = [ratio * stride for stride in tensor.stride()]
        place = marks.as_strided(tensor.shape, strides, ratio * tensor.storage_offset())
        wrong = (place >= 0) & (place % 2 != mine % 2)
        if bool(wrong.any()):
            other = tensors[int(place[wrong][0]) // 2][0]
            raise KeMetricError(
                f"{other} and {name} are two parameters over one memory, and what is reset in one of them is kept in "
                f"the other: let both modules hold one parameter (the same object), or give {name} memory of its own "
                "(torch.nn.Parameter(weight.detach().clone()))",
                ExitCode.RECIPE,
            )
        place.copy_(mine)


def _resets(mask: ChannelMask | WeightMask | None, tensor: Tensor) -> Tensor:
    fit = torch.ones(tensor.shape, dtype=torch.bool, device="cpu") if mask is None else mask.expand()
    return (~fit).long()
