import pytest
import torch
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.split.following import follow_channels
from ke_metric.split.hypotheses import extract_slim, redraw_reset
from ke_metric.split.planning import plan_split


def test_the_network_is_as_before(small_network, images):
    small_network.train()
    small_network.norm.eval()
    small_network(images).sum().backward()
    state = {name: tensor.clone() for name, tensor in small_network.state_dict().items()}
    gradients = {name: parameter.grad.clone() for name, parameter in small_network.named_parameters()}
    flags = [module.training for module in small_network.modules()]
    follow_channels(small_network, images)
    assert all(torch.equal(tensor, state[name]) for name, tensor in small_network.state_dict().items())
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in small_network.named_parameters())
    assert all(parameter.requires_grad for parameter in small_network.parameters())
    assert [module.training for module in small_network.modules()] == flags
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small_network.modules())


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, images):
        return self.layer(images + torch.rand_like(images))


def test_default_random_stream_is_as_before(images):
    network = Noisy()
    state = torch.get_rng_state()
    follow_channels(network, images)
    assert torch.equal(torch.get_rng_state(), state)


def test_flags_and_hooks_are_put_back_after_a_crash(small_network):
    small_network.train()
    with pytest.raises(KeMetricError, match="channels"):
        follow_channels(small_network, torch.zeros(1, 4, 8, 8))
    assert all(module.training for module in small_network.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small_network.modules())


def test_inside_inference_mode(small_network, images):
    with torch.inference_mode():
        assert list(follow_channels(small_network, images).layers) == [
            f"{name}.weight" for name in ("stem", "inner", "widen", "hidden", "head")
        ]


def test_the_default_device_does_not_matter(small_network, images):
    """Labels, plan, new values and slim network come about on the CPU and go where the network is."""
    with torch.device("meta"):
        plan = plan_split(small_network, images, rate=0.5)
        assert plan_split(small_network, images, rate=0.5, kind="wels", seed=0).fit_count > 0
        redraw_reset(small_network, plan, generator=torch.Generator())
        slim = extract_slim(small_network, plan)
    assert {tensor.device.type for tensor in slim.state_dict().values()} == {"cpu"}


def test_channels_last_weights(small_network, images):
    """The labels are of channels, whatever the strides."""
    plain = follow_channels(small_network, images).layers
    last = follow_channels(
        small_network.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)
    ).layers
    assert [layer.inputs.tolist() for layer in plain.values()] == [layer.inputs.tolist() for layer in last.values()]


class Unused(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 1))
        self.aux = nn.Linear(4, 2)

    def forward(self, images):
        return self[0](images)


def test_weights_that_take_no_part_are_an_error(images):
    with pytest.raises(KeMetricError, match=r"aux\.weight.*aux_logits=False") as caught:
        follow_channels(Unused(), images)
    assert caught.value.exit_code == ExitCode.RECIPE


class Text(nn.Module):
    def forward(self, _images):
        return "no tensor"


def test_an_output_without_tensors_is_an_error(images):
    with pytest.raises(KeMetricError, match="Text returned str") as caught:
        follow_channels(Text(), images)
    assert caught.value.exit_code == ExitCode.RECIPE


class Several(nn.Module):
    """Returns a dict of features and a list of logits."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(3, 6, 1)
        self.features = nn.Conv2d(6, 6, 1)
        self.logits = nn.Conv2d(6, 6, 1)

    def forward(self, images):
        inner = self.inner(images)
        return {"features": self.features(inner), "logits": [self.logits(inner)]}


def test_every_tensor_of_the_output_is_kept_whole(images):
    graph = follow_channels(Several(), images)
    tied = torch.cat(graph.ties, dim=1)[0].unique().tolist()
    assert tied == [
        *graph.layers["features.weight"].outputs.tolist(),
        *graph.layers["logits.weight"].outputs.tolist(),
    ]
