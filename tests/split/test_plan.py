import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.hypotheses import extract_slim, mean_magnitudes
from ke_metric.split.plan import ChannelMask, ChannelSet, SplitPlan, WeightMask
from ke_metric.split.planning import plan_split

FLAGS = st.lists(st.booleans(), min_size=1, max_size=40).map(torch.tensor)


@pytest.fixture
def kels(small_network, images):
    return plan_split(small_network, images, rate=0.5)


@pytest.fixture
def wels(small_network, images):
    return plan_split(small_network, images, rate=0.7, kind="wels", seed=3)


def test_kels_counts(kels):
    """c(C_out) x c(C_in) x k x k; the first layer keeps all inputs, the last all outputs."""
    fit = {name: int(mask.sum()) for name, mask in kels.masks.items()}
    assert fit == {
        "stem.weight": 3 * 3 * 9,
        "inner.weight": 3 * 3 * 9,
        "widen.weight": 5 * 3 * 9,
        "hidden.weight": 4 * 5 * 9,
        "head.weight": 5 * 4,
    }
    assert kels.fit_count == sum(fit.values())
    assert kels.fit_count + kels.reset_count == sum(mask.numel() for mask in kels.masks.values())


def test_wels_counts(wels, small_network):
    """Exactly round(rate x n) entries of every weight, first convolution and last layer included."""
    weights = {name: weight for name, weight in small_network.named_parameters() if weight.ndim >= 2}
    assert list(wels.masks) == list(weights)
    for name, mask in wels.masks.items():
        assert mask.shape == weights[name].shape
        assert int(mask.sum()) == round(0.7 * mask.numel())


def test_wels_depends_on_seed_and_name_only(wels, small_network, images):
    torch.rand(5)
    assert plan_split(small_network, images, rate=0.7, kind="wels", seed=3) == wels
    assert plan_split(small_network, images, rate=0.7, kind="wels", seed=4) != wels


def test_embedding_tables_on_request():
    network = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4))
    words = torch.zeros(2, dtype=torch.long)
    alone = plan_split(network, words, kind="wels", seed=0)
    both = plan_split(network, words, kind="wels", seed=0, embeddings=True)
    assert list(alone.masks) == ["1.weight", "3.weight"]
    assert list(both.masks) == ["0.weight", "1.weight", "3.weight"]
    assert list(plan_split(network, words).masks) == ["1.weight", "3.weight"]
    with pytest.raises(KeMetricError, match="kels leaves embedding tables whole") as error:
        plan_split(network, words, embeddings=True)
    assert error.value.exit_code == ExitCode.RECIPE


def test_wels_runs_nothing(images):
    class Broken(nn.Linear):
        def forward(self, _images):
            raise AssertionError

    assert plan_split(Broken(3, 4), images, rate=0.5, kind="wels", seed=0).fit_count == 6


def test_every_layer_draws_its_own_wels_mask(images):
    plan = plan_split(nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)), images, rate=0.5, kind="wels", seed=0)
    assert not torch.equal(plan.masks["0.weight"], plan.masks["1.weight"])


@pytest.mark.parametrize("arguments", [{}, {"kind": "wels", "seed": 0}])
def test_rate_one_keeps_everything(small_network, images, arguments):
    plan = plan_split(small_network, images, rate=1, **arguments)
    assert all(bool(mask.all()) for mask in plan.masks.values())
    assert plan.reset_count == 0


def test_nothing_is_added_to_the_network(small_network, images):
    """Masks are no parameters: they are in no optimiser group and in no parameter count."""
    names = list(small_network.state_dict())
    plan_split(small_network, images, rate=0.5)
    plan_split(small_network, images, rate=0.5, kind="wels", seed=0)
    assert list(small_network.state_dict()) == names


def test_keep_whole_keeps_all_outputs(small_network, images):
    plan = plan_split(small_network, images, rate=0.5, keep_whole=["stem"])
    counts = {name: (mask.outputs.count, mask.inputs.count) for name, mask in plan.weights.items()}
    # stem and inner are added to each other: what is kept of one is kept of the other
    assert counts["stem.weight"] == (6, 3)
    assert counts["inner.weight"] == (6, 6)
    assert counts["widen.weight"] == (5, 6)


def test_keep_whole_of_a_container_and_of_wels(small_network, images):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small_network
            self.next, self.last = nn.Linear(5, 4), nn.Linear(4, 2)

        def forward(self, images):
            return self.last(torch.relu(self.next(self.body(images))))

    body = ["body", *(f"body.{name}.weight" for name in ("stem", "inner", "widen", "hidden", "head"))]
    kels = plan_split(Outer(), images, rate=0.5, keep_whole=["body"])
    assert [name for name, mask in kels.masks.items() if bool(mask.all())] == body[1:]
    assert list(kels.kept_whole) == ["body"]
    wels = plan_split(Outer(), images, rate=0.5, kind="wels", seed=0, keep_whole=["body"])
    assert list(wels.weights) == ["next.weight", "last.weight"]
    assert list(wels.kept_whole) == body
    for plan in (kels, wels):
        assert f"kept whole by request: {', '.join(plan.kept_whole)}" in str(plan)
        assert "keep_whole names it" in repr(plan)
        assert SplitPlan.from_json(plan.to_json(), plan.to_tensors()) == plan


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "kel"}, "split kind 'kel' is none of kels, wels; did you mean 'kels'?"),
        ({"rate": 0.0}, "split rate = 0.0: must be a number greater than 0 and at most 1"),
        ({"rate": 1.1}, "split rate = 1.1"),
        ({"rate": float("nan")}, "split rate = nan"),
        ({"kind": "wels"}, "needs seed="),
        ({"keep_whole": ["hiden"]}, "'hiden'; _Small has no such module; did you mean 'hidden'?"),
        ({"keep_whole": ["norm"]}, "'norm', a BatchNorm2d without weights"),
        ({"keep_whole": "stem"}, "keep_whole = 'stem': must be a list, ['stem']"),
        (
            {"keep_whole": ["stem", "widen", "hidden"]},
            "nothing of this _Small would be reset at split rate 0.5 beside keep_whole=['stem', 'widen', 'hidden']",
        ),
        ({"rate": 0.99}, "nothing of this _Small would be reset at split rate 0.99"),
        ({"rate": 0.99999, "kind": "wels", "seed": 0}, "nothing of this _Small would be reset at split rate 0.99999"),
    ],
)
def test_bad_arguments(small_network, images, arguments, words):
    with pytest.raises(KeMetricError) as caught:
        plan_split(small_network, images, **arguments)
    assert words in str(caught.value)
    assert caught.value.exit_code == ExitCode.RECIPE


def test_kels_as_json(kels):
    text = kels.to_json()
    assert SplitPlan.from_json(text) == kels
    assert kels.to_tensors() == {}
    assert json.loads(text)["weights"]["hidden.weight"] == {
        "shape": [8, 90],
        "outputs": [[0, 4]],
        "inputs": [[0, 45]],
    }


def test_wels_as_json_and_tensors(wels, small_network):
    tensors = wels.to_tensors()
    assert SplitPlan.from_json(wels.to_json(), tensors) == wels
    assert {tensor.dtype for tensor in tensors.values()} == {torch.uint8}
    assert (
        sum(tensor.numel() for tensor in tensors.values())
        <= sum(p.numel() * 4 for p in small_network.parameters()) / 32
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"format": 1}', "KeyError('kind')"),
        ('{"format": 2, "kind": "kels"}', "format 2, kind kels"),
        ('{"format": 1, "kind": "other"}', "format 1, kind other"),
        ('{"format": 1, "kind": "kels", "rate": 0.5, "weights": []}', "AttributeError"),
        ('{"format": 1, "kind": "kels", "rate": 0.5, "weights": {"a": {}}, "narrowings": {}}', "KeyError('shape')"),
    ],
)
def test_broken_json(text, words):
    with pytest.raises(KeMetricError, match="no split plan of format 1") as caught:
        SplitPlan.from_json(text)
    assert words in str(caught.value)
    assert caught.value.exit_code == ExitCode.LINEAGE


def test_wels_without_its_bits(wels):
    with pytest.raises(KeMetricError, match=r"stem\.weight") as caught:
        SplitPlan.from_json(wels.to_json())
    assert caught.value.exit_code == ExitCode.LINEAGE


def test_wels_with_other_bits(wels):
    for wrong in (torch.zeros(20, dtype=torch.uint8), torch.zeros(21)):
        with pytest.raises(KeMetricError, match="are not the bits of a weight"):
            SplitPlan.from_json(wels.to_json(), wels.to_tensors() | {"stem.weight": wrong})


def test_check(kels, small_network):
    kels.check(small_network)
    small_network.head = nn.Linear(8, 6)
    with pytest.raises(KeMetricError, match=r"head\.weight is \(6, 8\), in the plan \(5, 8\)") as caught:
        kels.check(small_network)
    assert caught.value.exit_code == ExitCode.RECIPE
    small_network.heads, small_network.head = small_network.head, nn.Identity()
    with pytest.raises(KeMetricError, match=r"no 'head\.weight' in it; did you mean 'heads\.weight'\?"):
        kels.check(small_network)


def test_table(kels, wels):
    lines = str(kels).splitlines()
    assert lines[0] == "kels at split rate 0.5"
    assert lines[2].split() == ["stem.weight", "3", "/", "6", "3", "/", "3", "50.0", "%"]
    assert lines[5].split() == ["hidden.weight", "4", "/", "8", "45", "/", "90", "25.0", "%"]
    assert lines[-1].split()[0] == "all"
    assert len({len(line) for line in lines[1:]}) == 1
    assert str(wels).splitlines()[2].split() == ["stem.weight", "6", "3", "69.8", "%"]


def test_a_compiled_network_is_split_as_the_network_in_it(small_network, images, kels, wels):
    compiled = torch.compile(small_network, backend="eager")
    assert plan_split(compiled, images, rate=0.5) == kels
    assert plan_split(compiled, images, rate=0.7, kind="wels", seed=3) == wels
    kels.check(compiled)
    assert type(extract_slim(compiled, kels)) is type(small_network)
    assert mean_magnitudes(compiled, kels) == mean_magnitudes(small_network, kels)


def test_widths_are_rounded_up_to_a_multiple(small_network, images):
    plan = plan_split(small_network, images, rate=0.5, channel_multiple=4)
    kept = {name: (mask.outputs.count, mask.inputs.count) for name, mask in plan.weights.items()}
    # stem and inner have 6 channels, widen 10, hidden 8; the positions of widen's channels are kept with them
    assert kept == {
        "stem.weight": (4, 3),
        "inner.weight": (4, 4),
        "widen.weight": (8, 4),
        "hidden.weight": (4, 72),
        "head.weight": (5, 4),
    }
    assert SplitPlan.from_json(plan.to_json()).channel_multiple == 4
    with pytest.raises(KeMetricError, match="channel_multiple = 0: must be a whole number of at least 1"):
        plan_split(small_network, images, channel_multiple=0)


def test_a_plan_of_before_norms_and_settings_is_read(kels):
    document = json.loads(kels.to_json())
    for key in ("norms", "settings", "kept_whole", "channel_multiple", "frozen"):
        del document[key]
    assert SplitPlan.from_json(json.dumps(document)) == kels


@pytest.mark.parametrize("settings", [{"a": {"__class__": 1}}, {"a": {"width": "x"}}, {"a": {"width": [1.5]}}])
def test_settings_that_are_no_widths_are_refused(kels, settings):
    """A plan is data: reading it sets nothing but numbers of channels."""
    document = json.loads(kels.to_json()) | {"settings": settings}
    with pytest.raises(KeMetricError, match="is no width"):
        SplitPlan.from_json(json.dumps(document))


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.width = 4
        self.stem = nn.Conv2d(3, 8, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, images):
        first, second = self.stem(images).split(self.width, dim=1)
        return self.head((first * torch.sigmoid(second)).mean((2, 3)))


def test_numbers_that_a_module_holds_are_part_of_the_plan(images, randomise, slim_is_dense_with_zeros):
    class Outer(nn.Sequential):
        pass

    network = randomise(Outer(Halves()))
    plan, slim = slim_is_dense_with_zeros(network, images, rate=0.5)
    assert plan.settings == {"0": {"width": 2}}
    assert (slim[0].width, network[0].width) == (2, 4)
    again = SplitPlan.from_json(plan.to_json())
    assert again == plan
    assert extract_slim(network, again)[0].width == 2


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
