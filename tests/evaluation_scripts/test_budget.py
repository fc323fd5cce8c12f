"""Strategies at one budget: equal epochs, equal arithmetic, and a table that holds what was run."""

import re

import pytest
import torch
import yaml
from torch import nn

from eval.budget import run as budget
from eval.budget.averages import Ensemble, mean_of_weights, score_average
from eval.budget.operations import training_pictures
from eval.budget.run import ROOT, counted, equal_compute, markdown, read_grid, recipes_of
from eval.budget.run import grow as grow_and_keep
from eval.shared import lineages
from eval.shared.lineages import Results
from ke_metric import Lineage
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.cli.train import train_lineage
from ke_metric.generation import Generation, Provenance, Scorecard
from ke_metric.images.image_set import without_training
from ke_metric.images.pixel_store import Pictures
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.recipe.file import load_recipe

SHIPPED = sorted((ROOT / "eval" / "budget" / "grids").glob("*.yaml"))
GRID = {
    "recipe": "recipes/glyphs_resnet18.yaml", "epochs": 12, "reference": "plain", "slim_reference": "alone",
    "strategies": {
        "plain": {"generations": 1},
        "alone": {"generations": 1, "set": ["method.name=slim_alone"]},
        "ke": {"generations": 3, "set": ["split.rate=0.8"]},
    },
}  # fmt: skip


@pytest.fixture
def grid_of(tmp_path):
    def write(**changes):
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump({**GRID, **changes}), encoding="utf-8")
        return read_grid(path)

    return write


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_strategy_of_a_shipped_grid_is_a_recipe_of_equal_epochs(path):
    grid = read_grid(path)
    assert len(grid.strategies) >= 8
    for found in recipes_of(grid, path.stem, [0, 1]).values():
        assert [recipe.seed for recipe in found] == [0, 1]
        assert {recipe.generations * recipe.training.epochs for recipe in found} == {grid.epochs}


def test_a_strategy_is_the_recipe_with_its_changes(grid_of):
    (recipe,) = recipes_of(grid_of(set=["data.test_classes=20"]), "g", [4])["ke"]
    assert (recipe.name, recipe.seed, recipe.split.rate) == ("g-ke-12", 4, 0.8)
    assert (recipe.generations, recipe.training.epochs, recipe.data.test_classes) == (3, 4, 20)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"reference": "plian"}, "reference = 'plian' is no strategy"),
        ({"slim_reference": "x"}, "slim_reference = 'x' is no strategy"),
        ({"epoch": 3}, "epoch is unknown"),
        ({"strategies": {"plain": {"set": []}}}, r"strategies\.plain has \['set'\]"),
        ({"beside": {"ek": "plain"}}, "beside has 'ek', which is no strategy"),
        ({"beside": {"ke": "plian"}}, "beside has 'plian', which is no strategy"),
        ({"averages": {"x": {"of": "ek", "average": "outputs"}}}, r"averages\.x is of 'ek'.*one of alone, ke, plain"),
        ({"averages": {"x": {"of": "ke", "average": "mean"}}}, "average 'mean'; .*outputs or weights"),
        (
            {
                "strategies": {**GRID["strategies"], "cut": {"generations": 2, "set": ["method.slim_last=true"]}},
                "averages": {"x": {"of": "cut", "average": "weights"}},
            },
            "but for slim_last",
        ),
    ],
)
def test_files_that_are_no_grids(changes, told, grid_of):
    with pytest.raises(SystemExit, match=told):
        grid_of(**changes)


def test_a_strategy_cannot_change_the_budget(grid_of):
    with pytest.raises(SystemExit, match=r"plain: its set changes generations or training\.epochs"):
        recipes_of(
            grid_of(strategies={**GRID["strategies"], "plain": {"generations": 1, "set": ["generations=2"]}}),
            "g",
            [0],
        )


def test_epochs_that_do_not_divide(grid_of):
    with pytest.raises(SystemExit, match="ke: 13 epochs do not divide among 3 generations"):
        recipes_of(grid_of(epochs=13), "g", [0])


def test_equal_compute_spends_the_arithmetic_of_the_reference(grid_of):
    """12 epochs of 2: 24 buys 24 epochs of 1, and three generations of 3 at 2.7."""
    grid = grid_of()
    assert equal_compute(grid, {"plain": 2.0, "alone": 1.0, "ke": 2.7}) == {"plain": 12, "alone": 24, "ke": 9}
    # A twentieth more or less is equal, and the lineages that are there serve again.
    assert equal_compute(grid, {"plain": 2.0, "alone": 1.91, "ke": 2.09}) == {"plain": 12, "alone": 12, "ke": 12}
    least = equal_compute(grid, {"plain": 2.0, "alone": 1.0, "ke": 1000.0})
    # One epoch more than the warm-up of one.
    assert least["ke"] == 6
    assert recipes_of(grid, "g", [0], least)["ke"][0].training.epochs == 2


@pytest.fixture
def grow(tmp_path):
    def grown(recipe, recalls, seconds=30.0, *, size=9, again=False):
        folder = tmp_path / f"{recipe.name}-s{recipe.seed}"
        lineage = Lineage.create(folder, recipe, text="x", command="ke-metric", overwrite=again)
        for number, recall in enumerate(recalls, start=1):
            slim = {"recall@1": recall / 2} if recipe.has_slim else None
            card = Scorecard({"recall@1": recall}, slim, size, 3 if slim else None)
            provenance = Provenance("x", None if number == 1 else "x", recipe.seed, {}, {}, {"training": seconds})
            lineage.append(Generation(number, {"w": torch.zeros(1)}, {}, "{}", {}, card, (), {}, provenance))
        return lineage

    return grown


def test_a_lineage_killed_before_the_word_finished_gets_it(grid_of, grow, monkeypatch, tmp_path):
    """Its generations are all there: the training that goes on has nothing to do but to write the word."""
    (recipe,) = recipes_of(grid_of(), "g", [0])["ke"]
    lineage = grow(recipe, [0.1, 0.2, 0.3])
    calls = []
    monkeypatch.setattr(lineages, "train_lineage", lambda recipe, **options: calls.append(options["resume"]))
    lineages.train(recipe, ROOT / "recipes" / "emoji_resnet18.yaml", tmp_path)
    lineage.set_status("finished")
    lineages.train(recipe, ROOT / "recipes" / "emoji_resnet18.yaml", tmp_path)
    assert calls == [True]


def test_the_table(grid_of, grow):
    grid = grid_of()
    recipes = recipes_of(grid, "g", [0, 1])
    found = {
        "plain": [grow(recipe, [recall]) for recipe, recall in zip(recipes["plain"], (0.5, 0.6), strict=True)],
        "alone": [grow(recipe, [recall]) for recipe, recall in zip(recipes["alone"], (0.2, 0.2), strict=True)],
        "ke": [grow(recipe, [0.1, 0.2, recall]) for recipe, recall in zip(recipes["ke"], (0.54, 0.66), strict=True)],
    }
    lines = [line.strip("| ").split(" | ") for line in markdown(grid, found).splitlines()]
    assert lines[2] == [
        "plain", "1 x 12", "12", "0.5", "2", "9", "55.0 ± 7.1", "", "3", "27.5 ± 3.5",
    ]  # fmt: skip
    assert lines[3] == ["alone", "1 x 12", "12", "0.5", "2", "", "", "", "9", "20.0 ± 0.0"]
    assert lines[4] == ["ke", "3 x 4", "12", "1.5", "2", "9", "60.0 ± 8.5", "+5.0 [+4.0, +6.0]", "3", "30.0 ± 4.2"]
    assert lines[-1] == ["Intervals of fewer than five seeds are too narrow to be trusted."]


def test_a_strategy_may_have_another_beside_it(grid_of, grow):
    grid = grid_of(
        strategies={**GRID["strategies"], "better": {"generations": 1, "set": ["training.average=0.9"]}},
        beside={"ke": "better"},
    )
    recipes = recipes_of(grid, "g", [0, 1])
    recalls = {"plain": (0.5, 0.6), "better": (0.7, 0.7), "ke": (0.54, 0.66)}
    found = {
        name: [
            grow(recipe, [recall] * recipe.generations) for recipe, recall in zip(recipes[name], each, strict=True)
        ]
        for name, each in recalls.items()
    }
    lines = [line.strip("| ").split(" | ") for line in markdown(grid, found).splitlines()]
    assert lines[3][0] == "better"
    assert lines[3][7] == "+15.0 [+10.0, +20.0]"
    assert lines[4][0] == "ke"
    assert lines[4][7] == "-10.0 [-16.0, -4.0] (better)"


def test_networks_of_another_size_have_no_difference(grid_of, grow):
    """The slim network of one split rate is no match for the slim architecture of another."""
    grid = grid_of()
    recipes = recipes_of(grid, "g", [0])
    found = {name: [grow(recipes[name][0], [0.5])] for name in ("plain", "alone")}
    assert markdown(grid, found).splitlines()[2].endswith("| 3 | 25.0 |  |")
    found = {"plain": found["plain"], "alone": [grow(recipes["alone"][0], [0.2], size=3, again=True)]}
    assert markdown(grid, found).splitlines()[2].endswith("| 3 | 25.0 | +5.0 |")


def by_hand(recipe, images, classes):
    """Return operations of an epoch: twice the multiplications of every layer, three times for its gradients.

    The first layer has no gradient to its input.
    """
    network = LineageNetworks(recipe, classes).build(1)
    counts = []

    def count(layer, inputs, output):
        per_output = layer.weight[0].numel()
        counts.append(2 * per_output * output.numel() * (2 if not counts else 3))

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    network(torch.zeros(images, 3, recipe.data.image_size, recipe.data.image_size))
    return sum(counts)


def test_arithmetic_is_counted(tmp_path):
    """A plain training as by hand; slim is less than half; a teacher is a forward pass more."""
    path = ROOT / "recipes" / "glyphs_classes_resnet18.yaml"
    shared = ["data.train_classes=4", "network.backbone=timm/test_resnet", "batches.size=8"]
    overrides = {
        "plain": ["generations=1"],
        "alone": ["generations=1", "method.name=slim_alone"],
        "taught": ["generations=2", "method.name=restarts", "method.teacher_weight=1.0"],
        "joint": ["generations=1", "split.rates=[0.5]", "evaluation.slim_repair=statistics"],
    }
    recipes = {name: load_recipe(path, [*shared, *own], seed=0) for name, own in overrides.items()}
    found = counted(tmp_path / "operations.json", recipes)
    pictures = training_pictures(recipes["plain"])
    images = len(pictures.benchmark.train.labels)
    assert found["plain"] == pytest.approx(by_hand(recipes["plain"], images, 4), rel=1e-6)
    assert found["alone"] < 0.5 * found["plain"]
    # Half of the generations are taught.
    assert found["taught"] == pytest.approx(found["plain"] * (1 + 0.5 / 3), rel=0.03)
    # A narrow network computes narrow.
    assert found["joint"] == pytest.approx(found["plain"] + found["alone"], rel=0.001)
    assert counted(tmp_path / "operations.json", dict.fromkeys(recipes, None)) == found


def test_what_was_not_run_has_no_row(grid_of, grow):
    grid = grid_of()
    recipes = recipes_of(grid, "g", [0])
    table = markdown(grid, {"plain": [], "ke": [grow(recipes["ke"][0], [0.1, 0.2, 0.3])]})
    assert [line.split()[1] for line in table.splitlines()[2:]] == ["ke"]
    assert "[" not in table


def test_a_slim_last_generation_has_slim_cells_alone(grid_of, grow):
    grid = grid_of(strategies={**GRID["strategies"], "cut": {"generations": 2, "set": ["method.slim_last=true"]}})
    (recipe,) = recipes_of(grid, "g", [0])["cut"]
    lineage = grow(recipe, [0.4, 0.3])
    assert markdown(grid, {"cut": [lineage]}).splitlines()[2].endswith("| 1 |  |  |  | 3 | 15.0 |  |")


def test_averages_have_rows_below_their_strategy(grid_of, grow):
    grid = grid_of(averages={"mean": {"of": "ke", "average": "outputs"}})
    assert grid.averages == {"mean": ("ke", "outputs")}
    recipes = recipes_of(grid, "g", [0])
    assert [recipes[name][0].keep for name in ("plain", "ke")] == ["last", "all"]
    found = {"plain": [grow(recipes["plain"][0], [0.5])], "ke": [grow(recipes["ke"][0], [0.1, 0.2, 0.6])]}
    lines = markdown(grid, found, {"mean": {0: Scorecard({"recall@1": 0.7}, None, 27, None)}}).splitlines()
    assert [line.strip("| ").split(" | ")[:8] for line in lines[3:5]] == [
        ["ke", "3 x 4", "12", "1.5", "1", "9", "60.0", "+10.0"],
        ["mean", "3 x 4", "12", "1.5", "1", "27", "70.0"],
    ]
    assert len(markdown(grid, found, {"mean": {}}).splitlines()) == 4


def test_an_ensemble_is_the_mean_of_its_members():
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(5, 4, generator=generator) for _ in range(3)]

    class Fixed(nn.Module):
        def __init__(self, outputs):
            super().__init__()
            self.outputs = outputs

        def forward(self, _):
            return self.outputs

    embeddings = [nn.functional.normalize(each, dim=1) for each in images]
    found = Ensemble([Fixed(each) for each in embeddings], "retrieval")(torch.zeros(5, 3, 2, 2))
    expected = torch.stack([each @ each.T for each in embeddings]).mean(dim=0)
    torch.testing.assert_close(found @ found.T, expected)
    found = Ensemble([Fixed(each) for each in images], "classification")(torch.zeros(5, 3, 2, 2))
    torch.testing.assert_close(found.exp(), torch.stack([each.softmax(1) for each in images]).mean(dim=0))


def test_probabilities_that_vanish_are_no_infinities():
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]])
    members = [nn.Linear(1, 1), nn.Linear(1, 1)]
    ensemble = Ensemble(members, "classification")
    for member in members:
        member.forward = lambda _: logits
    assert torch.isfinite(ensemble(torch.zeros(2, 1))).all()


def test_the_mean_of_weights_is_their_mean():
    networks = [nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)) for _ in range(3)]
    for number, network in enumerate(networks):
        network[1].running_mean.fill_(number)
    expected = torch.stack([network[0].weight.detach() for network in networks]).mean(dim=0)
    found = mean_of_weights(networks)
    torch.testing.assert_close(found[0].weight.detach(), expected)
    assert found[1].running_mean.tolist() == [1.0, 1.0, 1.0]


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A lineage of three tiny generations on characters, all of whose weights were kept, and its pictures."""
    overrides = [
        "name=tiny", "generations=3", "training.epochs=1", "training.warmup_epochs=0", "keep=all",
        # In bf16, oneDNN's kernels for AVX-512 have given weights here that were not finite.
        "training.precision=fp32",
        "data.train_classes=6", "data.test_classes=12", "network.backbone=timm/test_resnet", "method.name=repeats",
        "evaluation.kmeans_seeds=1", "data.image_size=16", "evaluation.resize=16", "batches.size=8",
    ]  # fmt: skip
    path = ROOT / "recipes" / "glyphs_resnet18.yaml"
    recipe, folder = load_recipe(path, overrides), tmp_path_factory.mktemp("tiny") / "tiny-s0"
    train_lineage(recipe, text="x", folder=folder, device="cpu", resume=False, overwrite=False)
    benchmark = without_training(load_benchmark(recipe.data, recipe.task))
    return Lineage(folder), Pictures.decode(benchmark, recipe.data.store_size, store_shape=recipe.data.store_shape)


def test_the_average_of_one_generation_is_that_generation(grown, monkeypatch):
    lineage, pictures = grown
    monkeypatch.setattr(Lineage, "numbers", [2])
    for kind in ("outputs", "weights"):
        found = score_average(lineage, kind, pictures)
        assert found.dense["recall@1"] == lineage.scorecard(2).dense["recall@1"]
        assert found.dense_parameters == lineage.scorecard(2).dense_parameters


def test_what_was_trained_is_written_down_once(grown, tmp_path, monkeypatch):
    """With its averages; then neither the lineage nor its weights are needed any more."""
    lineage, _ = grown
    recipe, path = lineage.recipe, tmp_path / "results.jsonl"
    assert Results(path).get(recipe) is None
    grow_and_keep(recipe, path, {"outputs", "weights"}, lineages=lineage.folder.parent, results=Results(path))
    found = Results(path).get(recipe)
    size = lineage.scorecard(1).dense_parameters
    assert found.averages["outputs"].dense_parameters == 3 * size
    assert found.averages["weights"].dense_parameters == size
    assert found.averages["outputs"].dense["recall@1"] != found.averages["weights"].dense["recall@1"]
    monkeypatch.setattr("eval.budget.run.train", None)
    grow_and_keep(recipe, path, {"outputs"}, lineages=tmp_path / "gone", results=Results(path))
    content = path.read_text()
    assert [found.scorecard(number) for number in found.numbers] == [lineage.scorecard(n) for n in (1, 2, 3)]
    assert content == path.read_text()


PRACTICE = {"emoji": "emoji_small", "glyphs": "glyphs_small", "emoji_classes": "emoji_classes_small"}


@pytest.mark.parametrize("name", PRACTICE)
def test_recipes_of_good_practice_are_what_was_measured(name):
    """But for how many k-means are averaged over, which changes no network."""
    path = ROOT / "eval" / "budget" / "grids" / f"practice_{name}.yaml"
    (measured,) = recipes_of(read_grid(path), "g", [0])["all"]
    shipped = load_recipe(ROOT / "recipes" / f"{PRACTICE[name]}.yaml")
    changes = {"name": shipped.name, "evaluation": shipped.evaluation}
    assert measured.model_copy(update=changes) == shipped
    assert measured.evaluation.model_copy(update={"kmeans_seeds": 3}) == shipped.evaluation.model_copy(
        update={"slim_repair": measured.evaluation.slim_repair}
    )


DIVIDED, PARTS = (
    ("plain", "ke_3", "shrink_3", "slim_alone"),
    ("today", "all", "all_joint", "all_shrink_3", "all_ke_3"),
)


@pytest.mark.parametrize(
    ("name", "strategies"),
    [
        *((name, DIVIDED) for name in ("emoji_classes", "emoji_retrieval", "glyphs_retrieval")),
        *((f"practice_{name}", PARTS) for name in (*PRACTICE, "solar")),
    ],
)
def test_tables_that_are_committed_are_those_of_the_results(name, strategies, monkeypatch, capsys):
    """And docs/what-to-use.md has its figures from them."""
    grid = ROOT / "eval" / "budget" / "grids" / f"{name}.yaml"
    monkeypatch.setattr("sys.argv", ["budget.py", str(grid), "--seeds", "0,1,2", "--show"])
    budget.main()
    shown = capsys.readouterr().out
    assert (ROOT / "eval" / "budget" / "results" / f"{name}.md").read_text(encoding="utf-8").endswith(shown)
    told = (ROOT / "docs" / "what-to-use.md").read_text(encoding="utf-8")
    for strategy in strategies:
        (row,) = (line for line in shown.splitlines() if line.startswith(f"| {strategy} |"))
        # Of the dense network; of slim_alone the only one.
        figure = re.search(r"\d+\.\d ± \d+\.\d", row)[0]
        assert any(figure in line for line in told.splitlines() if line.startswith(f"| {strategy} |")), figure
