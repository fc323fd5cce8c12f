"""The parts of the record that need no training: recipes, masks, options."""

from __future__ import annotations

import copy
import hashlib
import json

import click
import numpy as np
import torch
import torchvision
from golden_world import PROJECT, bits, call, digest

from ke_metric import extract_slim, load_recipe, plan_split, redraw_reset
from ke_metric.cli import main

# Name to arguments of torchvision; one of every way in which channels meet.
NETWORKS = {
    "resnet18": {},
    "resnet50": {},
    "googlenet": {"aux_logits": False, "init_weights": False},
    "densenet121": {},
    "mobilenet_v2": {},
    "efficientnet_b0": {},
    "vision_transformer": {},
    "swin_t": {},
    "convnext_tiny": {},
    "regnet_y_400mf": {},
    "shufflenet_v2_x1_0": {},
    "squeezenet1_1": {},
}
SINGLE_WEIGHTS = ("resnet18", "mobilenet_v2", "vision_transformer")
CUT = ("resnet18", "mobilenet_v2", "vision_transformer")
SMALLEST = "vision_transformer"
RATES = {"resnet18": (0.3, 0.8)}


def recipes() -> dict:
    """Every shipped recipe: its digest and all of its fields."""
    found = {}
    for path in sorted((PROJECT / "recipes").glob("*.yaml")):
        recipe = load_recipe(path)
        found[path.name] = {
            "digest": recipe.digest,
            "fields": recipe.model_dump(mode="json"),
            "yaml": digest(recipe.to_yaml()),
            "other_seed": load_recipe(path, ["split.rate=0.8"], seed=7).digest,
        }
    return found


def masks() -> dict:
    """What is fit of many networks, and what redrawing and cutting make of some."""
    images = torch.from_numpy(np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32))
    return {name: _masks_of(name, arguments, images) for name, arguments in NETWORKS.items()}


def _masks_of(name: str, arguments: dict, images: torch.Tensor) -> dict:
    network = _network(name, arguments)
    plan = plan_split(network, images, rate=0.5)
    found = {"kels": _plan_facts(plan)}
    for rate in RATES.get(name, ()):
        found[f"kels {rate}"] = _plan_facts(plan_split(network, images, rate=rate))
        found[f"kels {rate} by 8"] = _plan_facts(plan_split(network, images, rate=rate, channel_multiple=8))
    if name in SINGLE_WEIGHTS:
        found["wels"] = _plan_facts(plan_split(network, images, rate=0.5, kind="wels", seed=3))
    if name in CUT:
        told = redraw_reset(network, plan, generator=torch.Generator().manual_seed(5))
        found["redrawn"] = {"official": _redrawn(network), "told": str(told)}
        for init in ("zero", "same_as_init", "orthogonal") if name == SMALLEST else ():
            other = copy.deepcopy(network)
            redraw_reset(other, plan, generator=torch.Generator().manual_seed(6), init=init)
            found["redrawn"][init] = _redrawn(other)
        slim = extract_slim(network, plan)
        found["slim"] = {"redrawn": _redrawn(slim), "modules": str(slim) if name == SMALLEST else digest(str(slim))}
        found["slim"]["of known weights"] = digest(_state(extract_slim(_network(name, arguments), plan)))
    return found


def _network(name: str, arguments: dict) -> torch.nn.Module:
    """Build a network whose weights are those of every version of torch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "vision_transformer":
            sizes = {"image_size": 64, "patch_size": 16, "hidden_dim": 32, "mlp_dim": 48}
            network = torchvision.models.VisionTransformer(num_layers=2, num_heads=4, num_classes=7, **sizes)
        else:
            network = torchvision.models.get_model(name, weights=None, num_classes=7, **arguments)
    stream = np.random.default_rng(1)
    with torch.no_grad():
        for parameter in network.parameters():
            numbers = stream.random(parameter.shape, dtype=np.float32)
            parameter.copy_(torch.from_numpy(np.asarray((numbers - 0.5) * 0.2)))
    return network.eval()


def _plan_facts(plan: object) -> dict:
    sums = {name: int(mask.sum()) for name, mask in plan.masks.items()}
    packed = hashlib.sha256()
    for name, mask in plan.masks.items():
        packed.update(name.encode() + np.packbits(mask.numpy()).tobytes())
    return {
        "masks": packed.hexdigest()[:32],
        "weights": len(sums),
        "fit": sum(sums.values()),
        "json": digest(plan.to_json()),
        "text": digest(str(plan)),
        "first": json.loads(plan.to_json()) if len(plan.to_json()) < 3000 else dict(list(sums.items())[:5]),
        "norms": str(plan.norms)[:400],
        "kept_whole": str(plan.kept_whole)[:400],
    }


def _state(network: torch.nn.Module) -> bytes:
    whole = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        whole.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + tensor.numpy().tobytes())
    return whole.digest()


def _redrawn(network: torch.nn.Module) -> dict:
    """Return digest and sums of random weights, into whose range a machine brings them with its own last bits."""
    sums = [float(parameter.detach().double().abs().sum()) for parameter in network.parameters()]
    return {"all": bits(_state(network)), "first": sums[:3], "sum": sum(sums)}


def options() -> dict:
    """Every command: its help, and its arguments and options as click has them."""
    return dict(_options_of(main, ()))


def _options_of(command: click.Command, words: tuple[str, ...]) -> list[tuple[str, dict]]:
    told = call(*words, "--help")
    parameters = {parameter.name: _parameter(parameter) for parameter in command.params}
    found = [(" ".join(("ke-metric", *words)), {"help": told["table"], "parameters": parameters})]
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        found += _options_of(inner, (*words, name))
    return found


def _parameter(parameter: click.Parameter) -> dict:
    facts = {
        "words": [*parameter.opts, *parameter.secondary_opts],
        "required": parameter.required,
        "many": parameter.multiple or parameter.nargs != 1,
        "help": getattr(parameter, "help", None),
        "metavar": parameter.metavar,
        "flag": getattr(parameter, "is_flag", False),
    }
    choices = getattr(parameter.type, "choices", None)
    limits = [getattr(parameter.type, name, None) for name in ("min", "max")]
    return facts | {"choices": list(choices) if choices else None, "limits": limits}
