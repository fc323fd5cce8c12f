"""Rehearse a slim network: run it once and prove that it moves its channels as the dense network moves its own.

A network is written for its full width: it may cut channels in halves, regroup them as heads, or hold numbers that
say how wide it is. The plan keeps channels by label; here the narrow network is run with the labels of the channels
that it kept, and every layer must be fed with the channels it was fed with before, every sum must add the channels
that were added before, and every module must return what it returned, all but the dropped ones. Where a module holds
a number that equals the width of a tensor it handles (heads, split sizes), the narrow width is tried
in its place, and what works is part of the plan.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from ke_metric.split.admission import ExampleInput, run_network
from ke_metric.split.following import ChannelMode, undisturbed
from ke_metric.split.graph import (
    ChannelGraph,
    Follower,
    Layer,
    Seen,
    Step,
    collapse,
    meetings,
    narrow_shape,
    restrict,
    varying,
)

Settings = dict[str, dict[str, Any]]

# What a network raises when the numbers it holds do not fit the tensors it is given.
_MISFITS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, ZeroDivisionError)

MOST_ATTEMPTS = 600
MOST_CHANGES = 64


class MisfitError(Exception):
    """The narrow network does not do with its channels what the dense one does.

    Attributes:
        module: Name of the innermost module in which it showed.
    """

    def __init__(self, module: str, message: str) -> None:
        super().__init__(message)
        self.module = module


def rehearse(slim: nn.Module, example_input: ExampleInput, dense: ChannelGraph, kept: Tensor) -> Settings:
    """Return the attributes to change in a slim network: module -> attribute -> value.

    Args:
        slim: The slim network, narrow tensors and all; its attributes are changed, use it for nothing else.
        example_input: What the dense network was followed with.
        dense: All channels of the dense network.
        kept: For every label whether it is kept, bool [labels].

    Raises:
        MisfitError: The slim network moves its channels in another way, whatever attributes are changed.
    """
    return _Rehearsal(slim, example_input, dense, kept).run(example_input)


class _Expectation(ChannelGraph):
    """Stands in for a channel graph while the slim network runs: compares instead of recording."""

    def __init__(self, dense: ChannelGraph, kept: Tensor) -> None:
        super().__init__(dense.root)
        self.dense, self.kept, self.grouped = dense, kept, dense.grouped
        self.returns: Counter[str] = Counter()
        self.place = ""
        self.passed: set[str] = set()
        self._shapes: dict[str, set[tuple[int, ...]] | None] = {}
        pairs = torch.cat([*dense.ties, torch.empty(2, 0, dtype=torch.int64, device="cpu")], dim=1)
        self._ties = _encoded(pairs, dense.labels).unique()  # type: ignore[no-untyped-call]  # untyped in torch

    def new_outputs(self, weight: str, channels: int) -> Tensor:
        """Return the labels of the channels that the narrow layer has kept."""
        made = self.dense.made.get(weight)
        labels = None if made is None else _kept_only(made, self.kept)
        return self._demand_fit(labels, (channels,), weight)

    def new_follower(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return the labels of what is kept of a parameter or buffer."""
        follower = self.dense.followers.get(name)
        labels = None if follower is None else restrict(follower.labels, self.kept)
        return self._demand_fit(None if labels is None else labels.expand(shape), shape, name)

    def _demand_fit(self, labels: Tensor | None, shape: tuple[int, ...], name: str) -> Tensor:
        if labels is None or tuple(labels.shape) != shape:
            raise MisfitError(self.place, f"{name} is {list(shape)} in the slim network")
        return labels

    def add_layer(self, weight: str, layer: Layer) -> None:
        """Compare what a layer is fed with."""
        for call in self.dense.calls.get(weight, []):
            wide = [_kept_only(labels, self.kept) for labels in (call.inputs, call.outputs)]
            if torch.equal(wide[0], layer.inputs) and torch.equal(wide[1], layer.outputs):
                return
        raise MisfitError(self.place, f"{weight} is fed with other channels")

    def add_follower(self, name: str, follower: Follower) -> None:
        """Compare the channels that a parameter or buffer meets."""
        known = self.dense.followers.get(name)
        expected = None if known is None else restrict(known.labels, self.kept)
        if expected is None or expected.numel() < follower.labels.numel():
            raise MisfitError(self.place, f"{name} meets other channels")
        self.tie(expected, follower.labels)

    def tie(self, first: Tensor, second: Tensor) -> None:
        """Demand that channels that meet are the same, or have met in the dense network."""
        if first is not second and not self.are_one(first, second):
            raise MisfitError(self.place, "channels meet that did not meet in the dense network")

    def are_one(self, labels: Tensor, first: Tensor) -> bool:
        """Tell whether all labels that meet here have met in the dense network."""
        # Of the heads that were paired through one of their channels each, one may be left.
        return any(self._have_met(meetings(labels, first, through_one=through)) for through in (False, True))

    def _have_met(self, pairs: Tensor) -> bool:
        wanted = _encoded(pairs, self.dense.labels)
        if not wanted.numel():
            return True
        found = torch.searchsorted(self._ties, wanted).clamp(max=max(len(self._ties) - 1, 0))
        return bool(len(self._ties)) and torch.equal(self._ties[found], wanted)

    def demand(self, labels: Tensor, reason: str) -> None:
        """Demand nothing more: that all of these are kept was decided before, and they are compared elsewhere."""

    def see(self, module: str, tensor: Seen, *, from_input: bool) -> None:
        """Demand that a tensor is as large as one of the dense network's is in this module when it is narrowed.

        A reshape that leaves one dimension open takes any number of channels: what it makes of them shows here. What
        is computed from a weight alone is labelled by its outputs only, and says nothing of its inputs.
        """
        if not from_input:
            return
        shapes = self._shapes_in(module)
        if shapes and _sizes(tensor.shape) not in shapes:
            raise MisfitError(module, f"computes with {list(tensor.shape)}, as nothing does of what is kept")

    def _shapes_in(self, module: str) -> set[tuple[int, ...]] | None:
        """Return the sizes that are left of all tensors that came by in a module; None where that is not known."""
        if module not in self._shapes:
            narrow = [(seen, restrict(seen.labels, self.kept)) for seen in self.dense.seen[module].values()]
            known = module not in self.dense.unseen and all(labels is not None for _, labels in narrow)
            self._shapes[module] = (
                {
                    _sizes(narrow_shape(seen.shape, seen.labels, labels))
                    for seen, labels in narrow
                    if labels is not None
                }
                if known
                else None
            )
        return self._shapes[module]

    def add_norm(self, module: str, tensor: Seen, dim: int) -> None:
        """Demand that the dense network takes the same statistic."""
        if module not in self.dense.norms:
            raise MisfitError(module, "takes a statistic over channels")

    def is_norm(self, module: str) -> bool:
        """Tell whether the module takes a statistic over channels in the dense network.

        They may have become one group after it, so that here they would look as if they had been one.
        """
        return module in self.dense.norms

    def leave(self, module: str, outputs: list[Seen]) -> None:
        """Compare what a module returns."""
        calls = self.dense.returned[module]
        if not calls:
            # Its forward was called past the hooks that note what a module returns; what comes after it is compared.
            return
        number = min(self.returns[module], len(calls) - 1)
        self.returns[module] += 1
        if len(outputs) != len(calls[number]):
            raise MisfitError(module, f"returns {len(outputs)} tensors instead of {len(calls[number])}")
        for wide, narrow in zip(calls[number], outputs, strict=True):
            labels = restrict(wide.labels, self.kept)
            if labels is None:
                raise MisfitError(module, "what is kept of its channels is no tensor")
            shape = narrow_shape(wide.shape, wide.labels, labels)
            if shape != narrow.shape:
                raise MisfitError(module, f"returns {list(narrow.shape)} instead of {list(shape)}")
            if not torch.equal(collapse(labels), collapse(narrow.labels)):
                raise MisfitError(module, "returns other channels")
        self.passed.add(module)

    def compare_steps(self) -> None:
        """Demand that as much of everything was computed in every module, and with the same channels.

        Halves of what is kept of a tensor need not be what is kept of its halves: then a function is applied to other
        channels, though as many and as often.
        """
        wide, narrow = _by_operation(self.dense.steps), _by_operation(self.steps)
        for module, kind in {**wide, **narrow}:
            expected, found = wide[module, kind], narrow[module, kind]
            if len(expected) != len(found):
                raise MisfitError(module, f"{kind} is computed {len(found)} times instead of {len(expected)}")
            kept = [None if labels is None else restrict(labels, self.kept) for labels in expected]
            known = Counter(_key(labels) for labels in kept if labels is not None)
            others = Counter(_key(labels) for labels in found if labels is not None) - known
            # What is left of a tensor may be a tensor without labels, and of one that is none nothing can be said.
            if others.total() > kept.count(None):
                raise MisfitError(module, f"{kind} is computed with other channels")


def _by_operation(steps: list[Step]) -> defaultdict[tuple[str, str], list[Tensor | None]]:
    """Return (module, operation) -> labels of what it computed with, call by call."""
    found = defaultdict(list)
    for step in steps:
        found[step.module, step.kind].append(step.labels)
    return found


def _key(labels: Tensor) -> tuple[int, ...]:
    """Return something hashable for labels of which some vary, the same for every shape they can be expanded to."""
    collapsed = collapse(labels)
    return (*collapsed.shape, *collapsed.flatten().tolist())


def _sizes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes of dimensions in ascending order, but for those of 1: einsum treats a single head apart."""
    return tuple(sorted(size for size in shape if size > 1))


def _encoded(pairs: Tensor, labels: int) -> Tensor:
    return pairs.amin(0) * labels + pairs.amax(0)


def _kept_only(labels: Tensor, kept: Tensor) -> Tensor:
    return labels[kept[labels]]


class _Rehearsal:
    """One slim network, its modules wrapped so that one that fails can be changed and tried again."""

    def __init__(self, slim: nn.Module, example_input: ExampleInput, dense: ChannelGraph, kept: Tensor) -> None:
        self._slim, self._dense, self._kept = slim, dense, kept
        self._expectation = _Expectation(dense, kept)
        self._mode = ChannelMode(slim, example_input, self._expectation)
        self._given_up: set[nn.Module] = set()
        # Attributes that had to be changed in another module of the same class.
        self._habits: dict[type[nn.Module], tuple[str, ...]] = {}
        self._attempts = 0
        self.settings: Settings = {}

    def run(self, example_input: ExampleInput) -> Settings:
        names = {module: name for name, module in self._slim.named_modules()}
        for module, name in names.items():
            module.forward = self._watched(module, name, module.forward)
        try:
            with undisturbed(self._slim), self._mode:
                run_network(self._slim, example_input)
        finally:
            # A module that holds its own wrapper would live, with its weights, until the next garbage collection.
            for module in names:
                del module.__dict__["forward"]
        self._expectation.compare_steps()
        return self.settings

    def _watched(self, module: nn.Module, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            depth, returns = len(self._mode.places), self._expectation.returns.copy()
            steps = len(self._expectation.steps)
            # Not the error itself: its traceback would lead back here, and keep the slim network alive.
            furthest: tuple[int, str, str] | None = None
            for changes in self._possible_changes(module):
                before = {attribute: module.__dict__[attribute] for attribute in changes}
                module.__dict__.update(changes)
                try:
                    result = self._once(module, forward, args, kwargs)
                except MisfitError as misfit:
                    progress = len(self._expectation.passed)
                    if furthest is None or progress > furthest[0]:
                        furthest = progress, misfit.module, str(misfit)
                    module.__dict__.update(before)
                    del self._mode.places[depth:]
                    self._expectation.returns = returns.copy()
                    del self._expectation.steps[steps:]
                    continue
                if changes:
                    self.settings[name] = self.settings.get(name, {}) | changes
                    self._habits[type(module)] = tuple(changes)
                return result
            self._given_up.add(module)
            assert furthest is not None
            raise MisfitError(*furthest[1:])

        return watched

    def _once(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self._mode.enter(module, (args, kwargs))
        self._expectation.place = place = self._mode.places[-1].name
        try:
            result = forward(*args, **kwargs)
            self._mode.leave(result)
        except MisfitError:
            raise
        except _MISFITS as error:
            raise MisfitError(
                place, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            ) from error
        self._expectation.place = self._mode.places[-1].name
        return result

    def _possible_changes(self, module: nn.Module) -> Iterator[dict[str, Any]]:
        """Yield changes of attributes that equal the width of a tensor that was narrowed.

        First those that another module of the class has needed, then none at all, then everything that may be.
        """
        habit = self._habits.get(type(module), ())
        options = self._options(module) if habit else {}
        if habit and set(habit) <= set(options):
            for values in itertools.islice(itertools.product(*(options[each] for each in habit)), MOST_CHANGES):
                yield dict(zip(habit, values, strict=True))
        yield {}
        if module in self._given_up or self._attempts > MOST_ATTEMPTS:
            return
        options = options or self._options(module)
        every = itertools.islice(itertools.product(*options.values()), MOST_CHANGES)
        combined = [dict(zip(options, values, strict=True)) for values in every] if len(options) > 1 else []
        single = [{attribute: value} for attribute, values in options.items() for value in values]
        pairs = [first | second for first, second in itertools.combinations(single, 2) if len(first | second) == 2]
        for changes in [*combined, *single, *pairs[:MOST_CHANGES]]:
            self._attempts += 1
            yield changes

    def _options(self, module: nn.Module) -> dict[str, list[Any]]:
        with _disable_current_modes():
            widths = self._widths(module)
        return {
            attribute: values
            for attribute, value in module.__dict__.items()
            if not attribute.startswith("_") and (values := list(_narrowed(value, widths)))
        }

    def _widths(self, module: nn.Module) -> Mapping[int, list[int]]:
        """Return width of the dense network -> widths in the slim one, for what came by in a module."""
        name = next(name for name, each in self._slim.named_modules() if each is module)
        widths: dict[int, dict[int, None]] = {}
        for tensor in self._dense.seen[name or self._dense.root].values():
            labels = restrict(tensor.labels, self._kept)
            if labels is None:
                continue
            shape = narrow_shape(tensor.shape, tensor.labels, labels)
            for dim in varying(tensor.labels):
                if shape[dim] != tensor.shape[dim]:
                    widths.setdefault(tensor.shape[dim], {})[shape[dim]] = None
        return {width: list(narrow) for width, narrow in widths.items()}


def _narrowed(value: Any, widths: Mapping[int, list[int]]) -> Iterator[Any]:
    """Yield what an attribute may be in the slim network: a width, or a list of widths."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield from widths.get(value, ())
    elif isinstance(value, tuple | list) and value and all(type(each) is int for each in value):
        options = [widths.get(each, [each]) for each in cast("tuple[int, ...]", value)]
        for chosen in itertools.islice(itertools.product(*options), MOST_CHANGES):
            if list(chosen) != list(value):
                with suppress(TypeError):
                    yield type(value)(chosen)
