"""Plan a split: follow the channels of a network, decide which are fit, and prove it in a rehearsal."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor, nn

from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.split.channels import follow_channels
from ke_metric.split.graph import ChannelGraph
from ke_metric.split.kels import fit_labels, sources
from ke_metric.split.labels import restrict, varying
from ke_metric.split.masks import ChannelMask, ChannelSet, Narrowing, WeightMask
from ke_metric.split.plan import KINDS, SplitPlan
from ke_metric.split.rehearsal import MisfitError, Settings, rehearse
from ke_metric.split.slim import extract_slim
from ke_metric.split.wels import plan_wels
from ke_metric.split.wrappers import unwrapped


def plan_split(  # noqa: PLR0913  # the one public function of a split
    network: nn.Module,
    example_input: Tensor,
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
        example_input: What it takes, for example images [B, 3, H, W]; kels runs the network on it once.
        rate: Split rate in (0, 1]; 1 keeps everything.
        kind: `kels` or `wels`.
        keep_whole: Names of modules, or of single weights: layers that keep all of their outputs (kels) or weights
            (wels).
        seed: Seed of the wels masks; unused by kels, which draws nothing.
        channel_multiple: kels rounds the number of kept channels up to a multiple of this (8 suits tensor cores).
        embeddings: Whether wels splits embedding tables too; kels leaves them whole.

    Raises:
        KeMetricError: A bad argument, or a network that kels cannot follow.
    """
    if kind not in KINDS:
        raise KeMetricError(
            f"split kind {kind!r} is none of {', '.join(KINDS)}{closest(kind, KINDS)}", ExitCode.RECIPE
        )
    if not 0 < rate <= 1:
        raise KeMetricError(f"split rate = {rate}: must be greater than 0 and at most 1", ExitCode.RECIPE)
    if channel_multiple < 1:
        raise KeMetricError(f"channel_multiple = {channel_multiple}: must be at least 1", ExitCode.RECIPE)
    network = unwrapped(network)
    whole = _weights_inside(network, keep_whole)
    if kind == "wels":
        masks = plan_wels(network, rate=rate, keep_whole=whole, seed=seed, embeddings=embeddings)
        return SplitPlan("wels", rate, masks)
    if embeddings:
        raise KeMetricError("embeddings=True is for kind='wels'; kels leaves embedding tables whole", ExitCode.RECIPE)
    return _plan_kels(network, example_input, rate=rate, keep_whole=whole, multiple=channel_multiple)


def _plan_kels(
    network: nn.Module, example_input: Tensor, *, rate: float, keep_whole: set[str], multiple: int
) -> SplitPlan:
    """Plan, rehearse, and keep whole what turns out not to work at any narrower width, until it works."""
    graph = follow_channels(network, example_input)
    whole: dict[str, str] = {}
    as_wide: set[type[nn.Module]] = set()
    spare: list[Tensor] = []
    while True:
        labels = [each for module in whole for each in _taken_apart(graph, module)]
        fit = fit_labels(graph, rate, keep_whole, multiple=multiple, whole=labels)
        plan = SplitPlan(
            "kels", rate, _weights(network, graph, fit), _narrowings(graph, fit), _norms(graph, fit),
            kept_whole=whole, channel_multiple=multiple,
        )  # fmt: skip
        if bool(fit.all()):
            return plan
        try:
            settings = rehearse(extract_slim(network, plan), example_input, graph, fit)
        except MisfitError as misfit:
            kind = _kind_of(network, misfit.module)
            ties = [] if kind in as_wide else _inside_to_outside(network, graph, kind)
            as_wide.add(kind)
            if ties and _stays_narrow(graph, ties, rate, keep_whole, multiple=multiple, whole=labels):
                continue
            spare += ties
            module = _culprit(graph, misfit.module, whole, root=type(network).__name__)
            if module is not None:
                whole[module] = str(misfit)
            elif spare:
                graph.ties += spare
                spare, whole = [], {}
            else:
                raise _refusal(graph, fit, misfit, root=type(network).__name__) from misfit
        else:
            return replace(plan, settings=_as_json(settings))


def _kind_of(network: nn.Module, name: str) -> type[nn.Module]:
    return type(dict(network.named_modules()).get(name, network))


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


def _stays_narrow(  # what decides which labels are fit
    graph: ChannelGraph,
    ties: list[Tensor],
    rate: float,
    keep_whole: Collection[str],
    *,
    multiple: int,
    whole: Collection[Tensor],
) -> bool:
    """Add ties [2, pairs], and tell whether they leave anything to drop; where not, they are taken back.

    A channel shuffle ties all channels to all: what is made for attention would keep its modules whole.
    """
    graph.ties += ties
    fit = fit_labels(graph, rate, keep_whole, multiple=multiple, whole=whole)
    if all(bool(fit[pairs].all()) for pairs in ties):
        del graph.ties[-len(ties) :]
        return False
    return True


def _taken_apart(graph: ChannelGraph, module: str) -> list[Tensor]:
    """Return the labels that a module splits into parts or regroups."""
    return [*(part for parts in graph.parts.get(module, ()) for part in parts), *graph.boxes.get(module, ())]


def _culprit(graph: ChannelGraph, module: str, whole: Collection[str], *, root: str) -> str | None:
    """Return the module nearest to one that failed that takes channels apart and is not kept whole yet."""
    inside = [name for name in graph.seen if name.startswith(f"{module}.")]
    around = [module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)]
    for name in (module, *inside, *around, root):
        if name not in whole and _taken_apart(graph, name):
            return name
    return None


def _refusal(graph: ChannelGraph, fit: Tensor, misfit: MisfitError, *, root: str) -> KeMetricError:
    around = [misfit.module.rsplit(".", depth)[0] for depth in range(misfit.module.count(".") + 1)]
    cut = next((found for module in (*around, root) if (found := _cut_layers(graph, fit, module))), None)
    leave = f"Leave the layers they come from whole (keep_whole={cut}), or split" if cut else "Split"
    return KeMetricError(
        f"{misfit.module}: the slim network does not work on the channels that are kept ({misfit}): what is done "
        f"with them depends on how many there are. {leave} single weights (kind='wels')",
        ExitCode.RECIPE,
    )


def _cut_layers(graph: ChannelGraph, fit: Tensor, module: str) -> list[str]:
    """Return the layers whose channels come by in a module and are not all kept."""
    returned = (seen for call in graph.returned[module] for seen in call)
    here = itertools.chain(graph.seen[module].values(), returned)
    labels = {label for seen in here for label in seen.labels.flatten().tolist()}
    return sources(graph, {label for label in labels if not fit[label]})


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
            raise KeMetricError(
                f"{name} {list(follower.shape)} would be cut along several dimensions; leave the layers it meets "
                "whole (keep_whole=...), or split single weights (kind='wels')",
                ExitCode.RECIPE,
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


def _as_json(settings: Settings) -> dict[str, dict[str, int | list[int]]]:
    return {
        module: {name: value if isinstance(value, int) else list(value) for name, value in attributes.items()}
        for module, attributes in settings.items()
    }


def _weights_inside(network: nn.Module, modules: Collection[str]) -> set[str]:
    """Return the names of the weights (two or more dimensions) in the named modules, and of the named parameters."""
    known = dict(network.named_modules())
    names = {parameter: name for name, parameter in network.named_parameters()}
    inside: set[str] = set()
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for module in modules:
        if module in parameters:
            inside.add(names[parameters[module]])
            continue
        if module not in known:
            raise KeMetricError(
                f"keep_whole names {module!r}; {type(network).__name__} has no such module"
                f"{closest(module, {**known, **parameters})}",
                ExitCode.RECIPE,
            )
        weights = {names[parameter] for parameter in known[module].parameters() if parameter.ndim >= 2}
        if not weights:
            raise KeMetricError(
                f"keep_whole names {module!r}, a {type(known[module]).__name__} without weights: there is nothing in "
                "it to split or keep; name the convolution or linear layer before it",
                ExitCode.RECIPE,
            )
        inside |= weights
    return inside
