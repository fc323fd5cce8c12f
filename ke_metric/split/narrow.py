"""A narrow network inside a wide one: it computes narrow, and its weights are the wide network's own.

Slimmable networks (Yu et al., ICLR 2019) train several widths of one network in every step, each with norm statistics
of its own; the masks of a kels plan are nested, so that every split rate is such a width. Here it is done for any
network that `plan_split` takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ke_metric.arrays import tensors_of
from ke_metric.split.admission import unwrapped
from ke_metric.split.hypotheses import KeptAxes, cut_out, kept_axes, narrowed
from ke_metric.split.plan import ChannelSet, SplitPlan


@dataclass(frozen=True)
class _Part:
    """A parameter that is narrow: the wide one, the narrow one, and what is kept along which axes."""

    wide: nn.Parameter
    narrow: nn.Parameter
    kept: KeptAxes

    @property
    def is_view(self) -> bool:
        """Whether the kept channels are one range of every axis, so that both lie in one memory."""
        return all(len(channels.ranges) == 1 for _, channels in self.kept)


class NarrowNetwork:
    """The fit hypothesis of a network as a narrow network that trains the network's own weights.

    Where kept channels are a prefix, which they nearly always are, a parameter of the narrow network is a view of the
    wide one; where they are not (behind a concatenation), it is a copy that `refresh` renews. Norm statistics are the
    narrow network's own, and those of the wide one are never touched. A training step:

        narrow.refresh()
        loss(narrow.module(images), labels).backward()
        narrow.add_gradients()

    gives the wide network's parameters the gradient that the slim network would have got, and 0 elsewhere; it is
    added to what `grad` holds already.

    Args:
        network: The wide network, where it is to be trained: moving or laying it out anew leaves views behind.
        plan: A kels plan of it.

    Attributes:
        module: The narrow network, as `extract_slim` gives it but for its memory.

    Raises:
        KeMetricError: The plan is of kind wels, or of another network.
    """

    module: nn.Module

    def __init__(self, network: nn.Module, plan: SplitPlan) -> None:
        network = unwrapped(network)
        kept = kept_axes(network, plan)
        self._parts: list[_Part] = []
        # Parameters that nothing narrows are shared as they are; buffers are the narrow network's own.
        tensors: dict[int, Tensor] = {id(parameter): parameter for parameter in network.parameters()}
        for name, tensor in tensors_of(network).items():
            if name not in kept:
                continue
            tensors[id(tensor)] = narrowed(tensor, kept[name])
            if isinstance(tensor, nn.Parameter):
                self._parts.append(self._part(tensor, kept[name]))
                tensors[id(tensor)] = self._parts[-1].narrow
        self.module = cut_out(network, plan, tensors)
        self._places = [part.wide.data_ptr() for part in self._parts]

    @staticmethod
    def _part(wide: nn.Parameter, kept: KeptAxes) -> _Part:
        values = wide.detach()
        for axis, channels in kept:
            values = _along(values, axis, channels)
        return _Part(wide, nn.Parameter(values, wide.requires_grad), kept)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the wide network's values where they are not shared; before every forward pass."""
        for part, place in zip(self._parts, self._places, strict=True):
            assert part.wide.data_ptr() == place, "the network was moved after its narrow network was made"
            if part.is_view:
                continue
            values = part.wide.detach()
            for axis, channels in part.kept:
                values = _along(values, axis, channels)
            part.narrow.copy_(values)

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add the gradients of the narrow network to those of the wide one, and forget them here."""
        for part in self._parts:
            gradient = part.narrow.grad
            if gradient is None:
                continue
            if part.wide.grad is None:
                part.wide.grad = torch.zeros_like(part.wide)
            _add(gradient, part.wide.grad, part.kept)
            part.narrow.grad = None


def _along(values: Tensor, axis: int, channels: ChannelSet) -> Tensor:
    """Return the kept channels of an axis: a view where they are one range, else a copy."""
    if len(channels.ranges) == 1:
        start, end = channels.ranges[0]
        return values.narrow(axis, start, end - start)
    return values.index_select(axis, channels.index.to(values.device))


def _add(narrow: Tensor, wide: Tensor, kept: KeptAxes) -> None:
    """Add a tensor to the kept channels of a wide one, range by range."""
    if not kept:
        wide.add_(narrow)
        return
    (axis, channels), *others = kept
    begin = 0
    for start, end in channels.ranges:
        count = end - start
        _add(narrow.narrow(axis, begin, count), wide.narrow(axis, start, count), tuple(others))
        begin += count
