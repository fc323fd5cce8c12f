"""What decides that a slim network is right: it is run once, and proved to move its channels as the dense one does.

A network is written for its full width: it may cut channels in halves, regroup them as heads, or hold numbers that
say how wide it is. A plan keeps channels by label; here the narrow network is run with the labels of the channels
that it kept (`_Expectation`), and every layer must be fed with the channels it was fed with before, every sum must
add the channels that were added before, every module must compute as often and with the same channels, and return
what it returned, all but the dropped ones. Where that holds, each value of the slim network is computed as in the
dense network with its reset hypothesis at zero, of which the dropped channels contribute nothing: the invariant that
`tests/split/test_invariant.py` checks in numbers. `SplitPlan.norms` lists the one exception, norms over channels.

Where a module holds a number that equals the width of a tensor it handles (heads, split sizes), the narrow width is
tried in its place (`_Rehearsal`), and what works is part of the plan.
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

from ke_metric.split.admission import ExampleInput, run_network, undisturbed
from ke_metric.split.following import ChannelMode
from ke_metric.split.graph import ChannelGraph, Labelled, Layer, Step, collapse, meetings, restrict, varying

Settings = dict[str, dict[str, int | list[int]]]

# These errors a network raises when the numbers it holds do not fit the tensors it is given.
_MISFITS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, ZeroDivisionError)
MOST_ATTEMPTS = 600
MOST_CHANGES = 64


class MisfitError(Exception):
    """The narrow network does not do with its channels what the dense one does; the innermost module shows it."""

    def __init__(self, module: str, message: str) -> None:
        super().__init__(message)
        self.module = module


def rehearse(slim: nn.Module, example_input: ExampleInput, dense: ChannelGraph, kept: Tensor) -> Settings:
    """Return the attributes to change in a slim network: module -> attribute -> value.

    Args:
        slim: The slim network; its attributes are changed, use it for nothing else.
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
        self.place = ""
        self.returns: Counter[str] = Counter()
        self.passed: set[str] = set()
        self._shapes: dict[str, set[tuple[int, ...]]] = {}
        self._ties = _encoded(dense.tied_pairs, dense.labels).unique()  # type: ignore[no-untyped-call]  # untyped in torch

    def new_outputs(self, weight: str, channels: int) -> Tensor:
        """Return the labels of the channels that the narrow layer has kept."""
        made = self.dense.made.get(weight)
        return self._require_shape(None if made is None else self._kept_of(made), (channels,), weight)

    def new_follower(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return the labels of what is kept of a parameter or buffer."""
        labels = self._kept_of_follower(name)
        return self._require_shape(None if labels is None else labels.expand(shape), shape, name)

    def _require_shape(self, labels: Tensor | None, shape: tuple[int, ...], name: str) -> Tensor:
        if labels is None or labels.shape != shape:
            raise MisfitError(self.place, f"{name} is {list(shape)} in the slim network")
        return labels

    def _kept_of(self, labels: Tensor) -> Tensor:
        return labels[self.kept[labels]]

    def _kept_of_follower(self, name: str) -> Tensor | None:
        follower = self.dense.followers.get(name)
        return None if follower is None else restrict(follower.labels, self.kept)

    def add_layer(self, weight: str, layer: Layer) -> None:
        """Compare what a layer is fed with."""
        for call in self.dense.calls.get(weight, []):
            same_inputs = torch.equal(self._kept_of(call.inputs), layer.inputs)
            if same_inputs and torch.equal(self._kept_of(call.outputs), layer.outputs):
                return
        raise MisfitError(self.place, f"{weight} is fed with other channels")

    def add_follower(self, name: str, follower: Labelled) -> None:
        """Compare the channels that a parameter or buffer meets."""
        expected = self._kept_of_follower(name)
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

    def see(self, module: str, tensor: Labelled, *, from_input: bool) -> None:
        """Demand that a tensor is as large as one of the dense network's is in this module when it is narrowed.

        A reshape that leaves one dimension open takes any number of channels: what it makes of them shows here. What
        is computed from a weight alone is labelled by its outputs only, and says nothing of its inputs.
        """
        if not from_input:
            return
        if module not in self._shapes:
            self._shapes[module] = self._narrow_shapes(module)
        if self._shapes[module] and _sizes(tensor.shape) not in self._shapes[module]:
            raise MisfitError(module, f"computes with {list(tensor.shape)}, as nothing does of what is kept")

    def _narrow_shapes(self, module: str) -> set[tuple[int, ...]]:
        """Return the sizes that are left of all tensors that came by in a module; none where that is not known."""
        narrow = [tensor.narrowed(self.kept) for tensor in self.dense.seen[module].values()]
        if module in self.dense.unseen or None in narrow:
            return set()
        return {_sizes(tensor.shape) for tensor in narrow if tensor is not None}

    def add_norm(self, module: str, tensor: Labelled, dim: int) -> None:
        """Demand that the dense network takes the same statistic."""
        if not self.is_norm(module):
            raise MisfitError(module, "takes a statistic over channels")

    def is_norm(self, module: str) -> bool:
        """Tell whether the module takes a statistic over channels in the dense network.

        They may have become one group after it, so that here they would look as if they had been one.
        """
        return module in self.dense.norms

    def leave(self, module: str, outputs: list[Labelled]) -> None:
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
            expected = wide.narrowed(self.kept)
            if expected is None:
                raise MisfitError(module, "what is kept of its channels is no tensor")
            if expected.shape != narrow.shape:
                raise MisfitError(module, f"returns {list(narrow.shape)} instead of {list(expected.shape)}")
            if not torch.equal(collapse(expected.labels), collapse(narrow.labels)):
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


class _Rehearsal:
    """One slim network, its modules wrapped so that one that fails can be changed and tried again."""

    def __init__(self, slim: nn.Module, example_input: ExampleInput, dense: ChannelGraph, kept: Tensor) -> None:
        self._slim, self._dense, self._kept = slim, dense, kept
        self._names = {module: name for name, module in slim.named_modules()}
        self._expectation = _Expectation(dense, kept)
        self._mode = ChannelMode(slim, example_input, self._expectation)
        self._given_up: set[nn.Module] = set()
        # A habit of a class is what had to be changed in another module of it.
        self._habits: dict[type[nn.Module], tuple[str, ...]] = {}
        self._attempts = 0
        self._changed: dict[str, dict[str, Any]] = {}

    def run(self, example_input: ExampleInput) -> Settings:
        for module in self._names:
            module.forward = self._watched(module, module.forward)
        try:
            with undisturbed(self._slim), self._mode:
                run_network(self._slim, example_input)
        finally:
            # A module that holds its own wrapper would live, with its weights, until the next garbage collection.
            for module in self._names:
                del module.__dict__["forward"]
        self._expectation.compare_steps()
        return {
            module: {name: value if isinstance(value, int) else list(value) for name, value in attributes.items()}
            for module, attributes in self._changed.items()
        }

    def _watched(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            name, expectation = self._names[module], self._expectation
            depth, returns, steps = len(self._mode.places), expectation.returns.copy(), len(expectation.steps)
            # The error itself is not kept: its traceback would lead back here, and keep the slim network alive.
            furthest: tuple[int, str, str] | None = None
            for changes in self._possible_changes(module):
                before = {attribute: module.__dict__[attribute] for attribute in changes}
                module.__dict__.update(changes)
                try:
                    result = self._once(module, forward, args, kwargs)
                except MisfitError as misfit:
                    progress = len(expectation.passed)
                    if furthest is None or progress > furthest[0]:
                        furthest = progress, misfit.module, str(misfit)
                    module.__dict__.update(before)
                    del self._mode.places[depth:]
                    expectation.returns = returns.copy()
                    del expectation.steps[steps:]
                    continue
                if changes:
                    self._changed[name] = self._changed.get(name, {}) | changes
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
            first_line = next(iter(str(error).splitlines()), "")
            raise MisfitError(place, f"{type(error).__name__}: {first_line}") from error
        self._expectation.place = self._mode.places[-1].name
        return result

    def _possible_changes(self, module: nn.Module) -> Iterator[dict[str, Any]]:
        """Yield changes of attributes that equal the width of a tensor that was narrowed.

        First those that another module of the class has needed, then none at all, then everything that may be.
        """
        habit = self._habits.get(type(module), ())
        options = self._options(module) if habit else {}
        if habit and set(habit) <= set(options):
            yield from _combined({attribute: options[attribute] for attribute in habit})
        yield {}
        if module in self._given_up or self._attempts > MOST_ATTEMPTS:
            return
        options = options or self._options(module)
        combined = list(_combined(options)) if len(options) > 1 else []
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
        widths: dict[int, dict[int, None]] = {}
        for tensor in self._dense.seen[self._names[module] or self._dense.root].values():
            narrow = tensor.narrowed(self._kept)
            if narrow is None:
                continue
            for dim in varying(tensor.labels):
                if narrow.shape[dim] != tensor.shape[dim]:
                    widths.setdefault(tensor.shape[dim], {})[narrow.shape[dim]] = None
        return {width: list(narrow) for width, narrow in widths.items()}


def _combined(options: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Yield changes of all attributes at once, to one of the values of each."""
    for values in itertools.islice(itertools.product(*options.values()), MOST_CHANGES):
        yield dict(zip(options, values, strict=True))


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
