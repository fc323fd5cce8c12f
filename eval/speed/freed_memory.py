"""What it saves that a training keeps the memory which its steps free, in place of giving it back to the system.

    python -m eval.speed.freed_memory [--rounds 3] [--results FILE]

Each training is a process of its own, with and without in turn: the trainings of `eval.speed.training`, one epoch to
warm up, then those that are counted. Pages are of 4 KiB, as the system clears them.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from eval.shared.photographs import write_photographs
from eval.shared.provenance import provenance_lines
from eval.shared.rounds import spread
from eval.speed.training import PICTURE, Ours, training_of
from ke_metric.training.allocator import keep_freed_memory

ROWS = {"emoji": "emoji_resnet18 on characters", "resnet18": "ResNet18, 224 px, batch of 32"}
FACTS = ("pages", "system", "user", "peak")
STEPS = {"emoji": 16, "resnet18": 6}
EPOCHS = 2


def main() -> None:
    """Print the table; or, as one of its processes, what one training gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each way (default: 3)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the table there as well")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(trained(*options.child)))
        return
    text = measured(options.rounds, STEPS)
    print(text)
    if options.results:
        options.results.write_text(f"# Memory that is kept between steps\n\n{text}\n", encoding="utf-8")


def measured(rounds: int, steps: Mapping[str, int]) -> str:
    """Return the table as Markdown, of epochs of so many steps."""
    lines = [
        *provenance_lines((), more=f"{rounds} rounds of {EPOCHS} epochs"),
        "",
        "| training | freed memory | pages cleared a step | system's ms a step | own ms a step | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    for row, name in ROWS.items():
        found: dict[str, list[dict[str, float]]] = {"given back": [], "kept": []}
        for _ in range(rounds):
            for way, facts in found.items():
                command = [sys.executable, "-m", "eval.speed.freed_memory", "--child", row, way, str(steps[row])]
                facts.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
        for way, facts in found.items():
            cells = [spread([each[fact] for each in facts], 0) for fact in FACTS]
            lines.append(f"| {name} | {way} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def trained(row: str, way: str, steps: str) -> dict[str, float]:
    """Train, and return what a step took: pages, milliseconds; and the process's largest memory in MB."""
    if way == "kept":
        assert keep_freed_memory(), "the environment, or the C library, keeps memory in its own way"
    with tempfile.TemporaryDirectory() as folder:
        if row == "emoji":
            some = ["data.benchmark=glyphs", f"data.train_classes={4 * int(steps)}", "batches.size=128"]
            ours = Ours(training_of("emoji_resnet18", [*some, "batches.images_per_class=4"]))
        else:
            write_photographs(Path(folder), classes=32, each=int(steps), size=PICTURE)
            some = ["data.benchmark=folder", f"data.root={folder}", "data.workers=0", "batches.size=32"]
            ours = Ours(training_of("cub_resnet18", [*some, "training.precision=auto"]))
        ours()
        before = resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(EPOCHS):
            ours()
        after = resource.getrusage(resource.RUSAGE_SELF)
    taken = EPOCHS * len(ours.training.epochs)
    return {
        "pages": (after.ru_minflt - before.ru_minflt) / taken,
        "system": 1000 * (after.ru_stime - before.ru_stime) / taken,
        "user": 1000 * (after.ru_utime - before.ru_utime) / taken,
        "peak": after.ru_maxrss / 1000,
    }


if __name__ == "__main__":
    main()
