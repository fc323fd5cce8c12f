"""The classic ProxyNCA loss, which pytorch-metric-learning lacks.

Shapes: B batch, D embedding, C classes.

Losses, miners and what they are made of, built by class name and keywords.

The classes of pytorch-metric-learning pass keywords on to their parents through **kwargs and check few values, so
names, keywords and numbers are checked here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from torch import nn
from torch.nn import functional

from ke_metric.errors import ExitCode, KeMetricError, closest


class ClassicProxyNCALoss(nn.Module):
    """ProxyNCA as published: the positive proxy is not part of the denominator.

    With x an embedding, p_y its class's proxy, both normalised, and s the softmax scale:
    L = s |x - p_y|^2 + ln sum over z != y of exp(-s |x - p_z|^2), averaged over the batch
    (Movshovitz-Attias et al., "No Fuss Distance Metric Learning using Proxies", ICCV 2017, equation 4). It can be
    negative. The `ProxyNCALoss` of pytorch-metric-learning sums over all classes, as ProxyNCA++ does (Teh et al.,
    ECCV 2020); with p its probability of the right class, L = L_all + ln(1 - p).

    Args:
        num_classes: C, at least 2.
        embedding_size: D.
        softmax_scale: s, positive; 1 as published, 9 in ProxyNCA++.
    """

    def __init__(self, num_classes: int, embedding_size: int, softmax_scale: float = 1.0) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"needs at least 2 classes, not {num_classes}")
        self.softmax_scale = softmax_scale
        self.proxies = nn.Parameter(torch.randn(num_classes, embedding_size))

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss.

        Args:
            embeddings: float [B, D], of any length.
            labels: int64 [B] in [0, C).

        Returns:
            Scalar.
        """
        cosine = functional.normalize(embeddings) @ functional.normalize(self.proxies).T
        # |x - p|^2 = 2 - 2 cos for unit vectors.
        logits = self.softmax_scale * (2 * cosine - 2)
        own = functional.one_hot(labels, len(self.proxies)).bool()
        others = logits.masked_fill(own, -torch.inf).logsumexp(dim=1)
        return (others - logits[own]).mean()


# Not for one batch of embeddings and labels: unfinished classes, wrappers of others, those that take a second batch
# or no labels, those that give more than one number.
_UNUSABLE = frozenset(
    {
        "BaseDistance",
        "BaseLossWrapper",
        "BaseMetricLossFunction",
        "BaseMiner",
        "BaseReducer",
        "BaseRegularizer",
        "BatchedDistance",
        "CrossBatchMemory",
        "DoNothingReducer",
        "EmbeddingsAlreadyPackagedAsTriplets",
        "GenericPairLoss",
        "ManifoldLoss",
        "MultipleLosses",
        "MultipleReducers",
        "SelfSupervisedLoss",
        "VICRegLoss",
    }
)

# Accepted on the way through **kwargs, but set by the subclass, or a function, or without effect on the result.
_HIDDEN = frozenset({"aggregation_func", "collect_stats", "is_inverted", "mat_based_loss", "weight_init_func"})

# pytorch-metric-learning takes any other word for "all".
_CHOICES: Mapping[str, tuple[str, ...]] = {"type_of_triplets": ("all", "hard", "semihard", "easy")}


def _classes(module: ModuleType) -> dict[str, type[nn.Module]]:
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, nn.Module) and name not in _UNUSABLE
    }


LOSSES = {**_classes(losses), ClassicProxyNCALoss.__name__: ClassicProxyNCALoss}
MINERS = _classes(miners)

# Keywords whose value is a part itself, written {name: ..., keyword: ...}.
_NESTED: Mapping[str, Mapping[str, type[nn.Module]]] = {
    "distance": _classes(distances),
    "reducer": _classes(reducers),
    "embedding_regularizer": _classes(regularizers),
    "weight_regularizer": _classes(regularizers),
}


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

    Returns:
        The module.

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


def require_task(name: str, task: str, *, own: Iterable[str], others: Iterable[str]) -> None:
    """Refuse a loss that is known, but for the other task.

    Args:
        name: Of the loss.
        task: The recipe's.
        own: Losses of the task.
        others: Losses of the other task.

    Raises:
        KeMetricError: RECIPE, naming the losses of the task.
    """
    if name not in own and name in others:
        other = {"retrieval": "classification", "classification": "retrieval"}[task]
        raise _refused(
            f"loss.name = {name!r}: is a loss of task = {other!r}, and the recipe has task = {task!r}, with the "
            f"losses {_listed(own)}"
        )


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
    if keyword.name in _NESTED:
        return _nested(_NESTED[keyword.name], value, field=field, sizes=sizes)
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
