"""Networks of torchvision and timm: built, given weights as after some training, classed, their operations counted.

A name is `torchvision/NAME`, `timm/NAME`, or `NAME` alone for torchvision.
"""

import random
from collections.abc import MutableMapping, Sequence
from math import prod
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

from ke_metric.errors import ExitCode, KeMetricError, closest
from ke_metric.report.cost_section import unfused_attention

SAMPLE_SEED = 0
SAMPLE_NETWORKS = 200
SAMPLE_PARAMETERS = 120_000_000
# Sides of images, the first at which a network runs; a fixed size above the last is built for that one.
SIZES = (128, 224)
IMAGES = 4
IMAGE_SEED = 1
TINY = 1e-3
LIBRARIES = ("torchvision", "timm")


# --- which networks -----------------------------------------------------------------------------------------------


def torchvision_names() -> list[str]:
    """Return the names of all classifiers of torchvision."""
    return [f"torchvision/{name}" for name in torchvision.models.list_models(module=torchvision.models)]


def timm_names(networks: int = SAMPLE_NETWORKS) -> list[str]:
    """Return a random sample of timm: of its names, sorted and shuffled, the first with at most 120 M parameters."""
    names = sorted(timm.list_models())
    random.Random(SAMPLE_SEED).shuffle(names)
    sample: list[str] = []
    for name in names:
        if len(sample) == networks:
            break
        if _parameters(name) <= SAMPLE_PARAMETERS:
            sample.append(f"timm/{name}")
    return sample


def _parameters(name: str) -> int:
    with torch.device("meta"):
        network = timm.create_model(name)
    return sum(parameter.numel() for parameter in network.parameters())


def build_network(name: str, pixels: int | None = None) -> nn.Module:
    """Return a network by its name, with its initial random weights, in eval mode.

    Args:
        name: Its name.
        pixels: Side of the images that a timm network of a fixed size is built for; its own by default.

    Raises:
        KeMetricError: No library of ours has a network of that name.
    """
    library, network = split_name(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if library == "timm":
            return timm.create_model(network, **({} if pixels is None else {"img_size": pixels})).eval()
        auxiliary = {"aux_logits": False, "init_weights": False} if network in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(network, weights=None, **auxiliary).eval()


def split_name(name: str) -> tuple[str, str]:
    """Return library and network of a name.

    Raises:
        KeMetricError: There is no such library, or no such network in it.
    """
    library, _, network = name.rpartition("/")
    library = library or "torchvision"
    if library not in LIBRARIES:
        raise KeMetricError(f"network {name!r}: library {library!r} is none of {LIBRARIES}", ExitCode.USAGE)
    known = timm.list_models() if library == "timm" else torchvision.models.list_models(module=torchvision.models)
    if network not in known:
        raise KeMetricError(f"{library} has no classifier {network!r}{closest(network, known)}", ExitCode.USAGE)
    return library, network


def build_for_test(name: str) -> tuple[nn.Module, int]:
    """Return a network and the side of the images it is tested on, in pixels.

    The side is 128, which costs a third of 224, or 224 where a network does not run at 128, or its own size where it
    runs at neither. Networks of timm that are made for one size get that size; where it is above 224, they are built
    for 224 if they can be.
    """
    network = build_network(name)
    described = getattr(network, "default_cfg", {})
    own = described.get("input_size", (SIZES[-1],))[-1]
    if described.get("fixed_input_size"):
        return _built_for(name, network, own)
    sizes = [size for size in SIZES if size < own and _runs(network, size)]
    forget_caches(network)
    return network, sizes[0] if sizes else own


def _built_for(name: str, network: nn.Module, own: int) -> tuple[nn.Module, int]:
    if own > SIZES[-1]:
        try:
            smaller = build_network(name, SIZES[-1])
        except (AssertionError, RuntimeError, TypeError, ValueError):
            return network, own
        if _runs(smaller, SIZES[-1]):
            return smaller, SIZES[-1]
    return network, own


def _runs(network: nn.Module, pixels: int) -> bool:
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, pixels, pixels))
    except (AssertionError, RuntimeError, ValueError):
        return False
    return True


def make_images(pixels: int) -> Tensor:
    """Return four random images [4, 3, H, W].

    Random patterns of 1, 4, 16 and all pixels a side are added up: of pixel noise alone, a network sees much the same
    in every image.

    Args:
        pixels: Height and width.
    """
    generator = torch.Generator().manual_seed(IMAGE_SEED)
    patterns = [torch.randn(IMAGES, 3, side, side, generator=generator) for side in (1, 4, 16, pixels)]
    return torch.stack([interpolate(each, size=(pixels, pixels), mode="bilinear") for each in patterns]).sum(0) / 2


# --- weights as after some training -------------------------------------------------------------------------------


def give_weights(network: nn.Module, images: Tensor, seed: int = 0) -> None:
    """Give a network weights as after some training: no branch is switched off, nothing is 0 or 1 by initialisation.

    Biases are drawn from U(-0.1, 0.1). Norm weights, layer scales and gains that were constant become c U(0.8, 1.2),
    with c = 1 where they were 0 or tiny. Larger parameters that were 0 are drawn from U(-b, b), b = 1/sqrt(fan_in).
    Norm statistics are measured (`measure_statistics`).

    Args:
        network: The network, in eval mode; changed in place.
        images: Images [B, 3, H, W] to measure norm statistics on.
        seed: Of all that is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            values = _trained(name.rpartition(".")[2], parameter, generator)
            if values is not None:
                parameter.copy_(values)
    measure_statistics(network, images, seed)


def measure_statistics(network: nn.Module, images: Tensor, seed: int = 0) -> None:
    """Set the running statistics of all norms, in place, to near what they see when the network is given the images.

    The variance is the measured one times a factor in [0.8, 1.25]; the mean a tenth of the measured one, moved by up
    to 0.2 standard deviations. So activations neither explode nor fade in a deep network, and rounding in fp32 stays
    some orders below 1e-4: with the whole mean taken off, as in training, random networks of 100 layers amplify it.

    Args:
        network: The network, in eval mode.
        images: Images [B, 3, H, W].
        seed: Of the moves.
    """
    generator = torch.Generator().manual_seed(seed)

    def measure(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        dims = [dim for dim in range(inputs[0].ndim) if dim != 1]
        variance, mean = torch.var_mean(inputs[0], dims, correction=0)
        variance = variance.clamp(min=TINY * max(1, float(variance.mean())))
        shift, factor = (torch.empty_like(mean).uniform_(-1, 1, generator=generator) for _ in range(2))
        module.running_var.copy_(variance * 1.25**factor)
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.copy_(0.1 * mean + 0.2 * shift * variance.sqrt())

    norms = [module for module in network.modules() if getattr(module, "running_var", None) is not None]
    handles = [module.register_forward_pre_hook(measure) for module in norms]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    forget_caches(network)


def forget_caches(network: nn.Module) -> None:
    """Make a network forget what it computed from its weights in eval mode (position biases of LeViT, TinyViT)."""
    network.train()
    network.eval()


def _trained(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor | None:
    """Return values for a parameter that says nothing as it was initialised; None for any other."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty_like(parameter).uniform_(low, high, generator=generator)

    smallest, largest = parameter.abs().min(), parameter.abs().max()
    if parameter.ndim <= 1 and ("bias" in name or "beta" in name):
        return uniform(-0.1, 0.1)
    if parameter.ndim <= 1 and largest < TINY:
        return uniform(0.8, 1.2)
    if largest < TINY:
        return uniform(-1, 1) / max(1, prod(parameter.shape[1:])) ** 0.5
    return parameter * uniform(0.8, 1.2) if smallest == largest else None


# --- convolutional or not -----------------------------------------------------------------------------------------


def class_of(network: nn.Module, images: Tensor) -> str:
    """Return how a network mixes positions: `attention`, `token mixing` or `convolutional`.

    Decided by what one evaluation does, not by names:

    - `attention`: it multiplies two matrices that both depend on the images (or calls an attention operation);
    - `token mixing`: a linear layer sums over a dimension along which the channel stays the same, that is, over
      positions, as in MLP-Mixer, gMLP and ResMLP;
    - `convolutional`: neither of them; convolutions, poolings, gates and linear layers over channels remain.

    Args:
        network: The network, in eval mode.
        images: Images [B, 3, H, W].
    """
    mode = _Mixing(images)
    with torch.no_grad(), unfused_attention(), mode:
        network(images)
    forget_caches(network)
    return next((kind for kind in ("attention", "token mixing") if kind in mode.seen), "convolutional")


def count_flops(network: nn.Module, images: Tensor) -> int:
    """Return the floating-point operations of one evaluation: two for each multiply-add of layers and attention.

    Fused attention is taken apart, because `torch.utils.flop_counter` does not know all of its kernels.

    Args:
        network: The network, in eval mode.
        images: Images [B, 3, H, W].
    """
    # The counter's hooks fail at a parameter that is given to a module (a query of attention pooling, a class token).
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.requires_grad_(False)
    try:
        with torch.no_grad(), unfused_attention(), FlopCounterMode(display=False) as counter:
            network(images)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return counter.get_total_flops()


class _Mixing(TorchDispatchMode):
    """Watches the aten operations of an evaluation.

    For every tensor that depends on the images it keeps which channel each element belongs to: an int64 tensor of the
    same dimensions, of size 1 along those in which the channel stays the same; None where that is not known.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.channels: MutableMapping[Tensor, Tensor | None] = WeakTensorKeyDictionary()
        self.channels[images] = None

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        arguments = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        dependent = [tensor for tensor in arguments if tensor in self.channels]
        if not dependent:
            return result
        kind = func._schema.name.removeprefix("aten::").removesuffix("_")
        self._see(kind, [tensor for tensor in arguments if tensor.ndim >= 2], dependent)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for output in outputs:
            self.channels[output] = self._channels_of(kind, output, dependent)
        if func.is_view or kind in MOVES:
            self._move(func, args, kwargs or {}, outputs)
        return result

    def _see(self, kind: str, arguments: list[Tensor], dependent: list[Tensor]) -> None:
        if "attention" in kind:
            self.seen.add("attention")
        if kind not in PRODUCTS:
            return
        first, second = arguments[-2:]
        both = [tensor for tensor in (first, second) if tensor in self.channels]
        if len(both) == 2:
            self.seen.add("attention")
        elif both and (channels := self.channels[both[0]]) is not None:
            summed, other = (-1, -2) if both[0] is first else (-2, -1)
            if channels.size(summed) == 1 < both[0].size(summed) and channels.size(other) > 1:
                self.seen.add("token mixing")

    def _channels_of(self, kind: str, output: Tensor, dependent: list[Tensor]) -> Tensor | None:
        """Return the channels of a result, where no elements are moved."""
        if kind == "convolution" or kind in PRODUCTS:
            dim = 1 if kind == "convolution" else output.ndim - 1
            sizes = [-1 if each == dim else 1 for each in range(output.ndim)]
            return torch.arange(output.size(dim)).view(sizes)
        for tensor in dependent:
            channels = self.channels[tensor]
            if channels is not None and _fits(channels, output):
                return channels
        return None

    def _move(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[Tensor]) -> None:
        """Move the channels of the operands as the operation moves their elements."""
        moving = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf in self.channels]
        if any(self.channels[tensor] is None for tensor in moving):
            return

        def on_channels(leaf: Any) -> Any:
            channels = self.channels.get(leaf) if isinstance(leaf, Tensor) else None
            return leaf if channels is None else channels.expand(leaf.shape).contiguous()

        moved = func(*tree_map(on_channels, args), **kwargs)
        for output, channels in zip(outputs, tree_leaves(moved), strict=True):
            self.channels[output] = _collapse(channels)


PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
MOVES = {"_unsafe_view", "clone", "_reshape_copy", "roll", "flip", "index", "index_select", "pixel_shuffle"}


def _fits(channels: Tensor, output: Tensor) -> bool:
    return channels.ndim == output.ndim and all(
        size in (1, whole) for size, whole in zip(channels.shape, output.shape, strict=True)
    )


def _collapse(channels: Tensor) -> Tensor:
    """Reduce to size 1 every dimension along which nothing changes."""
    for dim in range(channels.ndim if channels.numel() else 0):
        first = channels.narrow(dim, 0, 1)
        if bool((channels == first).all()):
            channels = first
    return channels
