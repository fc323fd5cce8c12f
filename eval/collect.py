"""Copy what a claim rests on out of lineages: recipe, scorecards, hardware, versions, commit; no weights.

    python eval/collect.py eval/results/emoji_resnet18 ke=lineages/emoji_resnet18-s0 long=lineages/emoji_long-s0 ...

Every lineage goes to OUTPUT/<method>-s<seed>.json. `eval/table.py` makes a table of such a folder.
"""

import argparse
import json
from pathlib import Path

from ke_metric import Lineage
from ke_metric.report import scorecard_document


def main() -> None:
    """Collect the lineages named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to write into")
    parser.add_argument("lineages", nargs="+", metavar="METHOD=LINEAGE", help="finished lineages and what they show")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for named in options.lineages:
        method, separator, folder = named.partition("=")
        if not separator:
            parser.error(f"{named!r} is not METHOD=LINEAGE")
        document = collect(method, Lineage(folder))
        path = options.output / f"{method}-s{document['recipe']['seed']}.json"
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        print(path)


def collect(method: str, lineage: Lineage) -> dict[str, object]:
    """Return everything about a finished lineage but its weights."""
    facts = lineage.facts
    if facts["status"] != "finished":
        raise SystemExit(f"{lineage.folder}: {facts['status']}, not finished")
    generations = []
    for number in lineage.numbers:
        folder = lineage.generation_folder(number)
        provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        card = lineage.scorecard(number)
        generations.append(
            scorecard_document(number, card)
            | {"dense_parameters": card.dense_parameters, "slim_parameters": card.slim_parameters}
            | {name: provenance[name] for name in ("seconds", "training", "environment")}
        )
    return {
        "method": method,
        "lineage": facts,
        "recipe": lineage.recipe.model_dump(mode="json"),
        "generations": generations,
    }


if __name__ == "__main__":
    main()
