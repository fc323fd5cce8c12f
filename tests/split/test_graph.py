import torch
from hypothesis import given
from hypothesis import strategies as st

from ke_metric.split.graph import collapse, collapsed_always, families, meetings, restrict, varying


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


def test_restricted_labels_are_those_of_the_narrow_tensor():
    labels = torch.tensor([[1, 2, 3], [4, 5, 6]])
    kept = torch.tensor([True, True, False, True, True, False, True])
    assert restrict(labels, kept).tolist() == [[1, 3], [4, 6]]
    kept[6] = False
    assert restrict(labels, kept) is None
    assert restrict(labels, torch.zeros(7, dtype=torch.bool)) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_families_have_their_smallest_member_in_common(pairs):
    members = {label: {label} for label in range(10)}
    for first, second in pairs:
        union = members[first] | members[second]
        for label in union:
            members[label] = union
    found = families(torch.tensor(pairs, dtype=torch.int64).view(-1, 2).t(), 10)
    assert found.tolist() == [min(members[label]) for label in range(10)]


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.data())
def test_meetings_tie_what_meets_when_tensors_are_broadcast(shape, data):
    """Against the obvious twin: every pair of the broadcast tensors."""
    tensors = []
    for _ in range(2):
        inner = shape[data.draw(st.integers(0, len(shape) - 1)) :]
        mine = torch.Size(data.draw(st.sampled_from([size, 1])) for size in inner)
        labels = data.draw(st.lists(st.integers(0, 9), min_size=mine.numel(), max_size=mine.numel()))
        tensors.append(torch.tensor(labels).view(mine))
    every = torch.stack([each.flatten() for each in torch.broadcast_tensors(*tensors)])
    assert torch.equal(families(meetings(*tensors), 10), families(every, 10))
