"""Make the table of a folder that `eval.shared.collect` filled: mean and standard deviation over seeds, as Markdown.

    python -m eval.emoji_resnet18.run eval/emoji_resnet18/results

A row per method and generation (first, every third, last); the rows are ordered as they were trained, not by who won.
"""

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COLUMNS = (("recall@1", 100, 1), ("recall@4", 100, 1), ("map@r", 100, 1), ("nmi", 1, 3))


def main() -> None:
    """Print the table of the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    documents = [json.loads(path.read_text()) for path in sorted(parser.parse_args().results.glob("*.json"))]
    if not documents:
        parser.error("no results there")
    print(table(documents))
    print()
    print("\n".join(facts(documents)))


def table(documents: list[dict[str, Any]]) -> str:
    """Return the Markdown table of collected lineages."""
    names = [name for name, _, _ in COLUMNS]
    lines = [
        f"| method | generation | epochs so far | network | parameters | seeds | {' | '.join(names)} |",
        f"|---|---|---|---|---|---|{'---|' * len(names)}",
    ]
    for method in dict.fromkeys(document["method"] for document in documents):
        same = [document for document in documents if document["method"] == method]
        require_one_recipe(same)
        for number in shown(min(len(document["generations"]) for document in same)):
            lines += rows(method, number, same)
    return "\n".join(lines)


def shown(count: int) -> list[int]:
    """Return the generations that get a row: first, every third, last."""
    return sorted({1, *range(1, count + 1, 3), count})


def rows(method: str, number: int, documents: list[dict[str, Any]]) -> Iterable[str]:
    """Yield the dense and the slim row of one generation over all seeds."""
    generations = [document["generations"][number - 1] for document in documents]
    epochs = number * documents[0]["recipe"]["training"]["epochs"]
    for network in ("dense", "slim"):
        if network in generations[0]:
            cells = [
                spread([generation[network][name] for generation in generations], scale, digits)
                for name, scale, digits in COLUMNS
            ]
            size = f"{generations[0][f'{network}_parameters']:,}"
            yield f"| {method} | {number} | {epochs} | {network} | {size} | {len(documents)} | {' | '.join(cells)} |"


def spread(values: list[float], scale: float, digits: int) -> str:
    """Return mean and standard deviation, or the one value there is."""
    mean = f"{scale * statistics.mean(values):.{digits}f}"
    return f"{mean} ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def require_one_recipe(documents: list[dict[str, Any]]) -> None:
    """Make sure that what is averaged differs in the seed alone."""
    first, *others = [{**document["recipe"], "seed": None} for document in documents]
    if any(other != first for other in others):
        raise SystemExit(f"{documents[0]['method']}: the recipes differ in more than the seed")


def facts(documents: list[dict[str, Any]]) -> Iterable[str]:
    """Yield what the numbers depend on: seeds, hardware, versions, commits, time."""
    for document in documents:
        generations = document["generations"]
        minutes = sum(sum(generation["seconds"].values()) for generation in generations) / 60
        places = {place(generation) for generation in generations}
        where = "; ".join(sorted(places))
        yield f"- {document['method']}, seed {document['recipe']['seed']}: {minutes:.0f} minutes; {where}"


def place(generation: dict[str, Any]) -> str:
    """Return where a generation was trained, in words."""
    training, environment = generation["training"], generation["environment"]
    versions = environment["versions"]
    named = [
        f"{name} {versions[name]}" for name in ("torch", "torchvision", "faiss-cpu", "faiss-gpu") if name in versions
    ]
    changed = " (changed)" if environment.get("commit_changed") else ""
    return (
        f"{training['threads']} thread(s) of {environment['processor']}, {training['device_name']}, "
        f"{training['precision']}, {', '.join(named)}, commit {environment.get('commit', 'unknown')[:12]}{changed}"
    )


if __name__ == "__main__":
    main()
