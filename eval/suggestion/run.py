"""What recipes give that `ke-metric recipe` proposes, beside the README's hand-written one of as many epochs.

    python -m eval.suggestion.run --seeds 0,1,2
    python -m eval.suggestion.run --seeds 0,1,2 --show

Two folders that are none of the shipped benchmarks (`folders.py`). For each a recipe is proposed that fits into a
minute, and one into three; the hand-written one has the epochs and generations of the first. At 32 pixels it sees
what the proposed one sees; as it is written, 64 pixels, only signs are trained with it. Missing lineages are trained;
the table goes into results.md, with the seeds that are there.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from eval.shared.lineages import train
from eval.shared.provenance import provenance_lines
from eval.suggestion.folders import write_digits, write_signs
from ke_metric import Lineage
from ke_metric.lineage.comparison import mean_and_spread
from ke_metric.lineage.store import holds_lineage
from ke_metric.recipe.file import load_recipe
from ke_metric.suggestion.suggest import suggest_recipe

HERE = Path(__file__).parent
BY_HAND = HERE / "by_hand.yaml"
FOLDERS: dict[str, Callable[[Path], Path]] = {"digits": write_digits, "signs": write_signs}
TIMES = {"one_minute": 60.0, "three_minutes": 180.0}
SMALL = ("data.image_size=32", "data.store_size=36", "evaluation.resize=36")
CLASSES = ("task=classification", "loss.name=CrossEntropyLoss", "batches.sampler=shuffled")
HAND_WRITTEN = {
    "digits": {"by_hand": (*SMALL, *CLASSES)},
    "signs": {"by_hand": SMALL, "by_hand_64": ()},
}
"""Folder to what is changed of the hand-written recipe: for the task, and for the size of the pictures."""
HEADERS = ("folder", "recipe", "network", "pixels", "epochs", "untrained", "dense", "slim", "seconds", "seeds")


def main() -> None:
    """Train what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="0,1,2 when left out")
    parser.add_argument("--lineages", type=Path, default=Path("lineages/suggestion"), help="where lineages are")
    parser.add_argument("--show", action="store_true", help="train nothing")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if not options.show:
        for folder, write in FOLDERS.items():
            _train_all(folder, write, seeds, options.lineages)
    trained = f"- trained at: {', '.join(_commits(options.lineages))}"
    lines = [*provenance_lines(["timm"]), trained, "", *_table(seeds, options.lineages)]
    (HERE / "results.md").write_text(
        "# Proposed recipes beside a hand-written one\n\n" + "\n".join(lines) + "\n", encoding="utf-8"
    )


def _train_all(folder: str, write: Callable[[Path], Path], seeds: Sequence[int], lineages: Path) -> None:
    pictures = lineages / "pictures" / folder
    if not pictures.exists():
        write(pictures)
    files = {name: lineages / f"{folder}_{name}.yaml" for name in TIMES}
    for name, file in files.items():
        if not file.exists():
            file.write_text(suggest_recipe(pictures, seconds=TIMES[name]).text, encoding="utf-8")
    epochs = yaml.safe_load(files["one_minute"].read_text(encoding="utf-8"))["training"]["epochs"]
    for seed in seeds:
        for file in files.values():
            train(load_recipe(file, seed=seed), file, lineages)
        for name, changes in HAND_WRITTEN[folder].items():
            settings = [*changes, f"name={folder}_{name}", f"data.root={pictures}", f"training.epochs={epochs}"]
            train(load_recipe(BY_HAND, settings, seed=seed), BY_HAND, lineages)


def _commits(lineages: Path) -> list[str]:
    """Return the commits that the lineages were trained at, some of them changed since."""
    facts = [Lineage(path).facts for path in sorted(lineages.iterdir()) if holds_lineage(path)]
    return sorted(
        {f"{each['commit'][:7]}{', changed' * each['commit_changed']}" for each in facts if "commit" in each}
    )


def _table(seeds: Sequence[int], lineages: Path) -> list[str]:
    """Return the rows: the last generation's Recall@1 or top-1 in percent, mean and spread over seeds."""
    rows = ["| " + " | ".join(HEADERS) + " |", "|" + "---|" * len(HEADERS)]
    for folder in FOLDERS:
        for name in (*TIMES, *HAND_WRITTEN[folder]):
            paths = [lineages / f"{folder}_{name}-s{seed}" for seed in seeds]
            found = [Lineage(path) for path in paths if holds_lineage(path)]
            finished = [lineage for lineage in found if lineage.facts["status"] == "finished"]
            if finished:
                rows.append(_row(folder, name, finished))
    return rows


def _row(folder: str, name: str, lineages: Sequence[Lineage]) -> str:
    recipe, score = lineages[0].recipe, lineages[0].decisive_score
    last = [lineage.scorecard(lineage.numbers[-1]) for lineage in lineages]
    seconds = [sum(sum(_seconds(lineage, number)) for number in lineage.numbers) for lineage in lineages]
    cells = (
        folder,
        name.replace("_", " "),
        recipe.network.backbone,
        str(recipe.data.image_size),
        f"{recipe.generations} x {recipe.training.epochs}",
        _shown([lineage.untrained.dense[score] for lineage in lineages if lineage.untrained]),
        _shown([card.dense[score] for card in last]),
        _shown([card.slim[score] for card in last if card.slim]),
        f"{mean_and_spread(seconds)[0]:.0f}",
        ", ".join(str(lineage.recipe.seed) for lineage in lineages),
    )
    return "| " + " | ".join(cells) + " |"


def _seconds(lineage: Lineage, number: int) -> tuple[float, float]:
    """Return the seconds of training and of scoring a generation."""
    facts = yaml.safe_load((lineage.generation_folder(number) / "provenance.json").read_text(encoding="utf-8"))
    return facts["seconds"]["training"], facts["seconds"]["scoring"]


def _shown(values: Sequence[float]) -> str:
    mean, spread = mean_and_spread([100 * value for value in values])
    return f"{mean:.1f}" if spread is None else f"{mean:.1f} ± {spread:.1f}"


if __name__ == "__main__":
    main()
