"""A good slim network is exact, a damaged one is wrong, and a refusal has its reason."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from eval.coverage import verdict as coverage_verdict
from eval.coverage.verdict import (
    EXACT,
    EXACT_FP64,
    EXACT_NORMS,
    EXACT_PASTED,
    REFUSED,
    WRONG,
    Comparison,
    difference,
    examine,
    judge,
    narrow_copy,
    over_fit_channels,
    run,
    trained_with,
    wels_problem,
)
from ke_metric import extract_slim, plan_split
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.plan import ChannelSet, Narrowing

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Unfolding(nn.Module):
    """The channels of `first` are moved in a way that is not followed."""

    def __init__(self):
        super().__init__()
        self.first, self.unfold = nn.Conv2d(3, 8, 3, padding=1), nn.Unfold(2, stride=2)
        self.hidden, self.last = nn.Linear(32, 6), nn.Linear(6, 5)

    def forward(self, images):
        return self.last(self.hidden(self.unfold(self.first(images)).transpose(1, 2)).relu().mean(1))


def plain():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(128, 5)).eval()


def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 5)).eval()


def split(network, rate=0.5):
    """Return the zeroed dense network, the slim one and the plan."""
    plan = plan_split(network, IMAGES[:1], rate=rate)
    trained, zeroed = trained_with(network, plan, IMAGES)
    return zeroed, extract_slim(trained, plan).eval(), plan


def refuse(monkeypatch, text, unless=()):
    """Make kels refuse every network, except where all the named modules are kept whole."""

    def planned(*given, kind="kels", keep_whole=(), **options):
        if kind == "kels" and not (unless and set(unless) <= set(keep_whole)):
            raise KeMetricError(text(keep_whole), ExitCode.RECIPE)
        return plan_split(*given, kind=kind, keep_whole=keep_whole, **options)

    monkeypatch.setattr(coverage_verdict, "plan_split", planned)


@pytest.mark.parametrize("rate", [0.5, 0.8])
def test_a_good_split_is_exact(rate):
    row = examine(plain(), IMAGES, rate)
    assert row["verdict"] == EXACT
    assert row["error"] < 1e-5 < row["signal"]
    assert row["kept_whole"] == {}
    assert 0 < row["reset_share"] < 1 - rate**2 + 0.05
    assert 0 < row["flop_ratio"] < 1
    assert "reason" not in row


def test_the_network_is_left_as_it_was():
    network = plain()
    before = deepcopy(network.state_dict())
    examine(network, IMAGES, 0.5)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_one_wrong_weight_is_seen():
    zeroed, slim, plan = split(plain())
    assert judge(zeroed, slim, plan, IMAGES)["verdict"] == EXACT
    with torch.no_grad():
        slim[3].weight[0, 0, 0, 0] += 0.1
    row = judge(zeroed, slim, plan, IMAGES)
    assert row["verdict"] == WRONG
    assert f"error {row['error']:g}" in row["reason"]


def test_two_swapped_channels_are_seen():
    zeroed, slim, plan = split(plain())
    slim[3].weight = nn.Parameter(slim[3].weight[:, [1, 0, 2, 3]])
    assert judge(zeroed, slim, plan, IMAGES)["verdict"] == WRONG


def test_a_channel_of_the_reset_hypothesis_that_is_kept_is_seen():
    zeroed, slim, plan = split(plain())
    with torch.no_grad():
        zeroed[6].weight.normal_(generator=torch.Generator().manual_seed(0))
    assert judge(zeroed, slim, plan, IMAGES)["verdict"] == WRONG


def test_norms_over_fit_channels_are_a_verdict_of_their_own():
    zeroed, slim, plan = split(normed())
    assert list(plan.norms) == ["2"]
    row = judge(zeroed, slim, plan, IMAGES)
    assert (row["verdict"], row["norms"]) == (EXACT_NORMS, 1)


def test_a_norm_that_the_plan_does_not_name_is_wrong():
    zeroed, slim, plan = split(normed())
    assert judge(zeroed, slim, replace(plan, norms={}), IMAGES)["verdict"] == WRONG


def test_outputs_that_images_do_not_move_prove_nothing():
    network = plain()
    with torch.no_grad():
        network[0].weight.zero_()
    assert judge(*split(network), IMAGES)["verdict"] == WRONG


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [
        (Comparison(1e-5, None, 0.1), EXACT),
        (Comparison(1e-3, 1e-12, 0.1), EXACT_FP64),
        (Comparison(1e-3, 1e-6, 0.1), WRONG),
        (Comparison(1e-5, 1e-6, 1e-4), WRONG),
        (Comparison(0.0, None, 1e-6), WRONG),
        (Comparison(0.0, None, float("nan")), WRONG),
        (Comparison(float("nan"), float("nan"), 0.1), WRONG),
    ],
)
def test_limits(comparison, expected):
    assert comparison.verdict == expected


def test_difference():
    one, two = torch.tensor([[2.0, -4.0]]), torch.tensor([[2.0, -3.0]])
    assert difference([one], [two]) == 0.25
    assert difference([one], [two[:, :1]]) == float("inf")
    assert difference([one], [two, two]) == float("inf")
    assert difference([one], [two * float("nan")]) == float("inf")


def test_what_the_message_says_is_kept_whole():
    torch.manual_seed(0)
    row = examine(Unfolding().eval(), IMAGES, 0.5)
    assert row["verdict"] == EXACT_PASTED
    assert row["pasted"] == ["first"]
    assert "im2col" in row["reason"]
    assert row["reset_share"] > 0


def test_lists_are_added_up(monkeypatch):
    refuse(monkeypatch, lambda whole: f"no (keep_whole={['6'] if '0' in whole else ['0']})", unless=["0", "6"])
    row = examine(plain(), IMAGES, 0.5)
    assert (row["verdict"], row["pasted"]) == (EXACT_PASTED, ["0", "6"])


@pytest.mark.parametrize("text", ["3: a sort of [1, 8]: not followed", "3: no (keep_whole=['3'])"])
def test_a_refusal_has_its_reason_and_wels_is_tried(monkeypatch, text):
    refuse(monkeypatch, lambda _: text)
    row = examine(plain(), IMAGES, 0.5)
    assert (row["verdict"], row["reason"], row["wels"]) == (REFUSED, text, "works")


def test_endless_lists_are_given_up(monkeypatch):
    refuse(monkeypatch, lambda whole: f"no (keep_whole=['{len(whole)}'])")
    row = examine(plain(), IMAGES, 0.5)
    assert row["verdict"] == REFUSED
    assert len(row["pasted"]) == coverage_verdict.PASTES
    assert row["reason_pasted"] == f"no (keep_whole=['{coverage_verdict.PASTES}'])"


def test_a_crash_is_not_a_refusal(monkeypatch):
    monkeypatch.setattr(coverage_verdict, "extract_slim", lambda *_: nn.Linear(1, 1))
    with pytest.raises(RuntimeError):
        examine(plain(), IMAGES, 0.5)


def test_wels_that_redraws_nothing_or_too_much_is_seen(monkeypatch):
    assert wels_problem(plain(), IMAGES, 0.5) == ""
    monkeypatch.setattr(coverage_verdict, "redraw_reset", lambda *_, **__: None)
    assert "reset entries are what they were" in wels_problem(plain(), IMAGES, 0.5)
    monkeypatch.setattr(coverage_verdict, "redraw_reset", lambda child, *_, **__: nn.init.normal_(child[0].weight))
    assert "0.weight: fit entries changed" in wels_problem(plain(), IMAGES, 0.5)


def test_a_norm_sees_its_fit_channels_only():
    network, images = nn.Sequential(nn.LayerNorm(4)), torch.tensor([[1.0, 3.0, 50.0, 7.0]])
    flags = torch.tensor([True, True, False, False])
    [found] = run(network, images, {"0": Narrowing((1, 4), 1, ChannelSet.of(flags))})
    torch.testing.assert_close(found[:, :2], torch.tensor([[-1.0, 1.0]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, 2:], network(images)[:, 2:])
    with over_fit_channels(network, {}):
        pass
    torch.testing.assert_close(network(images), nn.LayerNorm(4)(images))


def test_narrow_copies():
    norm = narrow_copy(nn.LayerNorm(4), torch.tensor([0, 2]), 4)
    assert (norm.normalized_shape, norm.weight.shape) == ((2,), (2,))
    convolution = narrow_copy(nn.Conv2d(4, 6, 3), torch.tensor([0, 2]), 4)
    assert (convolution.in_channels, convolution.weight.shape) == (2, (6, 2, 3, 3))
