"""Which precision `training.precision: auto` should choose: steps in bf16 beside fp32, network by network.

    python -m eval.speed.precision [--rounds 5] [--networks resnet18,timm/efficientnet_lite0,...] [--results FILE]

Forward and backward pass of the network that a recipe builds, in train mode and channels-last, on a batch of drawn
numbers in memory.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from eval.shared.provenance import provenance_lines
from eval.shared.rounds import in_turn, ratios, spread
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.recipe.schema import Recipe
from ke_metric.training.engine import Engine

PACKAGES = ("torchvision", "timm")
NETWORKS = (
    "resnet18",
    "timm/test_resnet",
    "densenet169",
    "timm/convnext_atto",
    "timm/efficientnet_lite0",
    "mobilenet_v3_small",
)
HEAD = "| network | fp32, images per processor second | bf16 over fp32, processor time | wall |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="backbones, with commas")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the table there as well")
    options = parser.parse_args()
    lines = [*provenance_lines(PACKAGES, more=f"{options.rounds} rounds; batches of 32, 64 pixels"), ""]
    lines += [HEAD, "|---|---|---|---|", *(row(name, options.rounds) for name in options.networks.split(","))]
    print("\n".join(lines))
    if options.results:
        options.results.write_text("\n".join(["# bf16 beside fp32", "", *lines, ""]), encoding="utf-8")


def row(name: str, rounds: int, *, batch: int = 32, size: int = 64) -> str:
    """Return the row of a backbone."""
    recipe = Recipe(name="x", network={"backbone": name}, data={"image_size": size})
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    ways = {precision: _steps(recipe, Engine(precision, "cpu"), images) for precision in ("fp32", "bf16")}
    for way in ways.values():
        way()
    found = in_turn(ways, rounds)
    kinds = ("cpu", "wall")
    beside = [
        spread(ratios(*([getattr(time, kind) for time in found[way]] for way in ("bf16", "fp32")))) for kind in kinds
    ]
    speed = batch / statistics.median(time.cpu for time in found["fp32"])
    return f"| {name} | {speed:.0f} | {' | '.join(beside)} |"


def _steps(recipe: Recipe, engine: Engine, images: torch.Tensor) -> Callable[[], None]:
    network = engine.place(LineageNetworks(recipe, 8).build(1), channels_last=True).train()

    def step() -> None:
        with engine.autocast():
            outputs = network(images)
        outputs.float().square().sum().backward()

    return step


if __name__ == "__main__":
    main()
