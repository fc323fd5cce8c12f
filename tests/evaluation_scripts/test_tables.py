"""Every published cell has a recipe that is built and trains; a table shows what lineages hold, and nothing else."""

import math
import re
from pathlib import Path

import pytest
import torch
import yaml

from eval.shared.lineages import Results, folder_of
from eval.tables.cells import METHODS, PUBLISHED, ROOT, TABLES, Variant, overrides_of, recipe_of, variants
from eval.tables.run import Cell, cells_of, markdown, published_figures
from ke_metric import Lineage
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.cli.train import dry_run
from ke_metric.generation import Generation, Provenance, Scorecard
from ke_metric.recipe.file import load_recipe

FIGURES = yaml.safe_load((ROOT / "eval" / "tables" / "published.yaml").read_text(encoding="utf-8"))
# Small enough for a test: everything else is what the recipe says.
SMALL = (
    "data.image_size=32", "data.store_size=40", "data.workers=0", "data.verify_counts=false", "evaluation.resize=32",
    "batches.size=4",
)  # fmt: skip

NOTHING = Results(Path("there is no such file.jsonl"))


def unrun(table, benchmark, folder):
    """Return the cells of a table of which nothing was run."""
    cells = []
    for variant in variants(table, list(METHODS)):
        recipe = recipe_of(table, benchmark, variant, (), 0)
        cells += cells_of(table, benchmark, variant, [recipe], folder, plain=[recipe], results=NOTHING)
    assert not any(cell.scores for cell in cells)
    return cells


@pytest.mark.parametrize("network", ["resnet18", "densenet169"])
def test_every_published_classification_figure_stands_in_its_own_row(network, tmp_path):
    table = TABLES[network]
    figures = FIGURES[table.published]
    for benchmark in table.benchmarks:
        column = figures["columns"].index(benchmark)
        found = [(cell.label, cell.published[0]) for cell in unrun(table, benchmark, tmp_path)]
        published = [cell for cell in found if cell[1] is not None]
        assert len(published) == 13
        # BANs and KE have their generation in the name, the others have one only.
        assert dict(published) == {row: values[column] for row, values in figures["rows"].items()}


@pytest.mark.parametrize(("network", "start"), [("resnet50", 0), ("googlenet", 3)])
@pytest.mark.parametrize("benchmark", ["cub", "cars"])
def test_every_published_retrieval_figure_stands_in_its_own_row(benchmark, network, start, tmp_path):
    cells = unrun(TABLES[f"retrieval_{network}"], benchmark, tmp_path)
    found = {cell.label: cell.published for cell in cells if cell.published[0] is not None}
    name = {"cub": "CUB", "cars": "Cars"}[benchmark]
    rows = {"KE-N_1": f"{name} (N_1)", "KE-N_3": f"{name} + KE-N_3", "KE-N_10": f"{name} + KE-N_10"}
    expected = {label: tuple(FIGURES["retrieval"]["rows"][row][start : start + 3]) for label, row in rows.items()}
    assert found == {**expected, "recipe": expected["KE-N_1"]}


def test_published_figures_stand_where_they_belong():
    table, cskd = TABLES["resnet18"], Variant("cskd", "ke")
    assert published_figures(table, "flowers", cskd, 1) == (55.10,)
    assert published_figures(table, "dogs", cskd, 10) == (70.81,)
    assert published_figures(table, "mit67", Variant("adacos", "plain"), None) == (56.25,)
    assert published_figures(table, "mit67", Variant("smth", "llf"), 10) == (None,)
    assert published_figures(TABLES["retrieval_googlenet"], "cars", Variant("own", "ke"), 3) == (0.476, 24.98, 50.06)


def test_controls_have_the_epochs_of_all_generations():
    table = TABLES["resnet18"]
    epochs = {
        method: recipe_of(table, "cub", Variant("smth", method), ("generations=4", "training.epochs=9"), 0)
        for method in METHODS
    }
    assert {name: each.generations * each.training.epochs for name, each in epochs.items()} == {
        name: 9 if name == "plain" else 36 for name in METHODS
    }


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 12, 13, 90, 91, 2000])
def test_the_cycles_of_repr_fit_into_its_epochs(epochs):
    changes = ("generations=1", f"training.epochs={epochs}", "training.warmup_epochs=0")
    table, variant = TABLES["resnet18"], Variant("ce", "repr")
    if epochs < 4:
        with pytest.raises(Exception, match="so that the full network trains last"):
            recipe_of(table, "cub", variant, changes, 0)
        return
    recipe = recipe_of(table, "cub", variant, changes, 0)
    assert recipe.method.cycles * (recipe.method.full_epochs + recipe.method.dropped_epochs) < epochs


def variants_and_benchmarks():
    for name, table in TABLES.items():
        for benchmark in table.benchmarks:
            for variant in variants(table, list(METHODS)):
                # Emoji need files that are fetched.
                if benchmark != "emoji":
                    yield pytest.param(name, benchmark, variant, id=f"{name}-{benchmark}-{variant.key}")


@pytest.fixture
def root_of(tmp_path, request):
    """Write files in the layout of a benchmark, return their folder."""
    layouts = {"cars": ("A",)}
    return lambda name: request.getfixturevalue(f"make_{name}")(tmp_path / "data", *layouts.get(name, ()))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "benchmark", "variant"), list(variants_and_benchmarks()))
def test_every_row_is_built_and_trains(name, benchmark, variant, root_of):
    root = () if benchmark == "glyphs" else (f"data.root={root_of(benchmark)}",)
    recipe = recipe_of(TABLES[name], benchmark, variant, (*SMALL, *root), 0)
    assert math.isfinite(dry_run(recipe, device="cpu", folder=None).document["first_loss"])


@pytest.mark.parametrize(("loss", "method"), [*PUBLISHED, *(("smth", each) for each in ("llf", "dnr", "slim_alone"))])
def test_rows_are_built_and_train(loss, method, root_of):
    """Those of one benchmark; the slow tests have all."""
    changes = (*SMALL, f"data.root={root_of('flowers')}")
    recipe = recipe_of(TABLES["resnet18"], "flowers", Variant(loss, method), changes, 0)
    assert math.isfinite(dry_run(recipe, device="cpu", folder=None).document["first_loss"])


@pytest.fixture
def stored(tmp_path):
    """Store a lineage of a variant with the top-1 accuracies given."""

    def store(variant, top1, seed, changes=("generations=3", "training.epochs=2", "training.warmup_epochs=0")):
        recipe = recipe_of(TABLES["small"], "glyphs", variant, changes, seed)
        folder = folder_of(recipe, tmp_path)
        lineage = Lineage.create(folder, recipe, text="x", command="ke-metric train x.yaml")
        for number, value in enumerate(top1, start=1):
            slim = {"top1": value / 2} if recipe.has_slim else None
            card = Scorecard({"top1": value}, slim, 9, 3 if slim else None)
            provenance = Provenance("x", None if number == 1 else "x", seed, {}, {}, {})
            lineage.append(Generation(number, {"w": torch.zeros(1)}, {}, "{}", {}, card, (), {}, provenance))
        return recipe

    return store


def test_rows_of_lineages(stored, tmp_path):
    variant = Variant("smth", "ke")
    recipes = [stored(variant, [0.5, 0.6, 0.7], 0), stored(variant, [0.3, 0.5, 0.6], 1)]
    cells = cells_of(TABLES["small"], "glyphs", variant, recipes, tmp_path, plain=recipes, results=NOTHING)
    assert [(cell.label, cell.network, cell.epochs) for cell in cells] == [
        ("Smth + KE-N_1", "dense", 2), ("Smth + KE-N_1", "slim", 2),
        ("Smth + KE-N_3", "dense", 6), ("Smth + KE-N_3", "slim", 6),
    ]  # fmt: skip
    assert cells[2].images == 6 * len(load_benchmark(recipes[0].data, "classification").train)
    lines = markdown(cells, ("top1",)).splitlines()
    assert lines[2].split(" | ")[:6] == ["| Smth + KE-N_1", "dense", "2", "", "40.0 ± 14.1", ""]
    assert lines[4].split(" | ")[:6] == ["| Smth + KE-N_3", "dense", "2", "", "65.0 ± 7.1", "+25.0 ± 7.1"]


@pytest.mark.parametrize(("method", "network", "base"), [("long", "dense", 0.5), ("slim_alone", "slim", 0.25)])
def test_single_trainings_gain_over_the_plain_one(method, network, base, stored, tmp_path):
    plain, variant = stored(Variant("smth", "ke"), [0.5, 0.6, 0.7], 0), Variant("smth", method)
    recipe = stored(variant, [0.8], 0)
    cell = cells_of(TABLES["small"], "glyphs", variant, [recipe], tmp_path, plain=[plain], results=NOTHING)[0]
    assert (cell.network, cell.first) == (network, {0: {"top1": base}})


def test_what_was_not_run_is_blank(stored, tmp_path):
    variant = Variant("smth", "ke")
    recipes = [stored(variant, [0.5], 0), recipe_of(TABLES["small"], "glyphs", variant, ("generations=3",), 1)]
    cells = cells_of(TABLES["small"], "glyphs", variant, recipes[:1], tmp_path, plain=recipes, results=NOTHING)
    assert [len(cell.scores) for cell in cells] == [1, 1, 0, 0]
    assert re.search(r"\| Smth \+ KE-N_3 \| dense \|  \|  \|  \|  \| 6 \|", markdown(cells, ("top1",)))


def test_lineages_of_another_recipe_are_not_shown(stored, tmp_path):
    variant = Variant("smth", "ke")
    stored(variant, [0.5], 0)
    other = recipe_of(TABLES["small"], "glyphs", variant, ("generations=3", "training.epochs=5"), 0)
    with pytest.raises(Exception, match=r"another recipe: training\.epochs"):
        cells_of(TABLES["small"], "glyphs", variant, [other], tmp_path, plain=[other], results=NOTHING)


def test_a_cell_without_scores_has_no_numbers():
    cell = Cell("row", "dense", (50.97,), {}, {}, 200, None)
    assert markdown([cell], ("top1",)).splitlines()[2] == "| row | dense |  | 50.97 |  |  | 200 |  |"


def test_shared_changes_reach_every_row():
    table = TABLES["resnet18"]
    for method in METHODS:
        overrides = overrides_of(table, "cub", Variant("smth", method), ("split.rate=0.3",))
        assert load_recipe(ROOT / "recipes" / "cub_resnet18.yaml", overrides).split.rate == 0.3
