import pytest
import torch
from torch import nn

from ke_metric.errors import KeMetricError
from ke_metric.split.planning import plan_split
from ke_metric.split.reset import mean_magnitudes, zero_reset


@pytest.mark.parametrize("kind", ["kels", "wels"])
def test_means_of_both_parts(small_network, images, kind):
    plan = plan_split(small_network, images, rate=0.5, kind=kind, seed=0)
    means = mean_magnitudes(small_network, plan)
    masks = plan.masks
    assert list(means) == list(masks)
    for name, (fit, reset) in means.items():
        entries = list(
            zip(small_network.get_parameter(name).flatten().tolist(), masks[name].flatten().tolist(), strict=True)
        )
        kept = [abs(value) for value, is_fit in entries if is_fit]
        redrawn = [abs(value) for value, is_fit in entries if not is_fit]
        assert fit == pytest.approx(sum(kept) / len(kept))
        assert reset == pytest.approx(sum(redrawn) / len(redrawn))
    zero_reset(small_network, plan)
    assert {reset for _, reset in mean_magnitudes(small_network, plan).values()} == {0.0}


def test_an_empty_part_has_no_mean(small_network, images):
    for _, reset in mean_magnitudes(small_network, plan_split(small_network, images, rate=1.0)).values():
        assert reset is None


def test_half_precision_does_not_overflow():
    network = nn.Linear(300, 300, bias=False).half()
    with torch.no_grad():
        network.weight.fill_(100)
    plan = plan_split(network, torch.zeros(1, 300), rate=0.5, kind="wels", seed=0)
    assert mean_magnitudes(network, plan)["weight"] == (100.0, 100.0)


def test_plan_of_another_network(small_network, images):
    with pytest.raises(KeMetricError, match="another network than this Linear"):
        mean_magnitudes(nn.Linear(2, 2), plan_split(small_network, images, rate=0.5))
