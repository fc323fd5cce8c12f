"""Settings: what differs is found, plain values come back as they were, and nothing else is ever set."""

import copy
import functools
import json
import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ke_metric.networks.widths import apply_settings, find_settings

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
SLICES = st.builds(slice, st.none() | st.integers(), st.none() | st.integers(), st.none() | st.integers())


def same_kind(scalar):
    """Strategies of values that a narrower network may have where the dense network has `scalar`."""
    kinds = {bool: st.booleans(), int: st.integers(), float: st.floats(allow_nan=False, allow_infinity=False)}
    return kinds.get(type(scalar), st.text() if isinstance(scalar, str) else st.none())


class Layer(nn.Module):
    def __init__(self, width=8, sizes=(4, 4), **attributes):
        super().__init__()
        self.linear = nn.Linear(3, width)
        self.sizes = sizes
        self.act = torch.relu
        self.norm = functools.partial(nn.LayerNorm, eps=1e-6)
        self.cache = {}
        self.run = self.helper
        for name, value in attributes.items():
            setattr(self, name, value)

    def helper(self):
        return self

    @property
    def trap(self):
        return 1

    @trap.setter
    def trap(self, value):
        raise AssertionError("code was run")


def exactly(value):
    """Return a value with the types of all that is in it."""
    if isinstance(value, list | tuple):
        return type(value), [exactly(item) for item in value]
    return type(value), repr(value)


@given(data=st.data(), kind=st.sampled_from([list, tuple, torch.Size]))
def test_plain_values_come_back_as_they_were(data, kind):
    numbers = st.lists(st.integers(0, 100), min_size=1)
    items = numbers if kind is torch.Size else numbers | st.lists(st.lists(st.integers()).map(tuple), min_size=1)
    dense_scalar, dense_items = data.draw(SCALARS), data.draw(items)
    narrow_items = dense_items[: data.draw(st.integers(0, len(dense_items)))]
    dense = Layer(scalar=dense_scalar, items=kind(dense_items), part=data.draw(SLICES))
    narrow = Layer(scalar=data.draw(same_kind(dense_scalar)), items=kind(narrow_items), part=data.draw(SLICES))
    settings = json.loads(json.dumps(find_settings(narrow, dense)))
    apply_settings(dense, settings)
    for name in ("scalar", "items", "part"):
        assert exactly(getattr(dense, name)) == exactly(getattr(narrow, name))
    assert find_settings(narrow, dense) == {}


@given(
    attribute=st.sampled_from(
        ["scalar", "sizes", "part", "act", "norm", "cache", "run", "trap", "training", "linear"]
    )
    | st.sampled_from(["_parameters", "_forward_hooks", "forward", "__class__", "__dict__", "new"]),
    value=st.recursive(
        SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["slice", "a"]), inner)
    ),
)
def test_nothing_is_set_that_was_not_there_or_is_of_another_type(attribute, value):
    layer = Layer(scalar=1, part=slice(0, 4))
    before = {name: exactly(entry)[0] for name, entry in vars(layer).items()}
    try:
        apply_settings(layer, {"": {attribute: value}})
    except ValueError:
        assert vars(layer).keys() == before.keys()
    else:
        assert attribute in ("scalar", "sizes", "part")
        assert {name: exactly(entry)[0] for name, entry in vars(layer).items()} == before
    assert layer.training


def test_setting_an_attribute_runs_no_property():
    layer = Layer()
    vars(layer)["trap"] = 1
    apply_settings(layer, {"": {"trap": 2}})
    assert vars(layer)["trap"] == 2


def test_widths_are_found_whatever_their_names():
    narrow = Layer(width=5, sizes=(2, 3), heads=2, scale=0.5)
    assert find_settings(narrow, Layer(heads=4, scale=0.25)) == {
        "": {"heads": 2, "scale": 0.5, "sizes": [2, 3]},
        "linear": {"out_features": 5},
    }


def test_a_copy_has_no_settings_after_use():
    layer = Layer(limit=float("nan"))
    used = copy.deepcopy(layer)
    layer.to("meta")
    used.cache["cpu"] = torch.ones(1)
    used.eval().linear.weight.requires_grad_(False)
    assert find_settings(used, layer) == {}


def test_recurrent_layers_keep_a_second_list_of_their_parameters():
    narrow, dense = nn.LSTM(3, 4), nn.LSTM(3, 8)
    assert find_settings(narrow, dense) == {"": {"hidden_size": 4}}
    narrow._flat_weights = [torch.ones(1)]
    with pytest.raises(ValueError, match="_flat_weights"):
        find_settings(narrow, dense)


def hooked():
    layer = Layer()
    layer.linear.register_forward_hook(lambda *_: None)
    return layer


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Layer(extra=1), "the network itself has an attribute 'extra' in the network but not in the architecture"),
        (nn.Sequential(nn.Linear(3, 8)), "the network has a module '0', its architecture has none"),
        (nn.DataParallel(Layer()), "'module', its architecture has none .*give the network inside"),
        (torch.compile(Layer()), "'_orig_mod', its architecture has none .*give the network inside"),
        (Layer(linear=nn.Identity()), "linear is a Identity, the architecture has a Linear there"),
        (Layer(act=torch.tanh), "act = .*only numbers, text"),
        (Layer(forward=operator.neg), "'forward'"),
        (Layer(sizes=[4, 4]), "sizes = .*must be of the same types"),
        (Layer(sizes=(4, 4.0)), "sizes = .*must be of the type int"),
        (Layer(sizes=(4, torch.ones(1))), "sizes = .*only numbers, text"),
        (Layer(run=operator.neg), "run = .*only numbers, text"),
        (hooked(), "linear has forward hooks"),
    ],
    ids=str,
)
def test_what_plain_attributes_cannot_say_is_refused(network, words):
    with pytest.raises(ValueError, match=words):
        find_settings(network, Layer())


def test_a_tensor_that_is_neither_parameter_nor_buffer_is_refused():
    with pytest.raises(ValueError, match=r"table = .*only numbers, text"):
        find_settings(Layer(table=torch.ones(2)), Layer(table=torch.ones(2)))


def test_a_number_that_json_does_not_have_is_refused():
    with pytest.raises(ValueError, match="limit = inf"):
        find_settings(Layer(limit=float("inf")), Layer(limit=1.0))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"linaer": {"in_features": 1}}, "no module 'linaer'; did you mean 'linear'"),
        ({"linear": {"widht": 1}}, "linear has no attribute 'widht'"),
        ({"linear": {"in_features": True}}, "in_features = True: must be of the type int"),
        ({"linear": {"training": False}}, "no attribute 'training' that could be set"),
        ({"": {"trap": 2}}, "no attribute 'trap'"),
    ],
)
def test_settings_that_do_not_fit(settings, words):
    with pytest.raises(ValueError, match=words):
        apply_settings(Layer(), settings)
