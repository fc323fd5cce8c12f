"""Plan a split: follow the channels of a network, decide which are fit, and prove it in a rehearsal."""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from ke_metric.arrays import tensors_of
from ke_metric.errors import closest
from ke_metric.split.admission import (
    ExampleInput,
    check_arguments,
    check_network,
    check_ordinary,
    refusal,
    run_network,
    tensors_in,
    undisturbed,
    unwrapped,
)
from ke_metric.split.following import follow_channels
from ke_metric.split.graph import ChannelGraph, restrict, varying
from ke_metric.split.hypotheses import extract_slim, frozen_weights, zero_reset
from ke_metric.split.kels import (
    CutError,
    Wish,
    refuse_cut,
    refuse_left_out,
    refuse_misfit,
    refuse_nothing,
    refuse_undefined,
)
from ke_metric.split.plan import ASKED_FOR, ChannelMask, ChannelSet, Narrowing, SplitPlan, WeightMask
from ke_metric.split.rehearsal import MisfitError, rehearse
from ke_metric.split.wels import plan_wels


def plan_split(  # noqa: PLR0913  # the one public function of a split
    network: nn.Module,
    example_input: ExampleInput,
    *,
    rate: float = 0.5,
    kind: str = "kels",
    keep_whole: Collection[str] = (),
    seed: int | None = None,
    channel_multiple: int = 1,
    embeddings: bool = False,
) -> SplitPlan:
    """Plan which part of every weight of a network is the fit hypothesis.

    `kels` keeps the first ceil(rate x channels) output channels of every convolution and linear layer, and the input
    channels that are kept where they come from; the network's input and output are never narrowed. `wels` keeps
    round(rate x entries) single entries of every multiplicative weight, drawn at random.
    (Taha, Shrivastava, Davis: Knowledge Evolution in Neural Networks, CVPR 2021.)

    Args:
        network: Any network; unchanged.
        example_input: What it takes, for example images [B, 3, H, W]; kels runs the network on it once. A tuple holds
            positional arguments, a dict keyword arguments.
        rate: Split rate in (0, 1]; 1 keeps everything.
        kind: `kels` or `wels`.
        keep_whole: Names of modules, or of single weights: layers that keep all of their outputs (kels) or weights
            (wels). No other weight that the network uses is left out. Modules that no narrower width can serve
            keep all of their channels, too; `kept_whole` of the plan names both, with the reason.
        seed: Seed of the wels masks; unused by kels, which draws nothing.
        channel_multiple: kels rounds the number of kept channels up to a multiple of this (8 suits tensor cores).
        embeddings: Whether wels splits embedding tables too; kels leaves them whole.

    Raises:
        KeMetricError: A bad argument, a network that kels cannot follow or that cannot be trained, a weight that is
            in no mask, or a rate below 1 at which nothing is reset.
    """
    check_arguments(kind=kind, rate=rate, channel_multiple=channel_multiple, keep_whole=keep_whole, seed=seed)
    check_network(network)
    network = unwrapped(network)
    check_ordinary(network)
    whole = _weights_inside(network, keep_whole)
    if kind == "wels":
        masks = plan_wels(network, rate=rate, keep_whole=whole, seed=seed, embeddings=embeddings)
        plan = SplitPlan("wels", rate, masks)
    elif embeddings:
        raise refusal("embeddings=True is for kind='wels'; kels leaves embedding tables whole")
    else:
        plan = _plan_kels(network, example_input, Wish(rate, tuple(keep_whole), frozenset(whole), channel_multiple))
    if rate < 1 and not plan.reset_count:
        raise refuse_nothing(type(network).__name__, plan, keep_whole)
    _refuse_conflicts(network, plan)
    left_out = [name for name, _ in network.named_parameters() if name in whole and name not in plan.weights]
    kept_whole = dict.fromkeys([*keep_whole, *left_out], ASKED_FOR) | dict(plan.kept_whole)
    return replace(plan, kept_whole=kept_whole, frozen=tuple(frozen_weights(network, plan)))


def _plan_kels(network: nn.Module, example_input: ExampleInput, wish: Wish) -> SplitPlan:
    """Plan and rehearse, until the slim network works.

    Where it does not, modules of the kind that failed are made as wide inside as outside, if that leaves anything to
    drop. Otherwise the nearest module that takes channels apart is kept whole. Where there is none, what was tried
    in vain before is tried together with nothing kept whole; then the network is refused.
    """
    graph = follow_channels(network, example_input)
    if wish.rate < 1:
        refuse_left_out(network, graph, wish)
    whole: dict[str, str] = {}
    as_wide: set[type[nn.Module]] = set()
    spare: list[Tensor] = []
    while True:
        labels = [each for module in whole for each in _taken_apart(graph, module)]
        fit = _fit(graph, wish, labels)
        plan = SplitPlan(
            "kels", wish.rate, _weights(network, graph, fit), _narrowings(graph, fit), _norms(graph, fit),
            kept_whole=whole, channel_multiple=wish.multiple,
        )  # fmt: skip
        if bool(fit.all()):
            return plan
        try:
            settings = rehearse(extract_slim(network, plan), example_input, graph, fit)
        except MisfitError as misfit:
            kind = type(dict(network.named_modules()).get(misfit.module, network))
            ties = [] if kind in as_wide else _inside_to_outside(network, graph, kind)
            as_wide.add(kind)
            if ties and _stays_narrow(graph, ties, wish, labels):
                continue
            spare += ties
            module = _culprit(graph, misfit.module, whole)
            if module is not None:
                whole[module] = (
                    f"no narrower width can serve it: with fewer, {misfit.module} does not work on the channels that "
                    f"are kept ({misfit})"
                )
            elif spare:
                graph.ties += spare
                spare, whole = [], {}
            else:
                raise refuse_misfit(graph, wish, fit, misfit) from misfit
        else:
            _refuse_undefined(network, example_input, graph, wish, plan)
            return replace(plan, settings=settings)


def _refuse_undefined(
    network: nn.Module, example_input: ExampleInput, graph: ChannelGraph, wish: Wish, plan: SplitPlan
) -> None:
    """Demand that a network in which layers divide by what is computed from weights alone does not divide by 0."""
    has_values = not any(parameter.is_meta for parameter in network.parameters())
    if has_values and not graph.computed_with.isdisjoint(plan.weights):
        zeroed = deepcopy(network)
        zero_reset(zeroed, plan)
        if not _is_finite(zeroed, example_input) and _is_finite(network, example_input):
            raise refuse_undefined(graph, wish, plan)


def _is_finite(network: nn.Module, example_input: ExampleInput) -> bool:
    with undisturbed(network):
        outputs = tensors_in(run_network(network, example_input))
    return all(bool(output.isfinite().all()) for output in outputs)


def _fit(graph: ChannelGraph, wish: Wish, whole: Collection[Tensor]) -> Tensor:
    """Return for every label whether its channel is fit, bool [graph.labels]; `whole` are labels that are."""
    try:
        return wish.fit(graph, whole)
    except CutError as cut:
        raise refuse_cut(graph, wish, cut) from None


def _inside_to_outside(network: nn.Module, graph: ChannelGraph, kind: type[nn.Module]) -> list[Tensor]:
    """Return the ties [2, pairs] that make all modules of a kind as wide inside as outside, one for every layer.

    Most attention is written so: channels divided by heads is the width of a head. There queries, keys, values and
    projections, made from as many channels as each of them has, keep the channels that their inputs keep, which are
    those of whole heads.
    """
    ties = []
    for name in (name for name, module in network.named_modules() if type(module) is kind and module is not network):
        inside = [layer for weight, layer in graph.layers.items() if weight.startswith(f"{name}.")]
        for layer in inside if len(inside) > 1 else ():
            times, rest = divmod(len(layer.outputs), len(layer.inputs))
            if rest == 0 and times <= 3:
                ties.append(torch.stack([layer.outputs, layer.inputs.repeat(times)]))
    return ties


def _stays_narrow(graph: ChannelGraph, ties: list[Tensor], wish: Wish, whole: Collection[Tensor]) -> bool:
    """Add ties [2, pairs], and tell whether they leave anything to drop; where not, they are taken back.

    A channel shuffle ties all channels to all: what is made for attention would keep its modules whole.
    """
    graph.ties += ties
    fit = _fit(graph, wish, whole)
    if all(bool(fit[pairs].all()) for pairs in ties):
        del graph.ties[-len(ties) :]
        return False
    return True


def _taken_apart(graph: ChannelGraph, module: str) -> list[Tensor]:
    """Return the labels that a module splits into parts or regroups."""
    return [*(part for parts in graph.parts.get(module, ()) for part in parts), *graph.boxes.get(module, ())]


def _culprit(graph: ChannelGraph, module: str, whole: Collection[str]) -> str | None:
    """Return the module nearest to one that failed that takes channels apart and is not kept whole yet."""
    inside = [name for name in graph.seen if name.startswith(f"{module}.")]
    around = [module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)]
    for name in (module, *inside, *around, graph.root):
        if name not in whole and _taken_apart(graph, name):
            return name
    return None


def _weights(network: nn.Module, graph: ChannelGraph, fit: Tensor) -> dict[str, ChannelMask | WeightMask]:
    weights: dict[str, ChannelMask | WeightMask] = {}
    for name, _ in network.named_parameters():
        if name in graph.layers:
            layer = graph.layers[name]
            outputs, inputs = ChannelSet.of(fit[layer.outputs]), ChannelSet.of(fit[layer.inputs])
            weights[name] = ChannelMask(layer.shape, outputs, inputs, layer.transposed)
    return weights


def _narrowings(graph: ChannelGraph, fit: Tensor) -> dict[str, Narrowing]:
    """Return what is kept of biases, norms, embeddings, ...; nothing for embeddings that stay whole."""
    narrowings = {}
    for name, follower in graph.followers.items():
        flags = fit[follower.labels]
        cut = [dim for dim in varying(follower.labels) if not bool(flags.all())]
        if len(cut) > 1:
            cut = [dim for dim in cut if not bool(_along(flags, dim).all())]
        if len(cut) > 1 or restrict(follower.labels, fit) is None:
            raise refusal(
                f"{name} {list(follower.shape)} would be cut along several dimensions; leave the layers it meets "
                "whole (keep_whole=...), or split single weights (kind='wels')"
            )
        if cut or len(follower.shape) == 1:
            axis = cut[0] if cut else 0
            kept = _along(flags, axis).expand(follower.shape[axis])
            narrowings[name] = Narrowing(follower.shape, axis, ChannelSet.of(kept))
    return narrowings


def _norms(graph: ChannelGraph, fit: Tensor) -> dict[str, Narrowing]:
    return {
        module: Narrowing(seen.shape, dim, ChannelSet.of(_along(fit[seen.labels], dim)))
        for module, (seen, dim) in graph.norms.items()
        if not bool(fit[seen.labels].all())
    }


def _along(flags: Tensor, dim: int) -> Tensor:
    """Return for every position along a dimension whether anything is kept there."""
    return flags.movedim(dim, 0).flatten(1).any(dim=1) if flags.ndim > 1 else flags


def _weights_inside(network: nn.Module, names: Collection[str]) -> set[str]:
    """Return the names of the weights (two or more dimensions) in the named modules, and of the named parameters."""
    modules = dict(network.named_modules())
    parameters = dict(network.named_parameters(remove_duplicate=False))
    first_names = {parameter: name for name, parameter in network.named_parameters()}
    inside: set[str] = set()
    for name in names:
        if name in parameters:
            inside.add(first_names[parameters[name]])
            continue
        if name not in modules:
            near = closest(name, {**modules, **parameters})
            raise refusal(f"keep_whole names {name!r}; {type(network).__name__} has no such module{near}")
        weights = {first_names[parameter] for parameter in modules[name].parameters() if parameter.ndim >= 2}
        if not weights:
            raise refusal(
                f"keep_whole names {name!r}, a {type(modules[name]).__name__} without weights: there is nothing in "
                "it to split or keep; name the convolution or linear layer before it"
            )
        inside |= weights
    return inside


def _refuse_conflicts(network: nn.Module, plan: SplitPlan) -> None:
    """Demand that no number is fit in one parameter or buffer of a network and reset in another one.

    A parameter that several modules hold is one parameter and has one mask; several parameters can be views of one
    memory, and have masks of their own.
    """
    sharing: dict[tuple[torch.device, int], list[tuple[str, Tensor]]] = {}
    for name, tensor in tensors_of(network).items():
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
    # A mark is twice the number of a tensor, and 1 more where it resets; below 0 nobody has been.
    marks = torch.full((tensors[0][1].untyped_storage().nbytes() // size,), -1, device="cpu")
    for number, (name, tensor) in enumerate(tensors):
        mask = plan.weights.get(name)
        fit = torch.ones(tensor.shape, dtype=torch.bool, device="cpu") if mask is None else mask.expand()
        mine = 2 * number + (~fit).long()
        ratio = tensor.element_size() // size
        strides = [ratio * stride for stride in tensor.stride()]
        place = marks.as_strided(tensor.shape, strides, ratio * tensor.storage_offset())
        wrong = (place >= 0) & (place % 2 != mine % 2)
        if bool(wrong.any()):
            other = tensors[int(place[wrong][0]) // 2][0]
            raise refusal(
                f"{other} and {name} are two parameters over one memory, and what is reset in one of them is kept in "
                f"the other: let both modules hold one parameter (the same object), or give {name} memory of its own "
                "(torch.nn.Parameter(weight.detach().clone()))"
            )
        place.copy_(mine)
