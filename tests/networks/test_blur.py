"""Anti-aliased strides: the filter is binomial, sizes stay, and slim networks are the blurred dense ones cut."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import convolve
from torch import nn

from ke_metric import extract_slim, plan_split
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.networks.dense import Blur, blur_strides, build_backbone, build_network
from ke_metric.schema import Network
from ke_metric.split.hypotheses import zero_reset

BINOMIAL = np.outer([1, 2, 1], [1, 2, 1]) / 16
NETWORKS = [
    ("timm/test_resnet", "strides"),
    ("timm/test_resnet", "stem"),
    ("resnet18", "strides"),
    ("resnet18", "stem"),
    ("mobilenet_v2", "strides"),
    ("googlenet", "strides"),
    ("densenet121", "stem"),
]


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.sampled_from([1, 2]), st.integers(0, 999))
def test_the_filter_is_binomial_and_repeats_the_edge(channels, height, width, stride, seed):
    maps = np.random.default_rng(seed).normal(size=(1, channels, height, width))
    found = Blur(stride)(torch.from_numpy(maps)).numpy()
    wanted = np.stack([convolve(plane, BINOMIAL, mode="nearest") for plane in maps[0]])[None, :, ::stride, ::stride]
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def backbone_of(name, blur="none", **fields):
    torch.manual_seed(0)
    return build_backbone(Network(backbone=name, blur=blur, **fields)).eval()


@pytest.mark.parametrize(("name", "blur"), NETWORKS)
@pytest.mark.parametrize("size", [50, 64])
def test_maps_keep_their_sizes_and_weights_their_values(name, blur, size):
    plain, blurred = backbone_of(name), backbone_of(name, blur)
    for before, after in zip(plain.state_dict().values(), blurred.state_dict().values(), strict=True):
        assert torch.equal(before, after)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        before, after = plain(images), blurred(images)
    assert before.shape == after.shape
    assert (before - after).norm() > 0.01 * before.norm()


@pytest.mark.parametrize(("name", "blur"), NETWORKS)
@pytest.mark.parametrize("rate", [0.3, 0.5])
def test_slim_is_dense_with_its_reset_hypothesis_at_zero(name, blur, rate):
    torch.manual_seed(0)
    network = build_network(Network(backbone=name, blur=blur, embedding_size=16), 64).double().train()
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        network(images)
    network.eval()
    plan = plan_split(network, images[:1], rate=rate)
    slim = extract_slim(network, plan)
    zero_reset(network, plan)
    assert plan.reset_count > 0
    with torch.no_grad():
        torch.testing.assert_close(slim(images), network(images))


@pytest.mark.parametrize(
    ("name", "blur", "fields"),
    [
        ("resnet18", "stem", {"stem": "small"}),
        ("timm/test_vit", "strides", {}),
        ("timm/test_vit", "stem", {}),
    ],
)
def test_nothing_to_blur_is_refused(name, blur, fields):
    with pytest.raises(KeMetricError, match=r"network\.blur") as caught:
        backbone_of(name, blur, **fields)
    assert caught.value.exit_code == ExitCode.RECIPE


def test_a_small_stem_of_stride_two_is_blurred():
    backbone = backbone_of("resnet18", "stem", stem="small", stem_stride=2)
    assert isinstance(backbone.conv1, nn.Sequential)
    assert not any(isinstance(module, Blur) for module in backbone.layer2.modules())


def test_other_words_are_refused():
    with pytest.raises(ValueError, match="blur"):
        Network(blur="all")


def test_a_blurred_network_depends_less_on_a_pixel():
    """Of two pictures that differ by a move of one pixel, the blurred features differ less."""
    images = torch.randn(8, 3, 64, 64)
    smooth = nn.functional.avg_pool2d(images, 3, 1, 1)
    distances = []
    for blur in ("none", "strides"):
        network = backbone_of("resnet18", blur)
        with torch.no_grad():
            first, second = network(smooth[..., :-1]), network(smooth[..., 1:])
        distances.append(float((first - second).norm() / first.norm()))
    assert distances[1] < 0.8 * distances[0]


def test_the_plain_network_is_as_before():
    assert not any(isinstance(module, Blur) for module in backbone_of("resnet18").modules())
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(KeMetricError):
        blur_strides(network, "strides", "own")
