"""Copy what a claim rests on out of lineages: recipe, scorecards, hardware, versions, commit; no weights.

    python -m eval.shared.collect eval/emoji_resnet18/results ke=lineages/emoji_resnet18-s0 ...
    python -m eval.shared.collect tables.jsonl lineages/tables/*

Every lineage goes to OUTPUT/<method>-s<seed>.json, or to a line of OUTPUT where that ends in .jsonl. What is not
named is named after its recipe. `eval.emoji_resnet18.run` makes a table of such a folder.
"""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from ke_metric import Lineage
from ke_metric.generation import Scorecard
from ke_metric.lineage.report import scorecard_document


def main() -> None:
    """Collect the lineages named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to write into, or a .jsonl file")
    parser.add_argument("lineages", nargs="+", metavar="[METHOD=]LINEAGE", help="finished lineages, what they show")
    options = parser.parse_args()
    documents = []
    for named in options.lineages:
        method, _, folder = ("", "", named) if Path(named).exists() else named.partition("=")
        lineage = Lineage(folder)
        documents.append(collect(method or lineage.recipe.name, lineage))
    names = [f"{document['method']}-s{document['recipe']['seed']}" for document in documents]
    if len(set(names)) < len(names):
        raise SystemExit(f"{max(names, key=names.count)} is there twice; name one of them: METHOD=LINEAGE")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.output.suffix == ".jsonl":
        lines = [json.dumps(document, allow_nan=False) for document in documents]
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    options.output.mkdir(exist_ok=True)
    for name, document in zip(names, documents, strict=True):
        path = options.output / f"{name}.json"
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def collect(method: str, lineage: Lineage) -> dict[str, Any]:
    """Return everything about a finished lineage but its weights.

    Raises:
        SystemExit: It is not finished.
    """
    facts = lineage.facts
    if facts["status"] != "finished":
        raise SystemExit(f"{lineage.folder}: {facts['status']}, not finished")
    generations = []
    for number in lineage.numbers:
        folder = lineage.generation_folder(number)
        provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        card = lineage.scorecard(number)
        generations.append(
            # Not what every class was taken for, which would be most of the file.
            {name: value for name, value in scorecard_document(number, card).items() if name != "classes"}
            | {"dense_parameters": card.dense_parameters, "slim_parameters": card.slim_parameters}
            | (
                {"narrow_parameters": {rate: each.parameters for rate, each in card.narrow.items()}}
                if card.narrow
                else {}
            )
            | {name: provenance[name] for name in ("seconds", "training", "environment")}
        )
    return {
        "method": method,
        "lineage": facts | {"command": portable(str(facts["command"]))},
        "recipe": lineage.recipe.model_dump(mode="json"),
        "generations": generations,
    }


def _narrow_parameters(card: Scorecard) -> dict[str, Any]:
    narrow = {rate: found.parameters for rate, found in (card.narrow or {}).items()}
    return {"narrow_parameters": narrow} if narrow else {}


def portable(command: str) -> str:
    """Return a command without what only one machine has: of absolute paths the last part."""
    return shlex.join(Path(word).name if Path(word).is_absolute() else word for word in shlex.split(command))


if __name__ == "__main__":
    main()
