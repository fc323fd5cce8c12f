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
from pytorch_metric_learning.miners import BatchEasyHardMiner
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.losses.combined import CrossBatchMemory, MultipleLosses, RememberingLoss
from ke_metric.losses.library import EMBEDDING_LOSSES, MINERS, MISCOUNTING, NESTED, NOT_IN_A_RECIPE, REFUSED
from ke_metric.losses.losses import CLASSIFICATION_LOSSES, ClassicProxyNCALoss, ClassificationLoss, EmbeddingLoss
from ke_metric.losses.nested import NestedLoss
from ke_metric.losses.trial import MEMORY, MOST, PossibleBatches, possible_batches, rehearse
from ke_metric.recipe.schema import Loss, Miner, Recipe

# Keywords that follow from data and network: the classes, the length of an embedding, and that by another name.
SIZES = ("num_classes", "embedding_size", "descriptors_dim")
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
    built = build_embedding_loss(
        recipe.loss,
        recipe.miner,
        classes=len(class_sizes),
        embedding_size=recipe.network.embedding_size,
        nested_sizes=recipe.network.nested_sizes,
        batches=possible_batches(recipe.batches, [size for size in class_sizes if size]),
        rehearsed=rehearsed,
    )
    for module in built.modules() if rehearsed else ():
        _require_right_numbers(type(module).__name__, recipe)
        if isinstance(module, CrossBatchMemory):
            _require_useful_memory(module.memory_size, recipe, images=sum(class_sizes))
    return built


def _require_right_numbers(loss: str, recipe: Recipe) -> None:
    batches = recipe.batches
    is_square = batches.sampler == "class_balanced" and batches.size == batches.images_per_class**2
    if loss in MISCOUNTING and not (loss == "SmoothAPLoss" and is_square):
        raise _refused(f"loss.name = {recipe.loss.name!r}: {loss} {MISCOUNTING[loss]}")


def _require_useful_memory(size: int, recipe: Recipe, *, images: int) -> None:
    """Refuse a memory in which there is never an earlier batch, or in which pictures are that were seen since."""
    batch = recipe.batches.size
    if not batch < size <= images:
        raise _refused(
            f"memory_size = {size:,} of CrossBatchMemory: must be more than batches.size = {batch}, which it holds "
            f"too, and at most the {images:,} training pictures: beyond, a picture meets older embeddings of itself"
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
    """Refuse a head, a sampler or mixed labels that the loss of a classifier has no use for.

    Raises:
        KeMetricError: `network.head` is not the one that the loss needs, or `batches.sampler` gives partners to a
            loss that takes none, or none to one that does, or pictures are mixed for a loss that needs pictures of
            one class (RECIPE).
    """
    if (mixes := recipe.augmentation.mixes) and loss.of_one_class:
        raise _refused(
            f"{mixes}: loss.name = {recipe.loss.name!r} {loss.of_one_class}, and a mixed picture is of two; allowed: "
            "CrossEntropyLoss, AdaCosLoss with loss.arguments = {dynamic: false}"
        )
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
) -> EmbeddingLoss | MultipleLosses | NestedLoss:
    """Build a loss of embeddings with its miner, and try a small twin of them on small batches if `rehearsed`.

    Whether it can learn from what it will see is asked where `batches` say that. Every size of a nested embedding has
    a loss of its own, and a twin.

    Raises:
        KeMetricError: An unknown class or keyword, a value that does not fit, a loss and a miner that do not go
            together, or one that `rehearse` refuses (RECIPE).
    """

    def of_size(size: int) -> EmbeddingLoss | MultipleLosses:
        return _build(loss, miner, classes=classes, embedding_size=size)

    built: EmbeddingLoss | MultipleLosses | NestedLoss
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

    def twin(of: Loss) -> EmbeddingLoss | MultipleLosses:
        small = of.model_copy(update={"arguments": _small(of.arguments)})
        return _build(small, miner, classes=MOST, embedding_size=size)

    # Twins draw proxies too, and must not move the stream on.
    with torch.random.fork_rng(devices=[]):
        rehearse(twin, loss, miner, embedding_size=size, batches=batches)


def _small(value: Any) -> Any:
    """Return the arguments of a loss for a twin of MOST classes.

    The sizes were found to be right; a copy of a million proxies, or of a large memory, would only cost memory.
    """
    if isinstance(value, list):
        return [_small(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    small = {key: _small(item) for key, item in value.items() if key not in SIZES}
    if "memory_size" in small:
        small["memory_size"] = MEMORY
    if small.get("name") == "ClassWeightedReducer":
        small["weights"] = (small["weights"] * MOST)[:MOST]
    return small


def _build(loss: Loss, miner: Miner | None, *, classes: int, embedding_size: int) -> EmbeddingLoss | MultipleLosses:
    _require_task(loss.name, "retrieval", own=EMBEDDING_LOSSES, others=CLASSIFICATION_LOSSES)
    sizes = dict(zip(SIZES, (classes, embedding_size, embedding_size), strict=True))
    if loss.name == MultipleLosses.__name__:
        return _sum(loss.arguments, miner, sizes)
    built = build_part(EMBEDDING_LOSSES, loss.name, loss.arguments, field="loss.arguments", sizes=sizes)
    return _with_miner(built, _recipe_miner(miner, sizes))


def _recipe_miner(miner: Miner | None, sizes: Mapping[str, int]) -> nn.Module | None:
    if miner is None:
        return None
    return build_part(MINERS, miner.name, miner.arguments, field="miner.arguments", sizes=sizes)


def _with_miner(loss: nn.Module, miner: nn.Module | None) -> EmbeddingLoss:
    if isinstance(loss, CrossBatchMemory):
        if isinstance(miner, BatchEasyHardMiner) and miner.pos_strategy == miner.EASY:
            raise _refused(
                f"miner.arguments.pos_strategy = {miner.EASY!r}: the easiest positive of a picture in a memory is "
                "the picture itself; use 'hard' or 'all'"
            )
        loss.miner = miner
        return RememberingLoss(loss)
    if isinstance(loss, ClassicProxyNCALoss) and miner is not None:
        raise _refused(
            f"miner.name = {type(miner).__name__!r}: {type(loss).__name__} compares embeddings with proxies and "
            "takes no mined tuples; leave the miner out"
        )
    return EmbeddingLoss(loss, miner)


def _sum(arguments: Mapping[str, Any], miner: Miner | None, sizes: Mapping[str, int]) -> MultipleLosses:
    """Build the losses of a sum with their miners."""
    field = "loss.arguments"
    for key in arguments.keys() - {"losses", "weights", "miners"}:
        raise _refused(f"{field}.{key}: MultipleLosses has no such keyword; allowed: losses, miners, weights")
    parts = arguments.get("losses")
    if not isinstance(parts, list) or not parts:
        raise _refused(f"{field}.losses = {parts!r} must be a list of losses, each {{name: ..., keyword: ...}}")
    weights = arguments.get("weights", [1.0] * len(parts))
    if not isinstance(weights, list) or len(weights) != len(parts) or not all(map(_is_number, weights)):
        raise _refused(f"{field}.weights = {weights!r} must be {len(parts)} numbers, one for each of losses")
    known = {name: part for name, part in EMBEDDING_LOSSES.items() if part is not MultipleLosses}
    built = [_nested(known, part, field=f"{field}.losses.{index}", sizes=sizes) for index, part in enumerate(parts)]
    return MultipleLosses(list(map(_with_miner, built, _miners(arguments, miner, len(parts), sizes))), weights)


def _miners(
    arguments: Mapping[str, Any], miner: Miner | None, count: int, sizes: Mapping[str, int]
) -> list[nn.Module | None]:
    """Build a miner, or none, for each loss of a sum: the recipe's for all, or what the list `miners` says."""
    if "miners" not in arguments:
        return [_recipe_miner(miner, sizes) for _ in range(count)]
    field, miners = "loss.arguments.miners", arguments["miners"]
    if miner is not None:
        raise _refused(f"{field}: stands beside miner.name = {miner.name!r}; name the miners in one of the two")
    if not isinstance(miners, list) or len(miners) != count:
        raise _refused(f"{field} = {miners!r} must be {count} miners, one or null for each of losses")
    return [
        None if each is None else _nested(MINERS, each, field=f"{field}.{index}", sizes=sizes)
        for index, each in enumerate(miners)
    ]


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
        raise _unknown(name, classes, field=f"{field.removesuffix('.arguments')}.name")
    keywords = allowed_keywords(classes[name])
    values = {
        key: sizes[key] for key in sizes if key in keywords and keywords[key].default is inspect.Parameter.empty
    }
    for key, value in arguments.items():
        if key in NOT_IN_A_RECIPE:
            raise _refused(f"{field}.{key}: {NOT_IN_A_RECIPE[key]}")
        if key not in keywords:
            hint = f"{closest(key, keywords)}; allowed: {_listed(keywords)}"
            raise _refused(f"{field}.{key}: {name} has no such keyword{hint}")
        values[key] = _checked(keywords[key], value, field=f"{field}.{key}", sizes=sizes)
    try:
        return classes[name](**values)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise _refused(f"{field} = {dict(arguments)}: {name} cannot be built: {error}") from error


def _unknown(name: str, classes: Mapping[str, type[nn.Module]], *, field: str) -> KeMetricError:
    if name in REFUSED:
        return _refused(f"{field} = {name!r} cannot be used: it {REFUSED[name]}")
    if classes is NESTED["loss"] and name in EMBEDDING_LOSSES:
        return _refused(
            f"{field} = {name!r}: pytorch-metric-learning compares no batch with a memory by it, or gets it wrong; "
            f"allowed: {_listed(classes)}"
        )
    return _refused(f"{field} = {name!r} is not known{closest(name, classes)}; known: {_listed(classes)}")


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
    return {key: parameter for key, parameter in keywords.items() if key not in NOT_IN_A_RECIPE}


def _checked(keyword: inspect.Parameter, value: Any, *, field: str, sizes: Mapping[str, int]) -> Any:
    """Return the value of a keyword, a nested part built; refuse what the class would take and misread."""
    if keyword.name in NESTED:
        return _nested(NESTED[keyword.name], value, field=field, sizes=sizes)
    if keyword.name == "weights":
        return _class_weights(value, field=field, classes=sizes["num_classes"])
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


def _class_weights(value: Any, *, field: str, classes: int) -> torch.Tensor:
    if not isinstance(value, list) or len(value) != classes or not all(map(_is_number, value)):
        raise _refused(f"{field} = {value!r} must be {classes} numbers, one for each training class")
    return torch.tensor(value, dtype=torch.float32)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _refused(message: str) -> KeMetricError:
    return KeMetricError(message, ExitCode.RECIPE)
