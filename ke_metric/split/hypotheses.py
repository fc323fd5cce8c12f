"""The two hypotheses of a network, by its plan: the reset one is redrawn in place, the fit one cut out.

What is redrawn leaves the fit hypothesis bit-identical; what is cut out is an ordinary, narrower network.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from copy import deepcopy
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ke_metric.arrays import Weights, load_whole, memory_format_of, tensors_of
from ke_metric.errors import closest
from ke_metric.randomness import default_streams
from ke_metric.split.admission import check_network, refusal, unwrapped
from ke_metric.split.plan import ChannelMask, ChannelSet, SplitPlan
from ke_metric.split.wels import owner_of

INITS = ("official", "same_as_init", "orthogonal", "zero")

# Values are those of a whole weight, from its name, the module that owns it and its present values.
_Values = Callable[[str, nn.Module, Tensor], Tensor]


KeptAxes = tuple[tuple[int, ChannelSet], ...]
"""Axes of a tensor, and which channels are kept along them."""


def redraw_reset(
    network: nn.Module,
    plan: SplitPlan,
    *,
    generator: torch.Generator | None = None,
    init: str = "official",
    fresh: nn.Module | None = None,
) -> list[str]:
    """Give the reset hypothesis new values; the fit hypothesis, biases, norms and buffers stay bit-identical.

    So do frozen weights (requires_grad=False), the whole of them: random values that never train would stay random.
    The other weights get the values that they would get if none were frozen. So does the row of an embedding table
    that stands for padding.

    - `official` draws from U(-b, b) with b = 1 / sqrt(fan_in) and the dense layer's fan_in, as the code of Taha et
      al. does (kaiming_uniform_ with a = sqrt(5)) whatever the network was initialised with; fan_in is the product
      of all dimensions but the first, as torch counts it.
    - `same_as_init` takes the values of `fresh`. Without `fresh` every module draws them by its own rule
      (`reset_parameters`, the outermost module that has one first): right for recurrent and graph layers and for
      networks that leave their layers as these initialise themselves; a network that overwrites them when it is
      built, such as torchvision's ResNet, needs `fresh`.
    - `orthogonal` takes the entries of a random (semi-)orthogonal matrix [rows, all other dimensions] of gain 1, as
      `torch.nn.init.orthogonal_` draws it (Saxe et al., ICLR 2014): one matrix for every gate of a recurrent weight
      and for each of the stacked query, key and value weights of nn.MultiheadAttention.
    - `zero` sets them to 0.

    Args:
        network: The network, wrapped (DistributedDataParallel, torch.compile) or not; changed in place, its
            parameters keep their storage.
        plan: A plan of this network.
        generator: CPU generator that random values come from, weight after weight, so that they are the same on
            every device.
        init: `official`, `same_as_init`, `orthogonal` or `zero`.
        fresh: A newly built network of the same architecture, for same_as_init.

    Returns:
        The names of the weights with a reset part that were left as they are because they are frozen.

    Raises:
        KeMetricError: The plan is of another network, what `init` needs is missing, every weight with a reset part is
            frozen, or the network is sharded or was made in inference mode.
    """
    network = _network_of(network, plan)
    frozen = require_redrawable(network, plan)
    _redraw(network, plan, _values(network, plan, generator, init, fresh), frozen)
    return frozen


def require_redrawable(network: nn.Module, plan: SplitPlan) -> list[str]:
    """Return the weights with a reset part that are frozen, unless all of them are, which is a KeMetricError."""
    frozen = frozen_weights(network, plan)
    if frozen and len(frozen) == sum(mask.fit_count < prod(mask.shape) for mask in plan.weights.values()):
        raise refusal(
            f"every weight of this {type(network).__name__} with a reset part is frozen (requires_grad=False), "
            f"{frozen[0]} for one: there is nothing to redraw that could train; unfreeze what is to be trained "
            "(requires_grad_(True))"
        )
    return frozen


def zero_reset(network: nn.Module, plan: SplitPlan) -> None:
    """Set the reset hypothesis to 0, in place: in eval mode the network then computes what its slim network does.

    Frozen weights too: the slim network has no reset channels of theirs either.
    """
    network = _network_of(network, plan)
    _redraw(network, plan, _values(network, plan, None, "zero", None), ())


def _network_of(network: nn.Module, plan: SplitPlan) -> nn.Module:
    """Return the network without its wrappers, once it is seen to be that of the plan."""
    check_network(network)
    network = unwrapped(network)
    plan.check(network)
    return network


def frozen_weights(network: nn.Module, plan: SplitPlan) -> list[str]:
    """Return the weights of a plan with a reset part that are frozen (requires_grad=False)."""
    parameters = dict(network.named_parameters())
    return [
        name
        for name, mask in plan.weights.items()
        if not parameters[name].requires_grad and mask.fit_count < prod(mask.shape)
    ]


def _redraw(network: nn.Module, plan: SplitPlan, values: _Values, frozen: Collection[str]) -> None:
    with torch.no_grad():
        for name, mask in plan.weights.items():
            (owner, _), old = owner_of(network, name), network.get_parameter(name)
            new = values(name, owner, old).to(device=old.device, dtype=old.dtype)
            if name in frozen:
                continue
            fit = mask.expand().to(old.device)
            if isinstance(owner, nn.Embedding | nn.EmbeddingBag) and owner.padding_idx is not None:
                # No gradient ever reaches this row: a random one would stay.
                fit[owner.padding_idx] = True
            old.copy_(torch.where(fit, old, new))


def _values(
    network: nn.Module, plan: SplitPlan, generator: torch.Generator | None, init: str, fresh: nn.Module | None
) -> _Values:
    if init not in INITS:
        raise refusal(f"reset {init!r} is none of {', '.join(INITS)}{closest(init, INITS)}")
    if init == "zero":
        return lambda _, __, old: torch.zeros_like(old)
    if init == "same_as_init" and fresh is not None:
        return _of_fresh(network, plan, unwrapped(fresh))
    if generator is None:
        instead = ", or fresh=, a newly built network of the same architecture" if init == "same_as_init" else ""
        raise refusal(f"init={init!r} draws random values and needs generator={instead}")
    if init == "same_as_init":
        drawn = _by_own_rules(network, plan, generator)
        return lambda name, _, __: drawn[name]
    if init == "orthogonal":
        return lambda _, owner, old: _orthogonal(owner, old.shape, generator)
    return lambda _, __, old: _uniform(old.shape, generator)


def _of_fresh(network: nn.Module, plan: SplitPlan, fresh: nn.Module) -> _Values:
    if fresh is network:
        raise refusal(
            "init='same_as_init' takes its values from fresh=, a newly built network of the same architecture; it "
            "was given the network itself"
        )
    plan.check(fresh)
    return lambda name, _, __: fresh.get_parameter(name).detach()


def _uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    bound = prod(shape[1:]) ** -0.5
    return torch.empty(shape, dtype=torch.float32, device="cpu").uniform_(-bound, bound, generator=generator)


def _orthogonal(owner: nn.Module, shape: torch.Size, generator: torch.Generator) -> Tensor:
    new = torch.empty(shape, dtype=torch.float32, device="cpu")
    blocks = 1
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        # The projection of an LSTM has fewer rows than one gate.
        blocks = max(1, shape[0] // owner.hidden_size)
    elif isinstance(owner, nn.MultiheadAttention):
        blocks = shape[0] // owner.embed_dim
    for block in new.chunk(blocks):
        nn.init.orthogonal_(block, generator=generator)
    return new


def _by_own_rules(network: nn.Module, plan: SplitPlan, generator: torch.Generator) -> dict[str, Tensor]:
    """Return new values for the weights of a plan, drawn as the network's own modules initialise them.

    All of them before any is used, so that an error leaves the network as it was.
    """
    drawn: dict[str, Tensor] = {}
    for path, module in network.named_modules():
        prefix = f"{path}." if path else ""
        missing = [name for name in plan.weights if name.startswith(prefix) and name not in drawn]
        rule = next((name for name in ("reset_parameters", "_reset_parameters") if hasattr(module, name)), None)
        if missing and rule:
            own_names = [name.removeprefix(prefix) for name in missing]
            drawn |= {prefix + name: new for name, new in _initialised(module, rule, own_names, generator).items()}
    for name in plan.weights:
        if name not in drawn:
            raise refusal(
                f"init='same_as_init': {name} belongs to a {type(owner_of(network, name)[0]).__name__}, and no "
                "reset_parameters() draws it; pass fresh=, a newly built network of the same architecture"
            )
    return drawn


def _initialised(module: nn.Module, rule: str, names: list[str], generator: torch.Generator) -> dict[str, Tensor]:
    """Return those of the named weights that a module's rule initialises, on the CPU in float32."""
    copy = deepcopy(module).to("cpu", torch.float32)
    with torch.no_grad():
        for name in names:
            # What is still NaN afterwards the rule does not touch: timm's blocks reset only what they own themselves.
            copy.get_parameter(name).fill_(torch.nan)
    seed = int(torch.randint(2**62, (), generator=generator))
    try:
        with default_streams(seed, 0, "weights by their module's rule"):
            getattr(copy, rule)()
    except TypeError as error:
        raise refusal(
            f"init='same_as_init': {rule}() of {type(module).__name__} failed: {error}; pass fresh=, a newly built "
            "network of the same architecture"
        ) from error
    new = {name: copy.get_parameter(name).detach() for name in names}
    return {name: weight for name, weight in new.items() if bool(weight.isfinite().all())}


def mean_magnitudes(network: nn.Module, plan: SplitPlan) -> dict[str, tuple[float | None, float | None]]:
    """Return weight name -> (mean |w| in the fit part, mean |w| in the reset part); None where a part is empty.

    The slim network computes what the dense one does where the reset part is 0: how small it has become beside the
    fit part says how far the two networks are apart.

    Raises:
        KeMetricError: The plan is of another network.
    """
    network = unwrapped(network)
    plan.check(network)
    means = {}
    for name, mask in plan.weights.items():
        magnitudes = network.get_parameter(name).detach().abs().double()
        fit = mask.expand().to(magnitudes.device)
        means[name] = (_mean(magnitudes[fit]), _mean(magnitudes[~fit]))
    return means


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if values.numel() else None


def extract_slim(network: nn.Module, plan: SplitPlan, statistics: Weights | None = None) -> nn.Module:
    """Return the fit hypothesis of a network as a network of its own.

    A deep copy with narrower layers: in eval mode it computes what the network computes with its reset hypothesis
    set to zero. It shares nothing with the network, and can be trained, exported and split again.

    Args:
        network: The network; unchanged.
        plan: A kels plan of it.
        statistics: Name of a tensor of the slim network to its value: norm statistics of its own, as
            `estimate_norm_statistics` returns them, in place of those cut out of the network's.

    Raises:
        KeMetricError: The plan is of kind wels, or of another network, or a statistic does not fit.
    """
    network = unwrapped(network)
    tensors = tensors_of(network)
    kept = kept_axes(network, plan)
    # What deepcopy finds in its memo it takes as the copy: wide tensors are never copied only to be cut.
    slim = cut_out(network, plan, {id(tensors[name]): narrowed(tensors[name], axes) for name, axes in kept.items()})
    slim.zero_grad(set_to_none=True)
    if statistics:
        load_whole(slim, {**slim.state_dict(), **statistics}, "the statistics")
    return slim


def kept_axes(network: nn.Module, plan: SplitPlan) -> dict[str, KeptAxes]:
    """Return for every parameter and buffer that a plan narrows what is kept along which of its axes.

    Raises:
        KeMetricError: The plan is of kind wels, or of another network.
    """
    if plan.kind != "kels":
        raise refusal(
            f"a split of kind {plan.kind!r} keeps single weights of every channel: there is no slim network in it "
            "(kind='kels' has one)"
        )
    plan.check(network)
    kept: dict[str, KeptAxes] = {name: ((each.axis, each.channels),) for name, each in plan.narrowings.items()}
    for name, mask in plan.weights.items():
        assert isinstance(mask, ChannelMask)
        kept[name] = tuple((axis, channels) for axis, channels in enumerate(mask.axes))
    return kept


def cut_out(network: nn.Module, plan: SplitPlan, tensors: dict[int, Tensor]) -> nn.Module:
    """Return a deep copy of a network with other tensors, whose modules say how wide they are.

    Args:
        network: The network.
        plan: A kels plan of it.
        tensors: `id` of a parameter or buffer of the network -> what the copy has in its place; others are copied.
    """
    # A tensor that a module computes before every pass (pruning) cannot be copied while it has a gradient's history.
    computed = {
        id(value): value.detach()
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    slim = deepcopy(network, {**computed, **tensors})
    replaced = {id(tensor) for tensor in tensors.values()}
    for module in slim.modules():
        if any(id(tensor) in replaced for tensor in [*module._parameters.values(), *module._buffers.values()]):
            _state_widths(module)
    for name, attributes in plan.settings.items():
        module = slim.get_submodule(name)
        for attribute, value in attributes.items():
            setattr(module, attribute, value if isinstance(value, int) else type(getattr(module, attribute))(value))
    return slim


def narrowed(tensor: Tensor, kept: KeptAxes) -> Tensor:
    """Return a narrow copy of a parameter or buffer, laid out in memory as it is."""
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
