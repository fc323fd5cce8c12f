"""The loss of a recipe, built by class names and keywords, each of them checked, and tried before a training.

The classes of pytorch-metric-learning pass keywords on to their parents through **kwargs and check few values, so
names, keywords and numbers are checked here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.losses.losses import (
    CLASSIFICATION_LOSSES,
    EMBEDDING_LOSSES,
    MINERS,
    NESTED,
    ClassicProxyNCALoss,
    ClassificationLoss,
    EmbeddingLoss,
)
from ke_metric.losses.nested import NestedLoss
from ke_metric.losses.trial import MOST, PossibleBatches, possible_batches, rehearse
from ke_metric.recipe.schema import Loss, Miner, Recipe

# Keywords that follow from data and network: the classes, the length of an embedding, and that by another name.
SIZES = ("num_classes", "embedding_size", "descriptors_dim")
# Accepted on the way through **kwargs, but set by the subclass, or a function, or without effect on the result.
_HIDDEN = frozenset({"aggregation_func", "collect_stats", "is_inverted", "mat_based_loss", "weight_init_func"})
# pytorch-metric-learning takes any other word for "all".
_CHOICES: Mapping[str, tuple[str, ...]] = {"type_of_triplets": ("all", "hard", "semihard", "easy")}


def build_loss(recipe: Recipe, *, class_sizes: Sequence[int], rehearsed: bool = True) -> nn.Module:
    """Build the loss of a recipe; its proxies are drawn from torch's default generator.

    Args:
        recipe: The recipe.
        class_sizes: Images of every class of the training part.
        rehearsed: Whether a loss of embeddings is refused that would fail, or teach nothing, in a training.

    Raises:
        KeMetricError: What the recipe says of its loss cannot be, or does not go together (RECIPE).
    """
    if recipe.task == "classification":
        loss = build_classification_loss(recipe.loss, classes=len(class_sizes))
        require_fit(loss, recipe)
        return loss
    return build_embedding_loss(
        recipe.loss,
        recipe.miner,
        classes=len(class_sizes),
        embedding_size=recipe.network.embedding_size,
        nested_sizes=recipe.network.nested_sizes,
        batches=possible_batches(recipe.batches, [size for size in class_sizes if size]),
        rehearsed=rehearsed,
    )


def build_classification_loss(loss: Loss, *, classes: int) -> ClassificationLoss:
    """Build the loss of a classifier of so many classes.

    Raises:
        KeMetricError: An unknown class or keyword, or a value that does not fit (RECIPE).
    """
    _require_task(loss.name, "classification", own=CLASSIFICATION_LOSSES, others=EMBEDDING_LOSSES)
    sizes = {"num_classes": classes}
    built = build_part(CLASSIFICATION_LOSSES, loss.name, loss.arguments, field="loss.arguments", sizes=sizes)
    return cast(ClassificationLoss, built)


def require_fit(loss: ClassificationLoss, recipe: Recipe) -> None:
    """Refuse a head or a sampler whose output the loss of a classifier has no use for.

    Raises:
        KeMetricError: `network.head` is not the one that the loss needs, or `batches.sampler` gives partners to a
            loss that takes none, or none to one that does (RECIPE).
    """
    head = "cosine" if loss.takes_cosines else "linear"
    if recipe.network.head != head:
        raise _refused(f"network.head = {recipe.network.head!r}: loss.name = {recipe.loss.name!r} needs {head!r}")
    if loss.takes_partners != (recipe.batches.sampler == "paired"):
        needed = "'paired'" if loss.takes_partners else "'shuffled' or 'class_balanced', it has no use for partners"
        raise _refused(
            f"batches.sampler = {recipe.batches.sampler!r}: loss.name = {recipe.loss.name!r} needs {needed}"
        )


def build_embedding_loss(
    loss: Loss,
    miner: Miner | None,
    *,
    classes: int,
    embedding_size: int,
    nested_sizes: Sequence[int] = (),
    batches: PossibleBatches | None = None,
    rehearsed: bool = True,
) -> EmbeddingLoss | NestedLoss:
    """Build a loss of embeddings with its miner, and try a small twin of them on small batches if `rehearsed`.

    Whether it can learn from what it will see is asked where `batches` say that. Every size of a nested embedding has
    a loss of its own, and a twin.

    Raises:
        KeMetricError: An unknown class or keyword, a value that does not fit, a loss and a miner that do not go
            together, or one that `rehearse` refuses (RECIPE).
    """

    def of_size(size: int) -> EmbeddingLoss:
        return _build(loss, miner, classes=classes, embedding_size=size)

    built: EmbeddingLoss | NestedLoss
    if nested_sizes:
        built = NestedLoss(of_size, size=embedding_size, nested_sizes=nested_sizes)
    else:
        built = of_size(embedding_size)
    for size in (embedding_size, *nested_sizes) if rehearsed else ():
        try:
            _rehearse(loss, miner, size=size, batches=batches)
        except KeMetricError as error:
            if size == embedding_size:
                raise
            raise _refused(f"network.nested_sizes = {list(nested_sizes)}: of size {size}, {error}") from error
    return built


def _rehearse(loss: Loss, miner: Miner | None, *, size: int, batches: PossibleBatches | None) -> None:
    """Try a small twin of a loss of embeddings of a size; refused as `rehearse` says."""

    def twin(of: Loss) -> EmbeddingLoss:
        # The sizes were found to be right; a copy of a million proxies would only cost memory.
        arguments = {key: value for key, value in of.arguments.items() if key not in SIZES}
        small = of.model_copy(update={"arguments": arguments})
        return _build(small, miner, classes=MOST, embedding_size=size)

    # Twins draw proxies too, and must not move the stream on.
    with torch.random.fork_rng(devices=[]):
        rehearse(twin, loss, miner, embedding_size=size, batches=batches)


def _build(loss: Loss, miner: Miner | None, *, classes: int, embedding_size: int) -> EmbeddingLoss:
    _require_task(loss.name, "retrieval", own=EMBEDDING_LOSSES, others=CLASSIFICATION_LOSSES)
    sizes = dict(zip(SIZES, (classes, embedding_size, embedding_size), strict=True))
    built_loss = build_part(EMBEDDING_LOSSES, loss.name, loss.arguments, field="loss.arguments", sizes=sizes)
    if miner is None:
        return EmbeddingLoss(built_loss)
    built_miner = build_part(MINERS, miner.name, miner.arguments, field="miner.arguments", sizes=sizes)
    if isinstance(built_loss, ClassicProxyNCALoss):
        raise _refused(
            f"miner.name = {miner.name!r}: {loss.name} compares embeddings with proxies and takes no mined tuples; "
            "leave the miner out"
        )
    return EmbeddingLoss(built_loss, built_miner)


def _require_task(name: str, task: str, *, own: Iterable[str], others: Iterable[str]) -> None:
    """Refuse a loss that is known, but for the other task, and name those of this one."""
    if name not in own and name in others:
        other = {"retrieval": "classification", "classification": "retrieval"}[task]
        raise _refused(
            f"loss.name = {name!r}: is a loss of task = {other!r}, and the recipe has task = {task!r}, with the "
            f"losses {_listed(own)}"
        )


def build_part(
    classes: Mapping[str, type[nn.Module]],
    name: str,
    arguments: Mapping[str, Any],
    *,
    field: str,
    sizes: Mapping[str, int],
) -> nn.Module:
    """Build a loss, a miner or a part of one.

    Args:
        classes: What can be built, by class name.
        name: Which of them.
        arguments: Keyword arguments as the recipe gives them; a distance, reducer or regularizer is a mapping of its
            `name` and its keywords.
        field: Where in the recipe the arguments are, for messages.
        sizes: Numbers that follow from data and network: filled in where the class needs them, refused when given
            differently.

    Raises:
        KeMetricError: An unknown name or keyword, or a value that does not fit (RECIPE).
    """
    if name not in classes:
        where = f"{field.removesuffix('.arguments')}.name"
        raise _refused(f"{where} = {name!r} is not known{closest(name, classes)}; known: {_listed(classes)}")
    keywords = allowed_keywords(classes[name])
    values = {
        key: sizes[key] for key in sizes if key in keywords and keywords[key].default is inspect.Parameter.empty
    }
    for key, value in arguments.items():
        if key not in keywords:
            hint = f"{closest(key, keywords)}; allowed: {_listed(keywords)}"
            raise _refused(f"{field}.{key}: {name} has no such keyword{hint}")
        values[key] = _checked(keywords[key], value, field=f"{field}.{key}", sizes=sizes)
    try:
        return classes[name](**values)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise _refused(f"{field} = {dict(arguments)}: {name} cannot be built: {error}") from error


def allowed_keywords(part: type) -> dict[str, inspect.Parameter]:
    """Return the keywords a class takes, by name, with those it passes on to its parents through **kwargs."""
    keywords: dict[str, inspect.Parameter] = {}
    for parent in part.__mro__:
        if "__init__" not in vars(parent):
            continue
        _, *parameters = inspect.signature(vars(parent)["__init__"]).parameters.values()
        named = (item for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY))
        for parameter in named:
            keywords.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return {key: parameter for key, parameter in keywords.items() if key not in _HIDDEN}


def _checked(keyword: inspect.Parameter, value: Any, *, field: str, sizes: Mapping[str, int]) -> Any:
    """Return the value of a keyword, a nested part built; refuse what the class would take and misread."""
    if keyword.name in NESTED:
        return _nested(NESTED[keyword.name], value, field=field, sizes=sizes)
    if keyword.name in sizes and value != sizes[keyword.name]:
        raise _refused(f"{field} = {value!r}: data and network make it {sizes[keyword.name]}; leave it out")
    choices = _CHOICES.get(keyword.name)
    if choices is not None and value not in choices:
        raise _refused(f"{field} = {value!r}{closest(str(value), choices)}; allowed: {_listed(choices)}")
    if isinstance(keyword.default, bool):
        if not isinstance(value, bool):
            raise _refused(f"{field} = {value!r} must be true or false")
    elif isinstance(keyword.default, int | float) and not _is_number(value):
        raise _refused(f"{field} = {value!r} must be a finite number")
    return value


def _nested(classes: Mapping[str, type[nn.Module]], value: Any, *, field: str, sizes: Mapping[str, int]) -> nn.Module:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise _refused(
            f"{field} = {value!r} must be a mapping with a name and that class's keywords, for example "
            f"{{name: {next(iter(classes))}}}; known: {_listed(classes)}"
        )
    arguments = {key: item for key, item in value.items() if key != "name"}
    return build_part(classes, value["name"], arguments, field=field, sizes=sizes)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _refused(message: str) -> KeMetricError:
    return KeMetricError(message, ExitCode.RECIPE)
