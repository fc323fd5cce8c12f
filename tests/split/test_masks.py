import torch
from hypothesis import given
from hypothesis import strategies as st

from ke_metric.split.plan import ChannelMask, ChannelSet, WeightMask

FLAGS = st.lists(st.booleans(), min_size=1, max_size=40).map(torch.tensor)


@given(FLAGS)
def test_channel_set_is_its_flags(flags):
    channels = ChannelSet.of(flags)
    assert torch.equal(channels.flags, flags)
    assert channels.index.tolist() == [i for i, flag in enumerate(flags.tolist()) if flag]
    assert (channels.size, channels.count) == (len(flags), int(flags.sum()))


def test_a_prefix_is_one_range():
    assert ChannelSet.of(torch.arange(100) < 55).ranges == ((0, 55),)


@given(FLAGS, FLAGS, st.sampled_from([(), (3,), (2, 3)]))
def test_channel_mask_is_rows_times_columns(rows, columns, kernel):
    mask = ChannelMask((len(rows), len(columns), *kernel), ChannelSet.of(rows), ChannelSet.of(columns))
    expanded = mask.expand()
    assert expanded.shape == mask.shape
    assert mask.fit_count == int(expanded.sum())
    for row in range(len(rows)):
        for column in range(len(columns)):
            assert bool((expanded[row, column] == (rows[row] & columns[column])).all())


@given(st.lists(st.integers(1, 7), min_size=2, max_size=4), st.floats(0, 1, exclude_min=True), st.integers(0, 2**31))
def test_weight_mask_has_exactly_the_share(shape, rate, seed):
    mask = WeightMask.draw(shape, rate, torch.Generator().manual_seed(seed))
    entries = torch.Size(shape).numel()
    assert int(mask.expand().sum()) == mask.fit_count == round(rate * entries)
    assert mask.expand().shape == torch.Size(shape)
    assert len(mask.bits) == -(-entries // 8)
    assert WeightMask.from_json(mask.to_json(), mask.to_tensor()) == mask


def test_every_entry_is_equally_likely():
    generator = torch.Generator().manual_seed(0)
    total = sum(WeightMask.draw((3, 4), 0.5, generator).expand().int() for _ in range(2000))
    assert bool(((total - 1000).abs() < 5 * 500**0.5).all())
