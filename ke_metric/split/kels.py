"""KELS, kernel-level convolutional-aware splitting: decides which channels of a network are fit.

Taha, Shrivastava, Davis: Knowledge Evolution in Neural Networks, CVPR 2021. Every layer keeps the first
ceil(rate x channels) of its output channels. Where a network ties channels together, what is tied is decided at once:

- Channels that are added or multiplied element by element form a family; so do the channels of a group (grouped
  convolution, group norm) and of a head. The prefix is rounded up to whole families.
- Families that the same layers take part in form a section, of which a prefix is kept: the channels of a sum of a
  concatenation and a plain layer have one section for every chunk.
- Channels that the network itself takes apart (a split into halves) are sections, too: each half keeps a prefix.

What kels cannot split is refused here as well, with advice that holds when it is followed.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.admission import and_more, refusal
from ke_metric.split.graph import ALWAYS, ChannelGraph, collapse, families, varying
from ke_metric.split.plan import SplitPlan
from ke_metric.split.rehearsal import MisfitError
from ke_metric.split.wels import Role, owner_of, remover_of, role_by_kind

# Numbers of layers and parts times an odd number with well-mixed bits are told apart when they are added up.
_MIXER = 0x1E3779B97F4A7C15


class CutError(KeMetricError):
    """An operation at a place needs channels that would be dropped; they are those of the named weights."""

    def __init__(self, place: str, weights: list[str]) -> None:
        super().__init__(f"{place}. Keep whole: {', '.join(weights)}", ExitCode.RECIPE)
        self.place, self.weights = place, weights


def prefix(rate: float, channels: int, multiple: int = 1) -> int:
    """Return how many of a layer's channels are fit: ceil(rate x channels), rounded up to a multiple.

    The product is lowered by 1e-9, so that 0.55 of 100 channels is 55: in floats it is 55.000000000000007.
    """
    count = math.ceil(rate * channels - 1e-9)
    return min(channels, -(-count // multiple) * multiple)


def fit_labels(
    graph: ChannelGraph,
    rate: float,
    keep_whole: Collection[str] = (),
    *,
    multiple: int = 1,
    whole: Collection[Tensor] = (),
) -> Tensor:
    """Return for every label of a network whether its channel is fit, bool [graph.labels].

    Args:
        graph: The network's channels.
        rate: Split rate in (0, 1].
        keep_whole: Names of weights whose layers keep all of their outputs.
        multiple: Numbers of kept channels are rounded up to a multiple of this.
        whole: More labels that are kept.

    Raises:
        CutError: An operation needs channels that would be dropped.
    """
    family = _make_boxes(graph, families(graph.tied_pairs, graph.labels))
    needed = [torch.zeros(1, dtype=torch.int64, device="cpu"), *(labels.flatten() for labels in whole)]
    needed += [layer.outputs for name, layer in graph.layers.items() if name in keep_whole]
    needed += [labels for name, labels in graph.made.items() if name in keep_whole]
    kept = torch.ones(graph.labels, dtype=torch.bool, device="cpu")
    _cut(graph, family, kept, rate, multiple)
    kept[family[torch.cat(needed)]] = True
    kept = kept[family]
    _require_demands(graph, family, kept, rate)
    return kept


def _make_boxes(graph: ChannelGraph, family: Tensor) -> Tensor:
    """Tie channels so that what is kept of a tensor is a tensor again; return the families after that.

    Labels that vary along several dimensions (heads x channels, groups x channels of a group) can be narrowed along
    one of them. Where nothing else decides, it is the last: a channel shuffle keeps the same channels of every group.
    """
    boxes = [labels for several in graph.boxes.values() for labels in several]
    more = True
    while more:
        more = False
        for labels in boxes:
            across = varying(collapse(family[labels]))
            if len(across) > 1:
                first = labels
                for dim in across[:-1]:
                    first = first.narrow(dim, 0, 1)
                inside = torch.stack([labels.flatten(), first.expand(labels.shape).flatten()])
                known = torch.stack([torch.arange(len(family), device="cpu"), family])
                family = families(torch.cat([inside, known], dim=1), graph.labels)
                more = True
    return family


def _cut(graph: ChannelGraph, family: Tensor, kept: Tensor, rate: float, multiple: int) -> None:
    """Drop, in `kept`, all families behind the prefix of their section."""
    owners = torch.full_like(family, -1)
    for number, labels in enumerate(graph.made.values()):
        owners[labels] = number
    made = (owners >= 0).nonzero().flatten()
    section = torch.zeros_like(family)
    _mark(section, family[made], owners[made] + 1)
    part = len(graph.made) + 1
    for parts in (parts for several in graph.parts.values() for parts in several):
        for labels in parts:
            _mark(section, family[labels], torch.full_like(labels, part))
            part += 1
    # The size of a family is counted in the first of the layers that take part in it.
    first_owner = torch.full_like(family, part).scatter_reduce(0, family[made], owners[made], "amin")
    counted = made[owners[made] == first_owner[family[made]]]
    sizes = torch.zeros_like(family).scatter_add(0, family[counted], torch.ones_like(counted))
    heads = family[made].unique()  # type: ignore[no-untyped-call]  # untyped in torch
    heads = heads[(heads != ALWAYS) & (heads != family[ALWAYS])]
    for members in _grouped(section[heads], heads):
        total = int(sizes[members].sum())
        before = torch.cumsum(sizes[members], 0) - sizes[members]
        kept[members[before >= prefix(rate, total, multiple)]] = False


def _mark(section: Tensor, members: Tensor, number: Tensor) -> None:
    """Add what a layer or part contributes to the sections of its families, once for every family."""
    unique = torch.stack([members, number]).unique(dim=1)  # type: ignore[no-untyped-call]  # untyped in torch
    section.scatter_add_(0, unique[0], (unique[1] * _MIXER) ^ ((unique[1] * _MIXER) >> 29))


def _grouped(keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """Return the values (ascending) of every key, keys in any order."""
    order = torch.argsort(keys, stable=True)
    _, counts = torch.unique_consecutive(keys[order], return_counts=True)
    return values[order].split(counts.tolist())  # type: ignore[no-any-return, no-untyped-call]  # untyped in torch


def _require_demands(graph: ChannelGraph, family: Tensor, kept: Tensor, rate: float) -> None:
    """Raise if an operation needs labels that are not kept; name every layer that would have to be kept whole."""
    cut = [demand for demand in graph.all_demands() if not bool(kept[demand.labels].all())]
    if cut:
        dropped = torch.cat([demand.labels[~kept[demand.labels]] for demand in cut])
        dropped = torch.isin(family, family[dropped]).nonzero().flatten()
        first = kept[cut[0].labels]
        raise CutError(
            f"{cut[0].reason}; at rate {rate} only {int(first.sum())} of these {first.numel()} channels are fit"
            f"{and_more(cut, 'places')}",
            _sources(graph, set(dropped.tolist())),
        )


def _sources(graph: ChannelGraph, labels: Collection[int]) -> list[str]:
    """Return the names of the weights whose layers made the labels."""
    return [weight for weight, made in graph.made.items() if not set(made.tolist()).isdisjoint(labels)]


@dataclass(frozen=True)
class Wish:
    """What was asked of a kels split.

    Attributes:
        rate: Split rate in (0, 1].
        names: Names of modules and single weights to keep whole, as they were given.
        weights: Names of the weights they stand for.
        multiple: Numbers of kept channels are rounded up to a multiple of this.
    """

    rate: float
    names: tuple[str, ...]
    weights: frozenset[str]
    multiple: int

    def fit(self, graph: ChannelGraph, whole: Collection[Tensor] = (), more: Collection[str] = ()) -> Tensor:
        """Return `fit_labels` of what was asked; `more` weights are kept whole as well."""
        return fit_labels(graph, self.rate, self.weights | set(more), multiple=self.multiple, whole=whole)


def refuse_cut(graph: ChannelGraph, wish: Wish, cut: CutError) -> KeMetricError:
    """Return the error for operations that need channels that would be dropped."""
    return refusal(f"{cut.place}. {_leave_whole_or_split(graph, wish, cut.weights)}")


def refuse_misfit(graph: ChannelGraph, wish: Wish, fit: Tensor, misfit: MisfitError) -> KeMetricError:
    """Return the error for a slim network that does not do what the dense one does."""
    around = [misfit.module.rsplit(".", depth)[0] for depth in range(misfit.module.count(".") + 1)]
    cut = next((found for module in (*around, graph.root) if (found := _cut_layers(graph, fit, module))), [])
    return refusal(
        f"{misfit.module}: the slim network does not work on the channels that are kept ({misfit}): what is done "
        f"with them depends on how many there are. {_leave_whole_or_split(graph, wish, cut)}"
    )


def _leave_whole_or_split(graph: ChannelGraph, wish: Wish, weights: Collection[str]) -> str:
    leave = _keep_whole(graph, wish, weights) if weights else ""
    advice = f"Leave the layers they come from whole ({leave}), or split" if leave else "Split"
    return f"{advice} single weights (kind='wels')"


def _cut_layers(graph: ChannelGraph, fit: Tensor, module: str) -> list[str]:
    """Return the weights whose channels come by in a module and are not all kept."""
    returned = (tensor for call in graph.returned[module] for tensor in call)
    here = itertools.chain(graph.seen[module].values(), returned)
    labels = {label for tensor in here for label in tensor.labels.flatten().tolist()}
    return _sources(graph, {label for label in labels if not fit[label]})


def refuse_left_out(network: nn.Module, graph: ChannelGraph, wish: Wish) -> None:
    """Demand that every parameter of two or more dimensions that is used is a layer's weight, or known not to be one.

    Raises:
        KeMetricError: One is a weight of no layer, and `keep_whole` does not name it; or it belongs to no module.
    """
    if graph.strangers:
        raise refusal(
            f"{graph.strangers[0]} computes with a parameter that no module has registered, so that it is neither "
            "trained nor split with the network: hold it in an nn.Parameter of the module, an nn.ParameterList or "
            "nn.ParameterDict, and modules in an nn.ModuleList or nn.ModuleDict"
        )
    left_out = {name: why for name, why in _left_out(network, graph) if name not in wish.weights}
    if not left_out:
        return
    name, why = next(iter(left_out.items()))
    module, own_name = owner_of(network, name)
    path = name.rpartition(".")[0]
    where = f"module {path!r}, a {type(module).__name__}" if path else f"this {type(module).__name__}"
    leave = _keep_whole(graph, wish, left_out)
    is_for_wels = all(_known_role(network, each) is Role.WEIGHT for each in left_out)
    advice = [
        _remedy(module, own_name),
        *([f"{leave} leaves what is none as it is, never reset"] if leave else []),
        *(["kind='wels' splits single weights"] if is_for_wels else []),
    ]
    raise refusal(
        f"kels splits the weights of layers, and {name} {list(module.get_parameter(own_name).shape)} of {where}, is "
        f"computed with in another way{and_more(left_out, 'parameters')}: {why}. {'; '.join(advice)}"
    )


def _left_out(network: nn.Module, graph: ChannelGraph) -> Iterable[tuple[str, str]]:
    """Yield the names of parameters that may be weights and are in no layer, and why each may be one."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if parameter.ndim >= 2 and parameter.numel():
            names[id(parameter)].append(name)
    for several in names.values():
        name = several[0]
        if name not in graph.used or name in graph.layers:
            continue
        roles = {_known_role(network, each) for each in several}
        may_be = name in graph.multiplied or name not in graph.beside
        if Role.WEIGHT in roles or (Role.WHOLE not in roles and may_be):
            yield name, graph.multiplied.get(name, "no activations meet it")


def _known_role(network: nn.Module, name: str) -> Role | None:
    module, own_name = owner_of(network, name)
    return None if remover_of(module, own_name) else role_by_kind(module, own_name)


def _remedy(module: nn.Module, own_name: str) -> str:
    remover = remover_of(module, own_name)
    if remover:
        return f"{remover} makes it an ordinary weight again"
    if hasattr(module, "weight_fake_quant"):
        return "Split the network before it is prepared for quantisation (prepare_qat)"
    return (
        "Merge what a weight is computed from (low rank, normalisation) into one parameter, and compute with that as "
        "nn.Linear, functional.linear or a convolution does"
    )


def refuse_undefined(graph: ChannelGraph, wish: Wish, plan: SplitPlan) -> KeMetricError:
    """Return the error for a network that divides by 0 once its reset hypothesis is at zero."""
    weights = [name for name in plan.weights if name in graph.computed_with]
    leave = _keep_whole(graph, wish, weights)
    advice = f"Leave what it is computed from whole ({leave}), or merge" if leave else "Merge"
    return refusal(
        f"with its reset hypothesis at zero, the network returns numbers that are not finite: it divides by what it "
        f"computes from weights alone ({', '.join(weights)}), such as the length of a channel's weights in weight "
        f"normalisation and DoRA, and that of a reset channel is 0. {advice} it into ordinary weights"
    )


def refuse_nothing(network: str, plan: SplitPlan, keep_whole: Collection[str]) -> KeMetricError:
    """Return the error for a plan of a rate below 1 that resets nothing."""
    kept = f" beside keep_whole={list(keep_whole)}" if keep_whole else ""
    why = "".join(f"; {module} keeps all of its channels ({reason})" for module, reason in plan.kept_whole.items())
    instead = ", or split single weights (kind='wels')" if plan.kind == "kels" else ""
    return refusal(
        f"nothing of this {network} would be reset at split rate {plan.rate}{kept}{why}: every generation would be "
        f"the same network, trained on. Lower the rate, keep less whole{instead}; rate=1 keeps a network as it is"
    )


def _keep_whole(graph: ChannelGraph, wish: Wish, weights: Iterable[str]) -> str:
    """Return `keep_whole=[...]` with what was asked for, weights, and what must be whole with them.

    Nothing where nothing would be left to reset.
    """
    whole = list(dict.fromkeys(weights))
    while True:
        try:
            fit = wish.fit(graph, more=whole)
        except CutError as cut:
            more = [weight for weight in cut.weights if weight not in whole]
            if not more:
                return ""
            whole += more
        else:
            break
    # A layer goes by its name, any other parameter by its own.
    names = [*wish.names, *(each.removesuffix(".weight") if each in graph.layers else each for each in whole)]
    is_cut = any(not bool(fit[torch.cat([each.outputs, each.inputs])].all()) for each in graph.layers.values())
    return f"keep_whole={list(dict.fromkeys(names))}" if is_cut else ""
