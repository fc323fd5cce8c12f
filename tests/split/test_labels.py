import torch
from hypothesis import given
from hypothesis import strategies as st

from ke_metric.split.labels import collapse, collapsed_always, same_channels_in_order, varying


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.data())
def test_collapsed_labels_expand_to_what_they_were(shape, data):
    dims = data.draw(st.sets(st.sampled_from(range(len(shape)))))
    small = [size if dim in dims else 1 for dim, size in enumerate(shape)]
    labels = torch.arange(torch.Size(small).numel()).view(small).expand(shape)
    collapsed = collapse(labels)
    assert torch.equal(collapsed.expand(shape), labels)
    assert varying(collapsed) == [dim for dim in sorted(dims) if shape[dim] > 1]


def test_always_holds_for_every_position():
    assert collapse(collapsed_always(3).expand(4, 5, 6)).shape == (1, 1, 1)


def channels(*labels):
    return torch.tensor([labels])


def test_repeated_channels_are_in_order():
    assert same_channels_in_order(channels(1, 2), channels(1, 1, 1, 2, 2, 2))
    assert same_channels_in_order(channels(1, 2), channels(1, 2, 1, 2))
    assert same_channels_in_order(channels(1, 1, 2), channels(1, 1, 2))


def test_missing_moved_or_regrouped_channels_are_not():
    assert not same_channels_in_order(channels(1, 2, 3), channels(1, 2))
    assert not same_channels_in_order(channels(1, 2), channels(2, 1))
    assert not same_channels_in_order(channels(1, 2), channels(1, 2, 1))
    assert not same_channels_in_order(channels(1, 2, 3, 4), torch.tensor([[1, 2], [3, 4]]))
