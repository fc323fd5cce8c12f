"""The rehearsal of a loss: what would crash, turn into nan or teach nothing hours later is refused at once.

Nothing is known of any loss beforehand: a small twin of it is called, forward and backward, and judged by what it
does. Shapes: B batch, D embedding.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.losses.library import EMBEDDING_LOSSES, MISCOUNTING
from ke_metric.recipe.schema import Batches, Loss, Miner

# Classes of a twin. More of them in a batch, or more images of one, show nothing new.
MOST = 8
# Embeddings in the memory of a twin: those of its largest batch and of one before.
MEMORY = MOST * MOST + MOST
# Two images of each of four classes: pairs of both sorts.
PAIRS = torch.arange(4).repeat_interleave(2)
# A gradient below this share of the largest one in a batch with pairs of both sorts is rounding.
NOTHING = 1e-5
# How far the embeddings of a batch lie around one point, or around none: some losses and miners are 0 for what is far
# apart, some for what is close.
SPREADS = (None, 0.3, 0.03)

# What pytorch-metric-learning raises for parts that do not fit together.
_MISFITS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

Build = Callable[[Loss], nn.Module]
"""Builds a small twin of a loss with its miner, or raises a KeMetricError."""


@dataclass(frozen=True)
class PossibleBatches:
    """The batches that a recipe can draw.

    Attributes:
        labels: Class numbers [B] of a few of them, one of every sort: a loss that learns from one of them learns.
        described: The fields of the recipe that they follow from, and what they are.
        cure: Which values of the same fields would give pairs of both sorts.
    """

    labels: tuple[Tensor, ...]
    described: str
    cure: str


def possible_batches(batches: Batches, class_sizes: Sequence[int]) -> PossibleBatches:
    """Return the batches that a sampler can draw from classes of these sizes: of all processes together."""
    if batches.sampler == "class_balanced":
        return _class_balanced(batches.size, batches.images_per_class)
    size, most = batches.size, max(class_sizes)
    described = (
        f"batches.sampler = {batches.sampler!r} with batches.size = {size} draws from {len(class_sizes):,} training "
        f"class(es) of {most:,} picture(s) at most"
    )
    cure = "another batches.size, batches.sampler = 'class_balanced', or more classes and pictures"
    if batches.sampler == "paired":
        return PossibleBatches((_grid(min(size, len(class_sizes)), 2),), described, cure)
    # The last batch of an epoch is smaller.
    lengths = {min(size, sum(class_sizes)), sum(class_sizes) % size}
    labels = [found for length in sorted(lengths) if length >= 2 for found in _shuffled(length, class_sizes)]
    return PossibleBatches(tuple(labels), described, cure)


def _class_balanced(size: int, images: int) -> PossibleBatches:
    classes = size // images
    described = (
        f"batches.size = {size} with batches.images_per_class = {images} puts {classes} class(es) of {images} "
        "picture(s) each into a batch"
    )
    if classes == 1:
        fewer = f", or batches.images_per_class = {size // 2}" if size >= 4 and size % 2 == 0 else ""
        cure = f"batches.size = {2 * images}{fewer}"
    else:
        cure = f"batches.images_per_class = 2 with batches.size = {max(4, size + size % 2)}"
    return PossibleBatches((_grid(classes, images),), described, cure)


def _grid(classes: int, images: int) -> Tensor:
    return torch.arange(min(classes, MOST)).repeat_interleave(min(images, MOST))


def _shuffled(length: int, class_sizes: Sequence[int]) -> Iterator[Tensor]:
    """Yield labels of batches of a length: of different classes, of one class, and of both where that can be."""
    short = min(length, MOST)
    if length <= len(class_sizes):
        yield torch.arange(short)
    if length <= max(class_sizes):
        yield torch.zeros(short, dtype=torch.int64)
    if length > 2 and len(class_sizes) > 1 and max(class_sizes) > 1:
        most = max(2, short // len(class_sizes))
        shares = torch.tensor([min(size, most) for size in sorted(class_sizes, reverse=True)[:MOST]])
        yield torch.arange(len(shares)).repeat_interleave(shares)[:short]


def _missing(batches: Sequence[Tensor]) -> str:
    counts = [len(set(labels.tolist())) for labels in batches]
    if max(counts) == 1:
        return "pictures of different classes (negative pairs)"
    if counts == [len(labels) for labels in batches]:
        return "two pictures of one class (positive pairs)"
    return "pairs of both sorts"


def rehearse(
    build: Build, loss: Loss, miner: Miner | None, *, embedding_size: int, batches: PossibleBatches | None = None
) -> None:
    """Call a loss with small batches, forward and backward, and refuse it where a training would fail or be in vain.

    Args:
        build: Builds a loss of MOST classes with the miner.
        loss: The recipe's section.
        miner: Likewise, if it has one.
        embedding_size: D.
        batches: What the loss will see; only the loss itself is tried when left out.

    Raises:
        KeMetricError: It crashes, is not finite, or its gradient is 0 whatever the batches (RECIPE).
    """
    trial = _Trial(embedding_size, batches)
    with _one_thread(), warnings.catch_warnings():
        # What the libraries say of other losses would only confuse; the loss itself was built before.
        warnings.simplefilter("ignore")
        if (fault := trial.fault(build, loss)) is None:
            return
        others = _alternatives(trial, build, loss, fault)
    mining = f" with miner.name = {miner.name!r}, miner.arguments = {dict(miner.arguments)}" if miner else ""
    raise KeMetricError(
        f"loss.name = {loss.name!r}, loss.arguments = {dict(loss.arguments)}{mining}: {fault.words}{others}",
        ExitCode.RECIPE,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread: for a handful of numbers, several only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _alternatives(trial: _Trial, build: Build, refused: Loss, fault: _Fault) -> str:
    """Name the losses that pass the same trial with nothing but their defaults."""
    if not fault.is_the_losses:
        return ""
    is_proxy = _has_parameters(build, refused)
    working = [
        name
        for name in sorted(EMBEDDING_LOSSES)
        if name not in (refused.name, *MISCOUNTING)
        and (fault.of_batches or _has_parameters(build, Loss(name=name)) == is_proxy)
        and trial.fault(build, Loss(name=name)) is None
    ]
    kind = "that learn from such batches" if fault.of_batches else "of its kind that work"
    return f". Losses {kind}: {', '.join(working)}" if working else ""


def _has_parameters(build: Build, loss: Loss) -> bool | None:
    try:
        return any(True for _ in build(loss).parameters())
    except KeMetricError:
        return None


@dataclass(frozen=True)
class _Fault:
    """What a trial found, and what to do about it."""

    words: str
    # Whether another loss could do better; else its arguments or its miner are at fault.
    is_the_losses: bool = True
    # Whether the loss works with other batches.
    of_batches: bool = False


class _FailedPassError(Exception):
    """A forward or backward pass failed or gave something that is not finite."""


@dataclass(frozen=True)
class _Trial:
    """What every loss is put through: embeddings of length `size`, and the batches that it will see, if any."""

    size: int
    batches: PossibleBatches | None

    def fault(self, build: Build, loss: Loss) -> _Fault | None:
        """Return what is wrong with a loss; None: nothing is."""
        try:
            twin = build(loss)
        except KeMetricError as error:
            return _Fault(str(error), is_the_losses=False)
        return self._fails_at_all(twin) or self._fails_somewhere(twin) or self._learns_nothing(twin)

    def _fails_at_all(self, twin: nn.Module) -> _Fault | None:
        """Take two steps as they come in every training: some losses cannot go on after the first."""
        stepped = copy.deepcopy(twin)
        for step, ending in enumerate(("", ", at the second step of a training")):
            try:
                _gradient(stepped, self._embeddings(len(PAIRS)), PAIRS)
            except _FailedPassError as failure:
                return _Fault(f"{failure} on a batch of {len(PAIRS)} embeddings{ending}", is_the_losses=bool(step))
        return None

    def _fails_somewhere(self, twin: nn.Module) -> _Fault | None:
        """Try embeddings that are rare, and come all the same: there some have no finite value or gradient."""
        for where, first, second, sign in (
            ("two pictures of one class have the same embedding", 0, 1, 1),
            ("two pictures of different classes have the same embedding", 0, 2, 1),
            ("two pictures of one class have opposite embeddings", 0, 1, -1),
            ("two pictures of different classes have opposite embeddings", 0, 2, -1),
            ("all pictures have the same embedding", 0, slice(None), 1),
        ):
            embeddings = self._embeddings(len(PAIRS))
            embeddings[second] = sign * embeddings[first]
            try:
                _gradient(copy.deepcopy(twin), embeddings, PAIRS)
            except _FailedPassError as failure:
                return _Fault(
                    f"{failure} where {where}. Copies of a picture have the same embedding, and so may a picture "
                    "that repeats in a batch: the training would end there"
                )
        return None

    def _learns_nothing(self, twin: nn.Module) -> _Fault | None:
        """Look for a gradient in the batches that will come."""
        whole = max(self._largest_gradient(twin, PAIRS, spread) for spread in SPREADS)
        if not whole:
            return _Fault("its gradient is 0 whatever the embeddings: nothing would be learnt", is_the_losses=False)
        if self.batches is None:
            return None
        learns, moves_a_point = False, False
        for labels in self.batches.labels:
            try:
                gradients = [self._largest_gradient(twin, labels, spread) for spread in (*SPREADS, 0.0)]
            except _FailedPassError as failure:
                return self._of_batches(f"{failure} on a batch without {_missing([labels])}")
            learns |= max(gradients) > NOTHING * whole
            moves_a_point |= gradients[-1] > NOTHING * whole
        missing = _missing(self.batches.labels)
        if not learns:
            return self._of_batches(f"needs {missing}, and its gradient is 0 without: nothing would be learnt")
        if not moves_a_point and all(not labels.any() for labels in self.batches.labels):
            return self._of_batches(f"needs {missing}, and draws all embeddings together without")
        return None

    def _of_batches(self, what: str) -> _Fault:
        assert self.batches is not None, "there are batches to blame"
        return _Fault(f"{what}. {self.batches.described}; use {self.batches.cure}", of_batches=True)

    def _largest_gradient(self, twin: nn.Module, labels: Tensor, spread: float | None) -> float:
        fresh = copy.deepcopy(twin)
        if any(True for _ in fresh.buffers()):
            # What has a memory finds the other pictures there, whatever is in the batch.
            _gradient(fresh, self._embeddings(len(PAIRS)), PAIRS)
        gradient = _gradient(fresh, self._embeddings(len(labels), spread), labels)
        return float(gradient.abs().max())

    def _embeddings(self, count: int, spread: float | None = None) -> Tensor:
        """Return embeddings [B, D] around one point, or around none, the same ones whenever they are asked for."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(count, self.size, generator=generator)
        if spread is None:
            return noise
        return torch.randn(1, self.size, generator=generator) + spread * noise


def _gradient(built: nn.Module, embeddings: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of a loss by embeddings [B, D] that are normalised first, as those of a network are."""
    leaf = embeddings.clone().requires_grad_()
    try:
        # Some miners draw.
        with torch.random.fork_rng(devices=[]):
            value = built(normalize(leaf), labels)
            value.backward()
    except _MISFITS as error:
        what = str(error).partition("\n")[0].partition(". ")[0]
        raise _FailedPassError(f"fails ({type(error).__name__}: {what})") from error
    if not value.isfinite().all():
        raise _FailedPassError(f"is {value.item()}")
    gradients = [leaf.grad, *(parameter.grad for parameter in built.parameters())]
    if not all(gradient.isfinite().all() for gradient in gradients if gradient is not None):
        raise _FailedPassError("has a gradient that is not finite")
    return torch.zeros_like(embeddings) if leaf.grad is None else leaf.grad
