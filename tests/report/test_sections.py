"""What a report says of one lineage: over seeds, beside a long baseline, and where something is missing."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import torchvision
from reported import record_training
from scored_lineages import CLASSES, FIELDS, grow_scored

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.lineage.comparison import mean_and_spread
from ke_metric.recipe.schema import Recipe
from ke_metric.report.cost_section import count_flops, lineage_networks, measure_costs
from ke_metric.report.lineage_report import gather_report
from ke_metric.report.page_parts import Number, short_layers
from ke_metric.report.score_sections import headline, scores_section
from ke_metric.report.split_section import inherited_text
from ke_metric.report.subject import Subject
from ke_metric.report.vectors import LineageVectors

GLYPHS = {"benchmark": "glyphs", "test_classes": 3, "image_size": 32, "store_size": 32}


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    return [grow_scored(folder / f"s{seed}", seed=seed, data=GLYPHS) for seed in range(3)]


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """One generation of as many epochs as two."""
    folder = tmp_path_factory.mktemp("long") / "long"
    fields = {"name": "long", "generations": 1, "training": {"epochs": 2}}
    return grow_scored(folder, data=GLYPHS, **fields)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Two generations of one epoch."""
    folder = tmp_path_factory.mktemp("short") / "short"
    return grow_scored(folder, data=GLYPHS, name="short", training={"epochs": 1, "warmup_epochs": 0})


def numbers(table):
    return {cell.key: cell for row in table.rows for cell in row if isinstance(cell, Number) and cell.key}


def test_over_seeds_there_are_mean_and_spread(three_seeds):
    section = scores_section(Subject.of(three_seeds))
    cells = numbers(next(part.table for part in section.parts if part.table))
    for key, cell in cells.items():
        number, network, name = key.split("/")
        values = [lineage.scorecard(int(number)).networks[network][name] for lineage in three_seeds]
        mean, spread = mean_and_spread(values)
        assert cell.value == pytest.approx(mean)
        factor, digits = (1, 3) if name == "nmi" else (100, 1)
        assert cell.text == f"{factor * mean:.{digits}f} ± {factor * spread:.{digits}f}"
    rows = section.parts[0].specification["data"]["values"]
    band = next(row for row in rows if row["x"] == 2 and row["series"] == "slim")
    values = [lineage.scorecard(2).slim["recall@1"] for lineage in three_seeds]
    mean, spread = mean_and_spread(values)
    assert (band["low"], band["y"], band["high"]) == pytest.approx((mean - spread, mean, mean + spread))
    assert any("seeds 0, 1, 2" in sentence for sentence in section.lead)


def test_gain_over_a_long_baseline(short, long):
    subject = Subject.of([short], [long])
    found = next(each for each in headline(subject) if each.title == "Gain over the long baseline")
    expected = short.scorecard(2).dense["recall@1"] - long.scorecard(1).dense["recall@1"]
    assert found.number.value == pytest.approx(expected)
    assert "2 epochs in 1 generation" in found.note
    section = scores_section(subject)
    assert any("as many epochs: 2" in sentence for sentence in section.lead)
    assert {row["y"] for row in section.parts[0].specification["data"]["values"] if row["series"] == "long baseline"}


def test_an_unequal_baseline_is_called_so(three_seeds, long):
    epochs = 2 * three_seeds[0].recipe.training.epochs
    lead = scores_section(Subject.of(three_seeds[:1], [long])).lead
    assert any(f"2 epochs, not for {epochs:,}: this is unequal" in sentence for sentence in lead)


def test_a_baseline_of_the_same_recipe_is_refused(three_seeds):
    with pytest.raises(KeMetricError, match="is of the recipe of") as caught:
        Subject.of(three_seeds[:1], three_seeds[1:2])
    assert caught.value.exit_code == ExitCode.USAGE


def test_lineages_of_other_pictures_are_refused(three_seeds, retrieval):
    with pytest.raises(KeMetricError, match="do not belong into one table"):
        Subject.of([three_seeds[0], retrieval.lineage])


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A lineage whose weights were not kept, of before logs and sizes of weights."""
    lineage = grow_scored(tmp_path_factory.mktemp("bare") / "bare", data=GLYPHS)
    for number in lineage.numbers:
        (lineage.generation_folder(number) / "weights.safetensors").unlink()
        (lineage.generation_folder(number) / "slim.safetensors").unlink(missing_ok=True)
    return lineage


def test_without_weights_the_rest_is_there(bare):
    report = gather_report([bare]).report
    missing = {section.name for section in report.sections if section.missing}
    assert missing == {"mended-and-broken", "worst-answers", "confused-classes", "map", "training", "weights"}
    by_name = {section.name: section for section in report.sections}
    assert all(by_name[name].parts for name in ("scores", "split", "cost", "recipe"))
    assert not any(str(bare.folder.parent) in sentence for section in report.sections for sentence in section.missing)


def test_without_weights_a_classification_still_tells_what_it_confuses(tmp_path):
    lineage = grow_scored(tmp_path / "bare", **CLASSES)
    for number in lineage.numbers:
        (lineage.generation_folder(number) / "weights.safetensors").unlink()
    sections = {section.name: section for section in gather_report([lineage]).report.sections}
    assert not sections["confused-classes"].missing
    assert sections["worst-answers"].missing
    table = sections["confused-classes"].parts[0]
    confusion = lineage.scorecard(2).classes["dense"].confusion
    expected = [count for own, taken in confusion.items() for other, count in taken.items() if own != other]
    assert [row[2].value for row in table.rows] == sorted(expected, reverse=True)[: len(table.rows)]
    assert all(confusion[row[0]][row[1]] == row[2].value for row in table.rows)
    assert all(row[3].value == sum(confusion[row[0]].values()) for row in table.rows)


@pytest.mark.parametrize("kind", ["retrieval", "classification"])
def test_confused_classes_are_counted_and_one_of_each_is_shown(kind, request):
    grown = request.getfixturevalue(kind)
    vectors = LineageVectors.open(grown.lineage)
    query, predicted = vectors.benchmark.query, vectors.outcomes(2, "dense").predicted
    taken = [
        (query.class_names[own], query.class_names[other]) for own, other in zip(query.labels, predicted, strict=True)
    ]
    counts = Counter(pair for pair in taken if pair[0] != pair[1])
    table, *_, gallery = grown.section("confused-classes").parts
    assert {(row[0], row[1]): row[2].value for row in table.rows}.items() <= counts.items()
    assert sum(row[2].value for row in table.rows) == sum(count for _, count in counts.most_common(len(table.rows)))
    for row, example in zip(table.rows, gallery.examples, strict=False):
        position = query.keys.index(example.query.name)
        assert taken[position] == (row[0], row[1])
        assert (row[0], row[1]) not in taken[:position]


def test_what_a_slim_network_scored_as_it_was_cut_has_a_column(tmp_path):
    lineage = grow_scored(tmp_path / "lineage", data=GLYPHS)
    path = lineage.generation_folder(2) / "scorecard.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps(card | {"slim_repair": "whiten", "slim_as_cut": card["slim"] | {"recall@1": 0.125}}))
    table = scores_section(Subject.of([lineage])).parts[0].table
    assert table.columns[-1] == "R@1 as cut"
    cells = {(row[0], row[1]): row[-1] for row in table.rows}
    assert cells.pop(("2", "slim")).text == "12.5"
    assert set(cells.values()) == {"–"}


def test_embeddings_cut_short_have_a_table(tmp_path):
    network = FIELDS["network"] | {"nested_sizes": [2, 4]}
    lineage = grow_scored(tmp_path / "lineage", data=GLYPHS, network=network)
    table = scores_section(Subject.of([lineage])).parts[-1]
    assert [(row[0], row[1], row[2]) for row in table.rows][:3] == [
        ("1", "dense", "4"),
        ("1", "dense", "2"),
        ("1", "slim", "4"),
    ]
    assert table.rows[1][3].value == lineage.scorecard(1).sizes["dense"]["2"]["recall@1"]


def test_what_each_generation_mends_and_breaks_goes_up_and_down(tmp_path):
    lineage = grow_scored(tmp_path / "lineage", data=GLYPHS, generations=3)
    gathered = gather_report([lineage])
    section = next(each for each in gathered.report.sections if each.name == "mended-and-broken")
    dense, slim, table, *_ = section.parts
    assert (dense.name, slim.name) == ("changes-dense", "changes-slim")
    steps = {("1 → 2", 1, 2), ("2 → 3", 2, 3)}
    counted = {
        (change["before"]["generation"], change["after"]["generation"]): (
            len(change["mended"]),
            -len(change["broken"]),
        )
        for change in gathered.changes
        if change["before"]["network"] == change["after"]["network"] == "dense"
    }
    drawn = {(row["x"], row["series"]): row["y"] for row in dense.specification["data"]["values"]}
    for name, one, other in steps:
        assert (drawn[name, "mended"], drawn[name, "broken"]) == counted[one, other]
    assert len(drawn) == 4
    assert [row[0] for row in table.rows] == [
        *(
            f"{network}, generation {pair}"
            for network in ("dense", "slim")
            for pair in ("1 to 3", "1 to 2", "2 to 3")
        ),
        "generation 3, dense to slim",
    ]


def test_a_lost_file_is_told_in_its_section_alone(tmp_path):
    lineage = record_training(grow_scored(tmp_path / "lost", data=GLYPHS))
    (lineage.generation_folder(2) / "split.json").write_text("{}")
    sections = {section.name: section for section in gather_report([lineage]).report.sections}
    assert "no split plan" in sections["split"].missing[0]
    assert sections["training"].parts
    assert sections["weights"].parts


def test_training_curves_are_those_of_the_log(retrieval):
    section = retrieval.section("training")
    expected = {
        (record["epoch"], str(number)): record["loss"]
        for number in retrieval.lineage.numbers
        for record in retrieval.lineage.training_log(number)
    }
    rows = section.parts[0].specification["data"]["values"]
    assert {(row["x"], row["series"]): row["y"] for row in rows} == pytest.approx(expected, rel=1e-3)
    table = section.parts[0].table
    assert [cell.value for row in table.rows for cell in row[1:]] == [
        expected[epoch, str(number)] for epoch in (1, 2, 3) for number in (1, 2)
    ]


def test_sizes_of_the_weights_are_those_of_the_scorecard(retrieval):
    stored = json.loads((retrieval.lineage.generation_folder(2) / "scorecard.json").read_text())["magnitudes"]
    table = next(part.table for part in retrieval.section("weights").parts if part.table)
    found = {row[0]: [cell.value for cell in row[3:5]] for row in table.rows if all(map(is_number, row[3:5]))}
    assert found == {name: pair for name, pair in stored.items() if None not in pair}
    assert found


def is_number(cell):
    return isinstance(cell, Number)


def test_cost_counts_parameters_and_passes(retrieval):
    networks, training = retrieval.section("cost").parts
    card = retrieval.lineage.scorecard(2)
    counts = {row[0]: row[1].value for row in networks.rows}
    assert counts == {
        "dense": card.dense_parameters,
        **{name: found.parameters for name, found in card.slims.items()},
    }
    flops = {row[0]: (row[2].value, row[3].value) for row in networks.rows}
    assert all(count == 2 * macs for count, macs in flops.values())
    assert flops["dense"] > flops["slim"]
    assert [row[2].value for row in training.rows] == [120, 120, 240]
    assert [row[3].value for row in training.rows] == [12.5, 12.5, 25]


def test_networks_of_all_rates_are_costed():
    fields = {"split": {"rate": 0.5, "rates": [0.25, 0.75]}, "evaluation": {"slim_repair": "auto"}}
    recipe = Recipe.model_validate({"name": "rates", "network": FIELDS["network"], "data": GLYPHS} | fields)
    networks = lineage_networks(SimpleNamespace(recipe=recipe, class_names=()))
    costs = measure_costs(networks, 32, torch.device("cpu"))
    assert list(costs) == ["dense", "slim", "slim 0.25", "slim 0.75"]
    order = ["dense", "slim 0.75", "slim", "slim 0.25"]
    for quantity in ("parameters", "flops"):
        values = [getattr(costs[name], quantity) for name in order]
        assert values == sorted(values, reverse=True)
        assert len(set(values)) == 4
    assert all(seconds > 0 for cost in costs.values() for seconds in cost.seconds.values())


def test_operations_are_two_for_every_multiply_add():
    layer = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
    assert count_flops(layer, torch.zeros(1, 3, 10, 10)) == 2 * 8 * 3 * 9 * 100


def test_the_split_is_that_of_the_plan(retrieval):
    from ke_metric.split.plan import SplitPlan

    plan = SplitPlan.from_json(retrieval.lineage.load(2).split)
    chart, drawing = retrieval.section("split").parts
    rows = [row for row in chart.specification["data"]["values"] if row["series"] == "fit"]
    assert [row["count"] for row in rows] == [mask.fit_count for mask in plan.weights.values()]
    for layer in drawing.layers:
        mask = plan.masks[layer.layer]
        mask = mask.reshape(*mask.shape[:2], -1)[..., 0]
        drawn = torch.zeros_like(mask)
        outputs, inputs = mask.shape
        for left, top, width, height in layer.rectangles:
            rows = slice(round(top * outputs / 100), round((top + height) * outputs / 100))
            drawn[rows, round(left * inputs / 100) : round((left + width) * inputs / 100)] = True
        assert drawn.equal(mask), layer.layer


def test_two_layers_never_get_one_name():
    names = [name for name, _ in torchvision.models.densenet169().named_parameters()]
    assert len(set(short_layers(names).values())) == len(names)
    assert (
        short_layers(["backbone.layer1.conv.weight", "head.weight"])["backbone.layer1.conv.weight"] == "layer1.conv"
    )
    alike = ["backbone.head.weight", "head.weight"]
    assert list(short_layers(alike).values()) == alike


def test_versions_that_differ_are_told_apart(retrieval):
    tables = {table.caption: table for table in retrieval.section("versions").parts}
    differing = tables["Versions that differ between generations"]
    assert [list(row) for row in differing.rows] == [["1", "9.1"], ["2", "9.2"]]
    assert ["numpy", "2.0"] in [list(row) for row in tables["Versions of every generation"].rows]


@pytest.mark.parametrize("name", ["knowledge_evolution", "shrink_and_perturb", "restarts"])
def test_only_where_the_reset_hypothesis_is_redrawn_it_is_said(name):
    told = inherited_text(Recipe.model_validate({"name": "x", "method": {"name": name}}).method)
    assert ("redrawn" in told) == (name == "knowledge_evolution")
    assert (name in told) == (name != "knowledge_evolution")
