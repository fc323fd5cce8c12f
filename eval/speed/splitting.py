"""Seconds of splitting a network, of redrawing its reset hypothesis and of cutting its slim network out.

    python -m eval.speed.splitting [--rounds 5] [--results FILE]

Beside one pass forward and backward of a single picture of 224 x 224 pixels through the same network, in turn.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
import torchvision

from eval.shared.provenance import provenance_lines
from eval.shared.rounds import in_turn, ratios, spread
from ke_metric import extract_slim, plan_split, redraw_reset

NETWORKS = ("resnet50", "googlenet")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the table there as well")
    options = parser.parse_args()
    lines = [
        *provenance_lines(["torchvision"], more=f"{options.rounds} rounds"),
        "",
        "| network, rate 0.5 | what | seconds | beside a pass, wall | of processor time |",
        "|---|---|---|---|---|",
        *(row for name in NETWORKS for row in rows(name, options.rounds)),
    ]
    print("\n".join(lines))
    if options.results:
        options.results.write_text("\n".join(["# Splitting", "", *lines, ""]), encoding="utf-8")


def rows(name: str, rounds: int) -> Iterator[str]:
    """Yield the rows of a torchvision network."""
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, weights=None, **options).eval()
    example, generator = torch.zeros(1, 3, 224, 224), torch.Generator().manual_seed(0)
    plan = plan_split(network, example, rate=0.5)
    ways = {
        "a pass": lambda: network(example).sum().backward(),
        "plan_split": lambda: plan_split(network, example, rate=0.5),
        "redraw_reset": lambda: redraw_reset(network, plan, generator=generator),
        "extract_slim": lambda: extract_slim(network, plan),
    }
    found = in_turn(ways, rounds)
    wall = {way: [time.wall for time in times] for way, times in found.items()}
    cpu = {way: [time.cpu for time in times] for way, times in found.items()}
    for way in list(ways)[1:]:
        beside = (spread(ratios(times[way], times["a pass"])) for times in (wall, cpu))
        yield f"| {name} | {way} | {statistics.median(wall[way]):.3f} | {' | '.join(beside)} |"


if __name__ == "__main__":
    main()
