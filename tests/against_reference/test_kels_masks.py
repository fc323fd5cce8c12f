"""KELS masks against the authors' rule, written out layer by layer.

Taha, Shrivastava, Davis: Knowledge Evolution in Neural Networks, CVPR 2021. In their code every layer of a retyped
network is told its place by hand: the first convolution keeps all input channels; the last layer keeps all outputs;
an inner layer keeps a prefix of its rows and of its columns; a layer fed by a concatenation keeps a prefix of every
chunk. Here the chunk lists are written out from the published architectures, and nothing is followed.
"""

import math

import pytest
import torch
import torchvision

from ke_metric.split.hypotheses import extract_slim
from ke_metric.split.planning import plan_split

RATES = (0.5, 0.7, 0.75, 0.8)


def prefix(rate, channels):
    return math.ceil(rate * channels - 1e-9)


def kels_mask(weight, rate, chunks=None, *, first=False, last=False):
    """The authors' mask of one weight [C_out, C_in, ...]; chunks: channels of every tensor that feeds it."""
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    rows = weight.shape[0] if last else prefix(rate, weight.shape[0])
    offset = 0
    for chunk in chunks or [weight.shape[1]]:
        mask[:rows, offset : offset + (chunk if first else prefix(rate, chunk))] = True
        offset += chunk
    assert offset == weight.shape[1]
    return mask


def weights_of(network):
    return {name: weight for name, weight in network.named_parameters() if weight.ndim >= 2}


def resnet_masks(network, rate):
    """Shortcut convolutions are inner layers: prefixes add to prefixes."""
    return {
        name: kels_mask(weight, rate, first=name == "conv1.weight", last=name == "fc.weight")
        for name, weight in weights_of(network).items()
    }


INCEPTION_OUTPUTS = {  # 1x1, 3x3, "5x5", pooling projection
    "3a": (64, 128, 32, 32),
    "3b": (128, 192, 96, 64),
    "4a": (192, 208, 48, 64),
    "4b": (160, 224, 64, 64),
    "4c": (128, 256, 64, 64),
    "4d": (112, 288, 64, 64),
    "4e": (256, 320, 128, 128),
    "5a": (256, 320, 128, 128),
    "5b": (384, 384, 128, 128),
}


def googlenet_masks(network, rate):
    blocks = list(INCEPTION_OUTPUTS)
    feeds = dict(zip(blocks, [(192,), *INCEPTION_OUTPUTS.values()], strict=False))
    masks = {}
    for name, weight in weights_of(network).items():
        chunks = None
        for block in blocks:
            enters = ("branch1.", "branch2.0.", "branch3.0.", "branch4.1.")
            if name.startswith(tuple(f"inception{block}.{branch}" for branch in enters)):
                chunks = feeds[block]
        if name == "fc.weight":
            chunks = INCEPTION_OUTPUTS["5b"]
        masks[name] = kels_mask(weight, rate, chunks, first=name == "conv1.conv.weight", last=name == "fc.weight")
    return masks


def densenet_masks(network, rate, blocks):
    """Growth 32; every block starts with one chunk and grows by one chunk a layer."""
    weights = weights_of(network)
    masks = {"features.conv0.weight": kels_mask(weights["features.conv0.weight"], rate, first=True)}
    width = 64
    for number, layers in enumerate(blocks, start=1):
        chunks = [width]
        for layer in range(1, layers + 1):
            start = f"features.denseblock{number}.denselayer{layer}"
            masks[f"{start}.conv1.weight"] = kels_mask(weights[f"{start}.conv1.weight"], rate, chunks)
            masks[f"{start}.conv2.weight"] = kels_mask(weights[f"{start}.conv2.weight"], rate)
            chunks = [*chunks, 32]
        if number < len(blocks):
            transition = f"features.transition{number}.conv.weight"
            masks[transition] = kels_mask(weights[transition], rate, chunks)
            width = sum(chunks) // 2
    masks["classifier.weight"] = kels_mask(weights["classifier.weight"], rate, chunks, last=True)
    return masks


def vgg_masks(network, rate):
    """After the flatten, the columns of every kept channel: 7 x 7 positions each, not a prefix of all columns."""
    masks = {}
    for name, weight in weights_of(network).items():
        masks[name] = kels_mask(weight, rate, first=name == "features.0.weight", last=name == "classifier.6.weight")
    first_linear = masks["classifier.0.weight"]
    first_linear[:] = False
    first_linear[: prefix(rate, 4096), : prefix(rate, 512) * 49] = True
    return masks


def demand_equal(network, reference, rate):
    device = next(network.parameters()).device
    plan = plan_split(network, torch.zeros(1, 3, 32, 32, device=device), rate=rate)
    masks = reference(network, rate)
    assert list(plan.weights) == list(weights_of(network)) == list(masks)
    for name, mask in plan.masks.items():
        assert mask.dtype == torch.bool
        assert torch.equal(mask, masks[name]), name


@pytest.fixture(params=RATES)
def rate(request):
    return request.param


def build(name, **arguments):
    """Networks on the meta device, shapes only: the rule looks at nothing else, and neither does the plan."""
    with torch.random.fork_rng(devices=[]), torch.device(arguments.pop("device", "meta")):
        return torchvision.models.get_model(name, weights=None, num_classes=11, **arguments)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_resnet(name, rate):
    demand_equal(build(name), resnet_masks, rate)


def test_googlenet(rate):
    demand_equal(build("googlenet", aux_logits=False, init_weights=False), googlenet_masks, rate)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("densenet121", (6, 12, 24, 16)),
        pytest.param("densenet169", (6, 12, 32, 32), marks=pytest.mark.slow),
    ],
)
def test_densenet(name, blocks, rate):
    network = build(name, device="cpu")  # hundreds of batch norms, which are slow on the meta device
    demand_equal(network, lambda network, rate: densenet_masks(network, rate, blocks), rate)


@pytest.mark.parametrize(("rate", "theirs", "mask"), [(0.8, 104, 103), (0.7, 92, 90), (0.5, 64, 64), (0.75, 96, 96)])
def test_slim_densenet_follows_the_mask(rate, theirs, mask):
    """The authors build their slim DenseNet 4 x ceil(rate x 32) wide inside, and mask ceil(rate x 128) channels.

    At 0.8 and 0.7 their slim network has rows outside of its fit hypothesis. Ours has those of the mask.
    """
    assert theirs == 4 * prefix(rate, 32)
    with torch.random.fork_rng(devices=[]):
        network = torchvision.models.DenseNet(block_config=(2, 2), num_classes=3)
    slim = extract_slim(network, plan_split(network, torch.zeros(1, 3, 32, 32), rate=rate))
    assert slim.features.denseblock1.denselayer1.conv1.out_channels == mask


def test_vgg(rate):
    demand_equal(build("vgg11_bn"), vgg_masks, rate)


def test_flatten_keeps_whole_channels():
    """At split rate 0.8, 410 of 512 channels are 20090 columns; a prefix of the columns would be 20071."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 512, 1), torch.nn.AdaptiveAvgPool2d(7), torch.nn.Flatten(), torch.nn.Linear(512 * 49, 2)
    )
    plan = plan_split(network, torch.zeros(1, 3, 7, 7), rate=0.8)
    assert int(plan.masks["3.weight"].sum()) == 2 * 20090
