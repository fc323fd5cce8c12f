"""The control a slim network needs: its architecture trained alone, from random weights, for all epochs of a lineage.

    python eval/slim_alone.py recipes/emoji_resnet18.yaml --seed 0 -o eval/results/emoji_resnet18

One training of generations x epochs epochs on the recipe's data, batches and loss; written beside the collected
lineages as slim_alone-s<seed>.json. It starts from the slim part of the dense network's random weights.
"""

import argparse
import json
from pathlib import Path

from ke_metric import extract_slim, load_recipe
from ke_metric.data.benchmarks import load_benchmark
from ke_metric.data.pictures import Pictures
from ke_metric.environment import describe_environment
from ke_metric.evolution import Nursery
from ke_metric.generation import TrainingState
from ke_metric.scoring import Scorer, count_parameters
from ke_metric.training.engine import Engine
from ke_metric.training.watch import Watch


class Lines(Watch):
    """Prints a line per epoch."""

    def epoch_done(self, state: TrainingState) -> None:
        """Print the epoch's record."""
        print(json.dumps(state.training_log[-1]), flush=True)


def main() -> None:
    """Train and score the slim architecture alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    lineage = load_recipe(options.recipe, seed=options.seed)
    epochs = lineage.generations * lineage.training.epochs
    recipe = load_recipe(options.recipe, [f"training.epochs={epochs}", "generations=1"], seed=options.seed)
    pictures = Pictures.decode(load_benchmark(recipe.data), recipe.data.store_size)
    engine = Engine(recipe.training.precision)
    nursery = Nursery(recipe, pictures, engine)
    dense, plan = nursery.build_child(1, None)
    slim = extract_slim(dense, plan)
    trained = nursery.prepare(slim, nursery.build_loss(1, None), 1).train(Lines())
    scores = Scorer(pictures, recipe, engine).score(slim)
    generation = {
        "generation": 1,
        "slim": dict(scores),
        "slim_parameters": count_parameters(slim),
        "seconds": {"training": round(trained.seconds, 1)},
        "training": engine.describe(),
        "environment": describe_environment(),
    }
    document = {
        "method": "slim_alone",
        "recipe": recipe.model_dump(mode="json"),
        "generations": [generation],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"slim_alone-s{options.seed}.json"
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
