"""Backbones: any torchvision or timm classifier by name, its classifier taken off without losing pooling.

Shapes: B batch, F feature, H and W image height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from types import ModuleType
from typing import cast

import torch
import torchvision
from torch import Tensor, nn

from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.schema import Network

TIMM_PREFIX = "timm/"
# torchvision builds its classifiers for the classes of ImageNet; that number identifies the classifier layer.
IMAGENET_CLASSES = 1000
# Classifiers halfway through a network train only beside the one at its end.
AUXILIARY_HEADS = {"googlenet": ("aux_logits", "aux1", "aux2"), "inception_v3": ("aux_logits", "AuxLogits")}


def build_backbone(network: Network, *, load_pretrained: bool = True) -> nn.Module:
    """Build the recipe's backbone: images [B, 3, H, W] to features [B, F].

    Random weights are drawn from torch's default generator (see `randomness.default_streams`). Without
    `load_pretrained` a recipe that asks for pretrained weights gets random ones, for when others are loaded right
    after.

    Raises:
        KeMetricError: An unknown name, timm missing, pretrained weights that cannot be had, or a small stem for a
            network that has none.
    """
    if network.pretrained and network.stem == "small":
        raise KeMetricError(
            "network.stem = 'small' and network.pretrained = true exclude each other: the pretrained weights belong "
            "to the standard stem",
            ExitCode.RECIPE,
        )
    build = _timm_backbone if network.backbone.startswith(TIMM_PREFIX) else _torchvision_backbone
    backbone = build(network, network.pretrained and load_pretrained)
    if network.stem == "small":
        make_stem_small(backbone, network.stem_stride, network.backbone)
    return backbone


def feature_size(backbone: nn.Module, image_size: int, name: str) -> int:
    """Return F, found by sending one black image of `image_size` pixels through the backbone.

    Raises:
        KeMetricError: The backbone cannot take images of this size, or what it gives is not [B, F].
    """
    was_training = backbone.training
    try:
        with torch.no_grad():
            feature = cast(Tensor, backbone.eval()(torch.zeros(1, 3, image_size, image_size)))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise KeMetricError(
            f"network.backbone = {name!r} cannot take images of data.image_size = {image_size} pixels: {error}",
            ExitCode.RECIPE,
        ) from error
    finally:
        backbone.train(was_training)
    if feature.ndim != 2:
        raise KeMetricError(
            f"network.backbone = {name!r} gives features of shape {tuple(feature.shape)}, [B, F] is needed",
            ExitCode.RECIPE,
        )
    return feature.shape[1]


def _torchvision_backbone(network: Network, pretrained: bool) -> nn.Module:
    name = network.backbone
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise KeMetricError(
            f"network.backbone = {name!r} is no classifier of torchvision{closest(name, names)} "
            f"(models of timm are written {TIMM_PREFIX}NAME)",
            ExitCode.RECIPE,
        )
    with _weights_within_reach(network, pretrained):
        backbone: nn.Module = torchvision.models.get_model(
            name, weights="DEFAULT" if pretrained else None, **_auxiliary_options(network, pretrained)
        )
    for attribute in AUXILIARY_HEADS.get(name, ()):
        setattr(backbone, attribute, None)
    classifier = [path for path, module in backbone.named_modules() if _outputs(module) == IMAGENET_CLASSES][-1]
    backbone.set_submodule(classifier, nn.Identity())
    return backbone


def _auxiliary_options(network: Network, pretrained: bool) -> dict[str, bool]:
    """Return what the networks with auxiliary heads want to be told; with weights torchvision allows only its own."""
    if network.backbone not in AUXILIARY_HEADS or pretrained:
        return {}
    # Pretrained weights come with a change of the images' range inside the network, part of the architecture.
    return {"aux_logits": False, "init_weights": True, "transform_input": network.pretrained}


def _timm_backbone(network: Network, pretrained: bool) -> nn.Module:
    timm = imported_timm(f"network.backbone = {network.backbone!r} needs timm")
    name = network.backbone.removeprefix(TIMM_PREFIX)
    if not timm.is_model(name):
        raise KeMetricError(
            f"network.backbone = {network.backbone!r} is no model of timm{closest(name, timm.list_models())}",
            ExitCode.RECIPE,
        )
    # What follows a dot names pretrained weights.
    if (pretrained or "." in name) and not timm.is_model_pretrained(name):
        weights = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise KeMetricError(
            f"network.backbone = {network.backbone!r}: timm has no such pretrained weights{closest(name, weights)}; "
            f"there are: {', '.join(weights) or 'none'}",
            ExitCode.RECIPE,
        )
    with _weights_within_reach(network, pretrained):
        # num_classes=0 takes the classifier off and keeps the pooling; an Identity in its place may lose it.
        backbone: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    return backbone


def imported_timm(need: str) -> ModuleType:
    """Return timm, or refuse what needs it with how to install it."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise KeMetricError(f"{need}: pip install 'ke_metric[timm]'", ExitCode.ENVIRONMENT) from error
    assert isinstance(timm, ModuleType)
    return timm


@contextmanager
def _weights_within_reach(network: Network, pretrained: bool) -> Iterator[None]:
    """Say what to do when the libraries cannot fetch pretrained weights."""
    try:
        yield
    except (OSError, HTTPException, RuntimeError) as error:
        if not pretrained:
            raise
        raise KeMetricError(
            f"network.pretrained = true: the weights of {network.backbone!r} cannot be had ({error}). Fetch them "
            "once on a machine with network access, or start from random weights (network.pretrained = false).",
            ExitCode.ENVIRONMENT,
        ) from error


def _outputs(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.Conv2d) else None


def make_stem_small(backbone: nn.Module, stride: int, name: str) -> None:
    """Make the first convolution 3x3 with the given stride and drop the max pooling between it and the second.

    For images of 32 to 64 pixels, which a 7x7 stride-2 convolution and a pooling would shrink to nothing. The new
    convolution is drawn from He's normal distribution (fan_out, ReLU), as torchvision's ResNet draws its own.

    Raises:
        KeMetricError: The network does not begin with an overlapping convolution (a patch embedding, say).
    """
    names = [module_name for module_name, _ in _stem(backbone)]
    first = backbone.get_submodule(names[0]) if names else None
    if not isinstance(first, nn.Conv2d) or first.stride[0] >= first.kernel_size[0] or first.groups != 1:
        raise KeMetricError(
            f"network.stem = 'small': {name!r} does not begin with a convolution whose windows overlap; "
            "use stem = 'standard' and a larger data.image_size",
            ExitCode.RECIPE,
        )
    small = nn.Conv2d(first.in_channels, first.out_channels, 3, stride=stride, padding=1, bias=first.bias is not None)
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    backbone.set_submodule(names[0], small)
    for pooling in names[1:]:
        backbone.set_submodule(pooling, nn.Identity())


def _stem(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the first convolution and the max poolings defined before the second one."""
    convolutions = 0
    for name, module in backbone.named_modules():
        convolutions += isinstance(module, nn.Conv2d)
        if convolutions > 1:
            return
        if convolutions and isinstance(module, nn.Conv2d | nn.MaxPool2d):
            yield name, module
