"""The schema is frozen, closed and strict, and a digest stands for exactly one recipe."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from ke_metric.recipe.method_rules import RULES
from ke_metric.recipe.schema import (
    Augmentation,
    Batches,
    Data,
    Evaluation,
    Method,
    Miner,
    Network,
    Recipe,
    Split,
    Training,
)
from ke_metric.schema import Section

RECIPE = Recipe(name="cars", miner=Miner(name="TripletMarginMiner", arguments={"margin": 0.2}))
SECTIONS = {"": RECIPE, **{name: value for name, value in RECIPE if isinstance(value, Section)}}
TEXTS = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "generate_fields.py"))["texts_of"]
FIELDS = [(section, field) for section, value in SECTIONS.items() for field in type(value).model_fields]


def with_other_value(section, field, value):
    """Return RECIPE with one field replaced and nothing checked."""
    changed = SECTIONS[section].model_copy(update={field: value})
    return changed if section == "" else RECIPE.model_copy(update={section: changed})


def test_all_sections_are_looked_at():
    assert len(SECTIONS) == 13
    assert ("split", "rate") in FIELDS


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_every_field_is_explained(section, field):
    assert TEXTS(type(SECTIONS[section]))[field].endswith(".")


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_no_field_can_be_written(section, field):
    before = RECIPE.to_yaml()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(SECTIONS[section], field, getattr(SECTIONS[section], field))
    assert RECIPE.to_yaml() == before


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_the_digest_depends_on_every_field(section, field):
    assert with_other_value(section, field, "something else").digest != RECIPE.digest


def test_the_digest_ignores_the_order_of_fields_and_of_arguments():
    dumped = RECIPE.model_dump(mode="json") | {"loss": {"name": "x", "arguments": {"a": 1, "b": 2}}}
    turned = dict(reversed(dumped.items())) | {"loss": {"arguments": {"b": 2, "a": 1}, "name": "x"}}
    assert Recipe.model_validate(turned).digest == Recipe.model_validate(dumped).digest


def test_the_digest_is_the_same_in_another_process():
    program = (
        f"from ke_metric.recipe.schema import Recipe; print(Recipe.model_validate({RECIPE.model_dump()!r}).digest)"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == RECIPE.digest


def test_the_yaml_names_every_field_and_only_them():
    dumped = json.loads(RECIPE.model_dump_json())
    text = RECIPE.to_yaml()
    assert list(dumped) == [line.split(":")[0] for line in text.splitlines() if line[0] not in " -"]
    assert "  rate: 0.5\n" in text
    assert "seed: 0\n" in text


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        (Recipe, {"name": "x", "generatoins": 3}),
        (Split, {"rat": 0.5}),
        (Split, {"rate": "0.5"}),
        (Split, {"rate": True}),
        (Split, {"rate": float("nan")}),
        (Split, {"rate": 0}),
        (Split, {"rate": 1.01}),
        (Training, {"epochs": 3.0}),
        (Training, {"epochs": True}),
        (Training, {"warmup_epochs": float("inf")}),
        (Method, {"reset_loss": 1}),
        (Network, {"stem_stride": True}),
        (Recipe, {"name": "x", "schema_version": True}),
        (Recipe, {"name": "x", "schema_version": 2}),
        (Data, {"std": (0.2, 0.0, 0.2)}),
        (Data, {"mean": (0.2, 0.2)}),
        (Data, {"validation_fraction": 1.0}),
        (Data, {"validation_fraction": -0.1}),
        (Data, {"train_on": "val"}),
        (Data, {"store_shape": "circle"}),
        (Data, {"crop_banner": 1}),
        (Evaluation, {"recall_at": ()}),
        (Evaluation, {"recall_at": (1, 0)}),
        (Evaluation, {"recall_at": (1, True)}),
        (Augmentation, {"scale": (0.9, 0.8)}),
        (Augmentation, {"ratio": (0.0, 1.0)}),
        (Miner, {"name": "x", "arguments": {"a": [1.0, {"b": float("nan")}]}}),
        (Miner, {"name": "x", "arguments": {"a": {1, 2}}}),
        (Miner, {"arguments": {}}),
    ],
)
def test_wrong_values_are_refused(section, fields):
    with pytest.raises(ValidationError) as caught:
        section(**fields)
    assert caught.value.error_count() == 1


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "a b", "naïve", "x" * 101, "x\n", "-x"])
def test_names_that_are_no_folder_names_are_refused(name):
    with pytest.raises(ValidationError, match="letters, digits"):
        Recipe(name=name)


@pytest.mark.parametrize("name", ["x", "7", "cars_resnet50.v2-a", "x" * 100])
def test_folder_names_are_accepted(name):
    assert Recipe(name=name).name == name


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        (Augmentation, {"scale": (0.5, 1.5)}, "must be at most 1 where geometry = 'crop'"),
        (Batches, {"size": 30, "images_per_class": 4}, "size = 30, must be a multiple of images_per_class = 4"),
        (Method, {"name": "repeats", "reset_loss": False}, "reset_loss = False, is not read by repeats"),
        (Method, {"name": "born_again", "reset": "zero"}, "reset = 'zero', is not read by born_again"),
        (Method, {"name": "restarts", "layers": ("layer4",)}, "layers = ('layer4',), is not read by restarts"),
        (
            Method,
            {"name": "later_layer_forgetting", "layers": ("layer3", "layer4")},
            "layers = ['layer3', 'layer4'], must be one layer",
        ),
        (
            Recipe,
            {"name": "x", "training": Training(epochs=5, warmup_epochs=5)},
            "training.warmup_epochs = 5.0, must be less than training.epochs = 5",
        ),
        (
            Recipe,
            {"name": "x", "data": Data(image_size=288)},
            "evaluation.resize = 256, must be at least data.image_size = 288",
        ),
    ],
)
def test_fields_that_do_not_go_together_are_refused(section, fields, message):
    with pytest.raises(ValidationError) as caught:
        section(**fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        (Augmentation, {"geometry": "affine", "scale": (0.5, 1.5)}),
        (Augmentation, {"scale": (1.0, 1.0)}),
        (Batches, {"size": 30, "images_per_class": 4, "sampler": "shuffled"}),
        (Split, {"rate": 1}),
        (Network, {"stem_stride": 2}),
        (Evaluation, {"recall_at": [1, 10]}),
        (Method, {"name": "later_layer_forgetting", "layers": ["layer4"]}),
        (Method, {"name": "layer_wise", "layers": ["layer3", "layer4"]}),
        (Method, {"name": "repeats", "reset_loss": True, "share": None, "cycles": 3}),
        (Method, {"name": "born_again", "teacher_temperature": 2.0}),
        (Method, {"teacher_weight": 1, "teacher_temperature": 2.0}),
        (Recipe, {"name": "x", "method": {"name": "repr"}, "training": {"epochs": 91}}),
    ],
)
def test_values_at_the_edge_are_accepted(section, fields):
    section(**fields)


def test_only_kels_recipes_of_methods_that_keep_the_dense_network_have_a_slim_one():
    assert Recipe(name="x").has_slim
    assert not Recipe(name="x", split=Split(kind="wels")).has_slim
    assert not Recipe(name="x", evaluation=Evaluation(slim=False)).has_slim
    assert not Recipe(name="x", method=Method(name="slim_alone")).has_slim


@pytest.mark.parametrize("fields", [{"split": Split(kind="wels")}, {"generations": 1}])
def test_a_slim_last_generation_needs_a_dense_one_before_it(fields):
    with pytest.raises(ValidationError, match=r"method\.slim_last = true, needs split\.kind = 'kels'"):
        Recipe(name="x", method=Method(slim_last=True), **fields)
    assert Recipe(name="x", method=Method(slim_last=True)).has_slim


@pytest.mark.parametrize(
    ("alphas", "said"),
    [
        ({"mixup": 0.2}, r"augmentation\.mixup = 0\.2, not for task = 'retrieval': .* is of two"),
        ({"mixup": 0.2, "cutmix": 1}, r"mixup = 0\.2, augmentation\.cutmix = 1\.0, not for task"),
    ],
)
def test_pictures_are_mixed_for_classification_alone(alphas, said):
    assert Recipe.model_validate({"name": "x", "task": "classification", "augmentation": alphas}).augmentation.mixes
    with pytest.raises(ValidationError, match=said):
        Recipe.model_validate({"name": "x", "augmentation": alphas})
    assert not Recipe(name="x").augmentation.mixes


@pytest.mark.parametrize(("generations", "slim_last"), [(2, False), (3, True)])
def test_a_final_share_needs_two_children(generations, slim_last):
    method = Method(name="neural_regeneration", final_share=0.1, slim_last=slim_last)
    with pytest.raises(ValidationError, match=r"method\.final_share = 0\.1, needs at least 3 generations"):
        Recipe(name="x", method=method, generations=generations)
    assert Recipe(name="x", method=method, generations=generations + 1)


def test_fit_steps_are_gone_and_what_does_it_now_is_named():
    with pytest.raises(ValidationError, match=r"fit_steps = 0\.5, is gone: split\.rates = \[0\.5\]"):
        Recipe.model_validate({"name": "x", "method": {"fit_steps": 0.5}})
    assert Recipe.model_validate({"name": "x", "method": {"fit_steps": 0.0}}) == Recipe(name="x")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": {"rates": [0.5, 0.25]}}, "must be numbers between 0 and 1, ascending, each once"),
        ({"split": {"rates": [1.0]}}, "must be numbers between 0 and 1"),
        ({"split": {"rates": [0.5], "kind": "wels"}}, r"needs kind = 'kels'"),
        ({"split": {"rates": [0.25, 0.5], "joint": "sandwich"}}, "needs 3 rates or more"),
        ({"split": {"joint_teacher": 1.0}}, "has no effect without rates"),
        ({"split": {"rates": [0.5]}}, r"needs evaluation\.slim_repair = 'auto' or 'statistics'"),
        (
            {"split": {"rates": [0.5]}, "method": {"name": "slim_alone"}, "evaluation": {"slim_repair": "auto"}},
            "which is narrow",
        ),
        ({"task": "classification", "evaluation": {"slim_repair": "whiten"}}, "is not for task = 'classification'"),
        ({"evaluation": {"slim_repair": "refit"}}, "is not for task = 'retrieval'"),
    ],
)
def test_joint_widths_and_repairs_that_do_not_go_together(fields, message):
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate({"name": "x", **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"training": {"average": 1.0}}, "less than 1"),
        ({"training": {"average": 0}}, "greater than 0"),
        ({"training": {"average": True}}, "valid number"),
        ({"training": {"average_last": 1}}, "greater than or equal to 2"),
        ({"training": {"average": 0.9, "average_last": 3}}, r"does not go with average_last = 3: two averages"),
        ({"training": {"epochs": 2, "average_last": 3}}, r"average_last = 3, must be at most epochs = 2"),
        (
            {"training": {"average": 0.9}, "method": {"name": "repr"}},
            r"training\.average = 0\.9, does not go with method\.name = 'repr': it redraws filters",
        ),
        ({"training": {"average_last": 3}, "method": {"name": "repr"}}, r"training\.average_last = 3, does not go"),
        ({"method": {"inherit_average": False}}, r"method\.inherit_average = false, has no effect without training"),
        (
            {"training": {"average": 0.9}, "method": {"name": "born_again", "inherit_average": False}},
            "inherit_average = False, is not read by born_again",
        ),
    ],
)
def test_averages_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate({"name": "x", **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"training": {"patience": 0}}, "greater than or equal to 1"),
        ({"training": {"patience": 2.5}}, "valid integer"),
        (
            {"training": {"patience": 3, "average_last": 3}},
            r"patience = 3, does not go with average_last = 3: nobody",
        ),
        (
            {"training": {"patience": 3}, "method": {"name": "repr"}},
            r"training\.patience = 3, does not go with method\.name = 'repr': while it trains without some filters",
        ),
        (
            {"training": {"patience": 3, "average": 0.9}, "method": {"inherit_average": False}},
            r"training\.patience = 3, does not go with method\.inherit_average = false",
        ),
    ],
)
def test_patience_that_does_not_fit_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate({"name": "x", **fields})


@pytest.mark.parametrize(
    ("training", "told"),
    [({}, ""), ({"average": 0.9}, "training.average = 0.9"), ({"average_last": 2}, "training.average_last = 2")],
)
def test_a_recipe_says_what_it_averages(training, told):
    assert Recipe.model_validate({"name": "x", "training": training}).training.averages == told


def test_a_temperature_is_read_where_the_slim_network_is_taught():
    assert Method(slim_last=True, teacher_temperature=2.0).teacher_weight == 0
    with pytest.raises(ValidationError, match="has no effect where teacher_weight = 0"):
        Method(teacher_temperature=2.0)


def test_the_readers_of_a_field_are_methods():
    names = get_args(Method.model_fields["name"].annotation)
    assert list(names) == list(RULES)
    # All of the section's fields but its name: every field of it is read by some method only.
    assert {field for rules in RULES.values() for field in rules.reads} == set(Method.model_fields) - {"name"}


def test_a_whole_number_may_stand_where_a_fraction_may():
    one, other = Split(rate=1), Split(rate=1.0)
    assert one == other
    assert isinstance(one.rate, float)
