"""The dense network: a classifier of torchvision or timm up to its feature, a head, and what others need around them.

Images become embeddings or logits. Shapes: B batch, F feature, D embedding, C classes, H and W image height and
width, S image size, in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from types import ModuleType
from typing import TYPE_CHECKING, Literal, cast

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.schema import Network

if TYPE_CHECKING:
    from ke_metric.networks.starting_weights import StartingWeights

TIMM_PREFIX = "timm/"
# torchvision builds its classifiers for the classes of ImageNet; that number identifies the classifier layer.
IMAGENET_CLASSES = 1000
# Classifiers halfway through a network train only beside the one at its end.
AUXILIARY_HEADS = {"googlenet": ("aux_logits", "aux1", "aux2"), "inception_v3": ("aux_logits", "AuxLogits")}


def build_backbone(network: Network, *, load_pretrained: bool = True) -> nn.Module:
    """Build the recipe's backbone: images [B, 3, H, W] to features [B, F].

    Random weights are drawn from torch's default generator (see `randomness.default_streams`). Without
    `load_pretrained` a recipe that asks for given weights (`pretrained`, `weights`) gets random ones, for when others
    are loaded right after.

    Raises:
        KeMetricError: An unknown name, timm missing, given weights that cannot be had or do not fit, a small stem
            for a network that has none, or strides to be blurred where there are none.
    """
    backbone, earlier_names = _build(network, network.pretrained and load_pretrained)
    if load_pretrained and network.weights is not None:
        _match(network, backbone, earlier_names).load_into(backbone)
    return backbone


def match_starting_weights(network: Network) -> StartingWeights | None:
    """Return what `network.weights` holds for the backbone; None where the recipe names no file.

    Raises:
        KeMetricError: As `build_backbone`.
    """
    return None if network.weights is None else _match(network, *_build(network, pretrained=False))


def _match(network: Network, backbone: nn.Module, earlier_names: dict[int, str]) -> StartingWeights:
    # A search builds networks, and never from such a file.
    from ke_metric.networks.starting_weights import match

    return match(network, backbone, earlier_names)


def _build(network: Network, pretrained: bool) -> tuple[nn.Module, dict[int, str]]:
    """Return the backbone without the weights of a file, and `id` of a tensor to its name before it was blurred."""
    if network.pretrained and network.stem == "small":
        raise KeMetricError(
            "network.stem = 'small' and network.pretrained = true exclude each other: the pretrained weights belong "
            "to the standard stem",
            ExitCode.RECIPE,
        )
    build = _timm_backbone if network.backbone.startswith(TIMM_PREFIX) else _torchvision_backbone
    backbone = build(network, pretrained)
    if network.stem == "small":
        make_stem_small(backbone, network.stem_stride, network.backbone)
    earlier_names = {id(tensor): name for name, tensor in backbone.state_dict(keep_vars=True).items()}
    if network.blur != "none":
        blur_strides(backbone, network.blur, network.backbone)
    return backbone, earlier_names


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
    names = [module_name for module_name, _ in stem_layers(backbone)]
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


class Blur(nn.Sequential):
    """Anti-aliasing of a stride: a binomial filter of 3x3 positions of maps [B, C, H, W], at every `stride`-th one.

    The edge is repeated. Two means of 2x2 positions in a row are that filter. Poolings have no weights and take any
    number of channels, so a slim network is blurred as the dense one is. A signal must be low-passed before it is
    subsampled, or what is left depends on where the picture lies by a pixel (Zhang, ICML 2019).

    Args:
        stride: 1 keeps the size of the maps, 2 halves it, rounded up.
    """

    def __init__(self, stride: int) -> None:
        super().__init__(nn.AvgPool2d(2, 1, padding=1, count_include_pad=False), nn.AvgPool2d(2, stride))


def blur_strides(backbone: nn.Module, where: Literal["stem", "strides"], name: str) -> None:
    """Blur before every convolution of stride 2, and between every max pooling of stride 2 and its stride.

    Weights keep their values, so pretrained ones can be refined.

    Args:
        backbone: Changed in place.
        where: `stem`: in the first convolution and the max poolings before the second one alone.
        name: What an error calls the backbone.

    Raises:
        KeMetricError: There is no such layer.
    """
    chosen = stem_layers(backbone) if where == "stem" else list(backbone.named_modules())
    halving = [(path, module) for path, module in chosen if _halves(module)]
    if not halving:
        raise KeMetricError(
            f"network.blur = {where!r}: {name!r} has no convolution or max pooling of stride 2 there, must be 'none'",
            ExitCode.RECIPE,
        )
    for path, module in halving:
        blurred = nn.Sequential(Blur(1), module)
        if isinstance(module, nn.MaxPool2d):
            module.stride = 1
            blurred = nn.Sequential(module, Blur(2))
        backbone.set_submodule(path, blurred)


def stem_layers(backbone: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the first convolution and the max poolings defined before the second one, with their names."""
    return list(_stem(backbone))


def _stem(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    convolutions = 0
    for name, module in backbone.named_modules():
        convolutions += isinstance(module, nn.Conv2d)
        if convolutions > 1:
            return
        if convolutions and isinstance(module, nn.Conv2d | nn.MaxPool2d):
            yield name, module


def _halves(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.MaxPool2d) and module.stride in (2, (2, 2))


# A class weight shorter than this is divided by it instead of by its length, as `normalize` does with features.
SHORTEST_LENGTH = 1e-12


class EmbeddingNetwork(nn.Module):
    """Images [B, 3, H, W] to L2-normalised float32 embeddings [B, D]: backbone [B, F], linear head."""

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Embed a batch of normalised images [B, 3, H, W] as [B, D]."""
        embedding = cast(Tensor, self.head(self.backbone(images)))
        # Half precision would leave lengths up to 1 % from 1.
        return normalize(embedding.float(), dim=1)


def build_network(network: Network, image_size: int, *, load_pretrained: bool = True) -> EmbeddingNetwork:
    """Build the embedding network of a recipe; weights as in `build_backbone`.

    Raises:
        KeMetricError: The backbone cannot be built, or cannot take images of this size in pixels.
    """
    backbone = build_backbone(network, load_pretrained=load_pretrained)
    features = feature_size(backbone, image_size, network.backbone)
    return EmbeddingNetwork(backbone, nn.Linear(features, network.embedding_size))


class CosineHead(nn.Conv1d):
    """Features [B, F] to their cosines with the weight of every class [B, C], in [-1, 1] up to rounding.

    cos_k = <x, w_k> / (|x| |w_k|) (Zhang et al., "AdaCos", CVPR 2019). Autocast does not reach it: cosines are
    computed in the precision of the weights. The highest cosine decides the class; for a softmax cosines are too
    close to each other, and AdaCosLoss scales them.

    A kind of torch's convolution, of which it has the initialisation and nothing else, because the split room follows
    what is computed from the weight of a convolution and would keep the features of any other cosine whole. The
    length of a feature is a norm over channels: the slim network takes it over the fit ones (`SplitPlan.norms`).

    Args:
        features: F.
        classes: C.

    Attributes:
        weight: [C, F], drawn from U(±1/sqrt(F)) as a linear layer's; there is no bias.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes, kernel_size=1, bias=False)
        self.weight = nn.Parameter(self.weight.detach().squeeze(-1))

    def forward(self, features: Tensor) -> Tensor:
        """Return the cosines [B, C] of features [B, F]."""
        with torch.autocast(features.device.type, enabled=False):
            directions = normalize(features.to(self.weight.dtype), dim=1)
            lengths = torch.linalg.vector_norm(self.weight, dim=1).clamp_min(SHORTEST_LENGTH)
            cosines: Tensor = linear(directions, self.weight) / lengths
        return cosines


class Classifier(nn.Module):
    """Images [B, 3, H, W] to float32 logits [B, C]: backbone [B, F], head."""

    def __init__(self, backbone: nn.Module, head: nn.Linear | CosineHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, C] of normalised images [B, 3, H, W]; cosines where the head is a cosine head."""
        return cast(Tensor, self.head(self.features(images))).float()

    def features(self, images: Tensor) -> Tensor:
        """Return the features [B, F] of normalised images [B, 3, H, W], before the head."""
        return cast(Tensor, self.backbone(images))


def build_classifier(network: Network, image_size: int, classes: int, *, load_pretrained: bool = True) -> Classifier:
    """Build the classifier of a recipe; weights as in `build_backbone`.

    The linear head is initialised by torch's own rule, weight and bias from U(±1/sqrt(F)), which is also how
    torchvision leaves the last layer of its ResNets and how `method.reset: official` redraws it. The authors' code
    draws the weight from N(0, 2/F) for ResNets, sqrt(6) times as wide.

    Raises:
        KeMetricError: There are fewer than 2 classes, the backbone cannot be built, or it cannot take images of this
            size in pixels.
    """
    if classes < 2:
        raise KeMetricError(f"a classifier needs 2 classes or more to tell apart, not {classes}", ExitCode.DATA)
    backbone = build_backbone(network, load_pretrained=load_pretrained)
    features = feature_size(backbone, image_size, network.backbone)
    head = CosineHead(features, classes) if network.head == "cosine" else nn.Linear(features, classes)
    return Classifier(backbone, head)


class PictureModule(nn.Module):
    """Pictures in [0, 1], [B, 3, S, S], to embeddings [B, D] or logits [B, C]; standardisation is inside.

    Of an embedder it works as the trunk of pytorch-metric-learning's InferenceModel.

    Args:
        network: Standardised images to embeddings, which are L2-normalised, or to logits.
        mean: Of red, green, blue in [0, 1], subtracted.
        std: Of red, green, blue in [0, 1], divided by.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, *, mean: tuple[float, float, float], std: tuple[float, float, float]
    ) -> None:
        super().__init__()
        self.network = network
        device = next(network.parameters()).device
        self.register_buffer("mean", torch.tensor(mean, device=device).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, device=device).view(1, 3, 1, 1), persistent=False)
        self.train(network.training)

    def forward(self, images: Tensor) -> Tensor:
        """Return what the network gives for images [B, 3, S, S] in [0, 1]."""
        return cast(Tensor, self.network((images - self.mean) / self.std))


class ClassifierFeatures(nn.Module):
    """Standardised images [B, 3, S, S] to the features that a classifier's head sees, L2-normalised, [B, F]."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of images, of length 1."""
        return normalize(self.classifier.features(images).float(), dim=1)


class ScaledLogits(nn.Module):
    """Standardised images [B, 3, S, S] to a classifier's cosines times the scale of its loss, [B, C]."""

    def __init__(self, classifier: nn.Module, scale: float) -> None:
        super().__init__()
        self.classifier, self.scale = classifier, scale

    def forward(self, images: Tensor) -> Tensor:
        """Return logits whose softmax gives probabilities."""
        return cast(Tensor, self.classifier(images)) * self.scale
