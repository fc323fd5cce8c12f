"""Settings: the plain attributes in which a network differs from the dense network of its architecture.

A narrow network is its dense one but for the shapes of its tensors and for attributes of its modules that state
widths (out_channels, groups, num_heads, normalized_shape, ...). They are found by comparing the two, whatever their
names, and set again on a dense network; nothing but numbers, text, None, slices and lists of these is ever set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, cast
from weakref import ref

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from ke_metric.errors import closest

Settings = Mapping[str, Mapping[str, JsonValue]]

SCALARS = (bool, int, float, str, type(None))
SEQUENCES = (list, tuple, torch.Size)
SLICE = "slice"
ABSENT = object()
# Torch keeps its mode and the registers of parameters, submodules and hooks in every module.
TORCHS_OWN = frozenset(vars(nn.Module()))
# Torch's wrappers (DistributedDataParallel, torch.compile) keep the network in these.
WRAPPED = ("module", "_orig_mod")
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def is_plain(value: Any) -> bool:
    """Tell whether a value is a finite number, text, True, False or None."""
    return type(value) in SCALARS and not (isinstance(value, float) and not math.isfinite(value))


def find_settings(network: nn.Module, dense: nn.Module) -> dict[str, dict[str, JsonValue]]:
    """Return the attributes of a network that are not those of the dense network, module -> attribute -> value.

    The tensors of the dense network of its architecture need no values.

    Raises:
        ValueError: The two differ in more than plain attributes: other modules, hooks, an attribute that is no
            plain value or is there in one of them only.
    """
    modules, dense_modules = dict(network.named_modules()), dict(dense.named_modules())
    _require_same_names(modules, dense_modules)
    settings = {}
    for name, module in modules.items():
        if type(module) is not type(dense_modules[name]):
            raise ValueError(
                f"{_named(name)} is a {type(module).__name__}, the architecture has a "
                f"{type(dense_modules[name]).__name__} there"
            )
        if any(len(getattr(module, hooks)) != len(getattr(dense_modules[name], hooks)) for hooks in HOOKS):
            raise ValueError(f"{_named(name)} has forward hooks: code, which is not stored; remove them")
        if changed := _changed_attributes(name, module, dense_modules[name]):
            settings[name] = changed
    return settings


def apply_settings(dense: nn.Module, settings: Settings) -> None:
    """Set attributes of a dense network, in place, where they exist and are of the same type.

    Raises:
        ValueError: A module or attribute that is not there, or a value of another type.
    """
    modules = dict(dense.named_modules())
    for name, attributes in settings.items():
        if name not in modules:
            raise ValueError(f"settings: the architecture has no module {name!r}{closest(name, modules)}")
        own = modules[name].__dict__
        for attribute, value in attributes.items():
            if attribute in TORCHS_OWN or attribute not in own:
                raise ValueError(f"settings: {_named(name)} has no attribute {attribute!r} that could be set")
            try:
                # A property would run code if it was set by setattr.
                own[attribute] = _decoded(value, own[attribute])
            except ValueError as error:
                raise ValueError(f"settings: {_named(name)}, {attribute} = {_short(value)}: {error}") from error


def _require_same_names(modules: Mapping[str, nn.Module], dense_modules: Mapping[str, nn.Module]) -> None:
    for name in modules:
        if name not in dense_modules:
            hint = " (for a network in a wrapper, give the network inside)" if name in WRAPPED else ""
            raise ValueError(f"the network has a module {name!r}, its architecture has none{hint}")
    for name in dense_modules:
        if name not in modules:
            raise ValueError(f"the network has no module {name!r}, its architecture has one")


def _changed_attributes(name: str, module: nn.Module, dense: nn.Module) -> dict[str, JsonValue]:
    changed = {}
    for attribute in sorted((vars(module).keys() | vars(dense).keys()) - TORCHS_OWN):
        value, dense_value = (vars(of).get(attribute, ABSENT) for of in (module, dense))
        if value is ABSENT or dense_value is ABSENT:
            has, lacks = ("architecture", "network") if value is ABSENT else ("network", "architecture")
            raise ValueError(f"{_named(name)} has an attribute {attribute!r} in the {has} but not in the {lacks}")
        if _is_same(value, dense_value) or _list_parameters((value, module), (dense_value, dense)):
            continue
        try:
            changed[attribute] = _encoded(value)
            if not _is_same(_decoded(changed[attribute], dense_value), value):
                raise ValueError("must be of the same types, inside too")
        except ValueError as error:
            raise ValueError(
                f"{_named(name)}, {attribute} = {_short(value)}, in its architecture {_short(dense_value)}: {error}"
            ) from error
    return changed


def _list_parameters(*attributes: tuple[Any, nn.Module]) -> bool:
    """Tell the second list that torch's recurrent layers keep of their parameters, and keep in step by themselves."""
    return all(
        isinstance(value, list)
        and {id(item) for item in value} <= {id(tensor) for tensor in module.parameters(False)}
        for value, module in attributes
    )


def _is_same(value: Any, dense_value: Any) -> bool:
    """Tell whether an attribute need not be stored: it has the same value, or one that no value can stand for."""
    if type(value) is not type(dense_value):
        return False
    if type(value) in SEQUENCES:
        return len(value) == len(dense_value) and all(map(_is_same, value, dense_value))
    return bool(_compared(value) == _compared(dense_value))


def _compared(value: Any) -> Any:
    """Return what tells a value from others of its type."""
    if isinstance(value, (*SCALARS, slice)):
        return repr(value)  # which has NaN equal to itself
    if isinstance(value, FunctionType | BuiltinFunctionType | type):
        return value.__module__, value.__qualname__
    if isinstance(value, MethodType):
        return value.__func__
    if isinstance(value, Tensor):
        return object()  # neither parameter nor buffer: nothing stores it
    if isinstance(value, dict | ref) or cast(object, type(value).__eq__) is object.__eq__:
        return None  # of the builder's making: caches that fill in use, the record of a pretraining, plain objects
    return value


def _encoded(value: Any) -> JsonValue:
    """Return a plain value as JSON; raise a ValueError for any other."""
    if type(value) in SEQUENCES:
        return [_encoded(item) for item in value]
    if isinstance(value, slice):
        return {SLICE: [_encoded(end) for end in (value.start, value.stop, value.step)]}
    if not is_plain(value):
        raise ValueError("only numbers, text, None, slices and lists of these can be stored")
    return value  # type: ignore[no-any-return]


def _decoded(value: JsonValue, dense_value: Any) -> Any:
    """Return the value that JSON stands for; raise a ValueError if the dense network's is of another type."""
    kind = type(dense_value)
    if kind in SEQUENCES and isinstance(value, list):
        if value and not dense_value:
            raise ValueError("must be empty")
        last = len(dense_value) - 1
        return kind([_decoded(item, dense_value[min(index, last)]) for index, item in enumerate(value)])
    if kind is slice and isinstance(value, dict) and value.keys() == {SLICE}:
        ends = value[SLICE]
        if isinstance(ends, list) and len(ends) == 3 and all(type(end) in (int, type(None)) for end in ends):
            return slice(*ends)
    if kind in SCALARS and type(value) is kind:
        return value
    raise ValueError(f"must be of the type {kind.__name__}")


def _short(value: Any) -> str:
    """Return the beginning of a value, on one line."""
    return " ".join(repr(value).split())[:80]


def _named(name: str) -> str:
    return name or "the network itself"
