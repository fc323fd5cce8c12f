"""Cut the fit hypothesis out of a network as an ordinary, narrower network."""

from __future__ import annotations

from copy import deepcopy

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ke_metric.arrays import memory_format_of, tensors_of
from ke_metric.split.admission import refusal, unwrapped
from ke_metric.split.plan import ChannelMask, ChannelSet, SplitPlan


def extract_slim(network: nn.Module, plan: SplitPlan) -> nn.Module:
    """Return the fit hypothesis of a network as a network of its own.

    A deep copy with narrower layers: in eval mode it computes what the network computes with its reset hypothesis
    set to zero. It shares nothing with the network, and can be trained, exported and split again.

    Args:
        network: The network; unchanged.
        plan: A kels plan of it.

    Raises:
        KeMetricError: The plan is of kind wels, or of another network.
    """
    if plan.kind != "kels":
        raise refusal(
            f"a split of kind {plan.kind!r} keeps single weights of every channel: there is no slim network in it "
            "(kind='kels' has one)"
        )
    network = unwrapped(network)
    plan.check(network)
    narrow = _narrow_tensors(network, plan)
    # What deepcopy finds in its memo it takes as the copy: wide tensors are never copied only to be cut.
    slim = deepcopy(network, {id(wide): tensor for wide, tensor in narrow})
    slim.zero_grad(set_to_none=True)
    narrowed = {id(tensor) for _, tensor in narrow}
    for module in slim.modules():
        if any(id(tensor) in narrowed for tensor in [*module._parameters.values(), *module._buffers.values()]):
            _state_widths(module)
    for name, attributes in plan.settings.items():
        module = slim.get_submodule(name)
        for attribute, value in attributes.items():
            setattr(module, attribute, value if isinstance(value, int) else type(getattr(module, attribute))(value))
    return slim


def _narrow_tensors(network: nn.Module, plan: SplitPlan) -> list[tuple[Tensor, Tensor]]:
    """Return every parameter and buffer that the plan narrows, with its narrow version."""
    tensors = tensors_of(network)
    narrow = []
    for name, mask in plan.weights.items():
        assert isinstance(mask, ChannelMask)
        narrow.append((tensors[name], _narrow(tensors[name], list(enumerate(mask.axes)))))
    for name, narrowing in plan.narrowings.items():
        narrow.append((tensors[name], _narrow(tensors[name], [(narrowing.axis, narrowing.channels)])))
    return narrow


def _narrow(tensor: Tensor, kept: list[tuple[int, ChannelSet]]) -> Tensor:
    values = tensor.detach()
    for axis, channels in kept:
        if channels.count < channels.size:
            values = values.index_select(axis, channels.index.to(tensor.device))
    values = values.clone(memory_format=memory_format_of(tensor))
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def _state_widths(module: nn.Module) -> None:
    """Let a layer's own attributes say how wide it is now."""
    if isinstance(module, _ConvTransposeNd):
        if module.groups > 1:
            module.groups = module.groups * len(module.weight) // module.in_channels
        module.in_channels = len(module.weight)
        module.out_channels = module.weight.size(1) * module.groups
    elif isinstance(module, _ConvNd):
        if module.groups > 1:
            module.groups = module.groups * len(module.weight) // module.out_channels
        module.out_channels = len(module.weight)
        module.in_channels = module.weight.size(1) * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    else:
        _state_norm_widths(module)


def _state_norm_widths(module: nn.Module) -> None:
    if isinstance(module, _NormBase):
        tensors = (module.weight, module.running_mean)
        module.num_features = len(next(tensor for tensor in tensors if tensor is not None))
    elif isinstance(module, nn.GroupNorm):
        if module.num_groups > 1:
            module.num_groups = module.num_groups * len(module.weight) // module.num_channels
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
