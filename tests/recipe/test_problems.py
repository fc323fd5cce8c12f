"""Every kind of problem has a sentence with the field, the value, what is allowed, and the closest name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ke_metric.recipe.file import find_problems
from ke_metric.recipe.schema import Recipe
from ke_metric.schema import Section, dotted, shown

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=6,
)
COMPLETE = Recipe(name="x", miner={"name": "x"})
SECTIONS = [name for name, value in COMPLETE if isinstance(value, Section)]
ROOT_FIELDS = ", ".join(Recipe.model_fields)


def problems_of(fields):
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({"name": "x"} | fields)
    return find_problems(caught.value)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"split": {"rate": 1.4}}, "split.rate = 1.4, must be greater than 0 and at most 1"),
        ({"split": {"rate": 0}}, "split.rate = 0, must be greater than 0 and at most 1"),
        ({"seed": -1}, "seed = -1, must be at least 0 and less than 2147483648"),
        ({"batches": {"size": 1}}, "batches.size = 1, must be at least 2"),
        ({"training": {"gradient_clip": 0}}, "training.gradient_clip = 0, must be greater than 0"),
        ({"training": {"epochs": "many"}}, "training.epochs = 'many', must be a whole number"),
        ({"training": {"epochs": "3"}}, "training.epochs = '3', must be a whole number without quotes"),
        ({"training": {"epochs": 3.0}}, "training.epochs = 3.0, must be a whole number"),
        ({"training": {"epochs": True}}, "training.epochs = true, must be a whole number"),
        ({"split": {"rate": "half"}}, "split.rate = 'half', must be a number"),
        ({"split": {"rate": "5e-1"}}, "split.rate = '5e-1', must be a number without quotes"),
        ({"split": {"rate": None}}, "split.rate = null, must be a number"),
        ({"split": {"rate": float("nan")}}, "split.rate = nan, must be a finite number"),
        ({"method": {"reset_loss": "no"}}, "method.reset_loss = 'no', must be true or false"),
        ({"name": 7}, "name = 7, must be text, in quotes where it looks like something else"),
        ({"loss": {"arguments": [1]}}, "loss.arguments = [1], must be a mapping of names to values"),
        ({"loss": {"arguments": {"m": [1.0, float("inf")]}}}, "loss.arguments.m = inf, must be a finite number"),
        ({"split": {"kind": "kel"}}, "split.kind = 'kel', must be kels or wels; did you mean 'kels'?"),
        ({"keep": "everything"}, "keep = 'everything', must be last, best or all"),
        ({"task": "x"}, "task = 'x', must be retrieval or classification"),
        ({"method": {"share": 1}}, "method.share = 1, must be greater than 0 and less than 1"),
        ({"method": {"cycles": 0}}, "method.cycles = 0, must be at least 1"),
        ({"method": {"layers": "layer4"}}, "method.layers = 'layer4', must be a list of names"),
        (
            {"method": {"layers": [4]}},
            "method.layers[0] = 4, must be text, in quotes where it looks like something else",
        ),
        ({"split": {"keep_whole": 3}}, "split.keep_whole = 3, must be a list of names"),
        ({"network": {"stem_stride": 3}}, "network.stem_stride = 3, must be 1 or 2"),
        ({"network": {"stem_stride": True}}, "network.stem_stride = true, must be a whole number"),
        (
            {"split": None},
            "split = null, must be a mapping with fields of split: kind, rate, keep_whole, channel_multiple, "
            "rates, joint, joint_teacher",
        ),
        ({"miner": 3}, "miner = 3, must be a mapping with fields of miner: name, arguments"),
        ({"miner": {}}, "miner.name is missing"),
        (
            {"data": {"validation_fraction": 1}},
            "data.validation_fraction = 1, must be at least 0 and less than 1",
        ),
        (
            {"data": {"train_on": "trainvall"}},
            "data.train_on = 'trainvall', must be train or trainval; did you mean 'trainval'?",
        ),
        (
            {"data": {"store_shape": "squares"}},
            "data.store_shape = 'squares', must be keep or square; did you mean 'square'?",
        ),
        ({"data": {"crop_banner": 1}}, "data.crop_banner = 1, must be true or false"),
        ({"data": {"mean": 1}}, "data.mean = 1, must be a list of 3 numbers"),
        ({"data": {"mean": [1, 2]}}, "data.mean = [1, 2], must be a list of 3 numbers"),
        ({"data": {"mean": [1, 2, 3, 4]}}, "data.mean = [1, 2, 3, 4], must be a list of 3 numbers"),
        ({"data": {"mean": [1, "2", 3]}}, "data.mean[1] = '2', must be a number without quotes"),
        ({"data": {"std": [1, 0, 3]}}, "data.std = [1, 0, 3], must be three numbers greater than 0"),
        ({"evaluation": {"recall_at": []}}, "evaluation.recall_at = [], must be a list of one or more whole numbers"),
        ({"evaluation": {"recall_at": [0]}}, "evaluation.recall_at = [0], must be whole numbers of at least 1"),
        (
            {"split": {"rat": 1}},
            "unknown field 'split.rat'; did you mean 'rate'? Fields of split: kind, rate, "
            "keep_whole, channel_multiple, rates, joint, joint_teacher",
        ),
        (
            {"split": {"zork": 1}},
            "unknown field 'split.zork'. Fields of split: kind, rate, keep_whole, channel_multiple, "
            "rates, joint, joint_teacher",
        ),
        ({"splt": {}}, f"unknown field 'splt'; did you mean 'split'? Fields of a recipe: {ROOT_FIELDS}"),
        ({"epochs": 3}, f"unknown field 'epochs'; did you mean 'training.epochs'? Fields of a recipe: {ROOT_FIELDS}"),
        (
            {"split": {"arguments": {}}},
            "unknown field 'split.arguments'; did you mean 'loss.arguments' or 'miner.arguments'? "
            "Fields of split: kind, rate, keep_whole, channel_multiple, rates, joint, joint_teacher",
        ),
    ],
)
def test_sentences(fields, sentence):
    assert [problem.sentence for problem in problems_of(fields)] == [sentence]


@pytest.mark.parametrize(
    ("fields", "paths", "words"),
    [
        ({"split": {"rate": 2}}, [("split", "rate")], "split.rate = 2"),
        ({"split": {"rat": 2}}, [("split", "rat")], "unknown field"),
        ({"miner": {}}, [("miner",)], "is missing"),
        ({"loss": {"arguments": {"m": [float("inf")]}}}, [("loss", "arguments", "m")], "finite"),
        (
            {"augmentation": {"scale": [0.5, 2]}},
            [("augmentation", "scale"), ("augmentation", "geometry")],
            "augmentation.scale = [0.5, 2.0], must be at most 1 where geometry = 'crop'",
        ),
        (
            {"augmentation": {"policy": "trivial_augment_wide", "policy_magnitude": 12}},
            [("augmentation", "policy_magnitude"), ("augmentation", "policy")],
            "augmentation.policy_magnitude = 12, has no effect where policy = 'trivial_augment_wide', needs policy = "
            "'rand_augment'",
        ),
        (
            {"augmentation": {"policy_operations": 3}},
            [("augmentation", "policy_operations"), ("augmentation", "policy")],
            "augmentation.policy_operations = 3, has no effect where policy = 'none', needs policy = 'rand_augment'",
        ),
        (
            {"augmentation": {"blur_sigma": [0.5, 1.0]}},
            [("augmentation", "blur_sigma"), ("augmentation", "blur")],
            "augmentation.blur_sigma = [0.5, 1.0], has no effect where blur = 0.0, needs blur above 0",
        ),
        (
            {"augmentation": {"policy": "trivial_augment"}},
            [("augmentation", "policy")],
            "must be none, trivial_augment_wide or rand_augment; did you mean 'trivial_augment_wide'?",
        ),
        (
            {"batches": {"size": 6, "images_per_class": 4}},
            [("batches", "size"), ("batches", "images_per_class")],
            "batches.size = 6, must be a multiple of images_per_class = 4",
        ),
        (
            {"training": {"epochs": 2, "warmup_epochs": 2}},
            [("training", "warmup_epochs"), ("training", "epochs")],
            "training.warmup_epochs = 2.0, must be less than training.epochs = 2",
        ),
        (
            {"method": {"share": 0.5}},
            [("method", "share"), ("method", "name")],
            "method.share = 0.5, is not read by knowledge_evolution (but by dense_sparse_dense, repr, "
            "neural_regeneration)",
        ),
        (
            {"method": {"name": "later_layer_forgetting"}},
            [("method", "layers"), ("method", "name")],
            "method.layers = [], must be one layer, the first that later_layer_forgetting redraws",
        ),
        (
            {"method": {"teacher_temperature": 2.0}},
            [("method", "teacher_temperature"), ("method", "teacher_weight")],
            "method.teacher_temperature = 2.0, has no effect where teacher_weight = 0",
        ),
        (
            {"method": {"name": "slim_alone"}, "split": {"kind": "wels"}},
            [("method", "name"), ("split", "kind")],
            "method.name = 'slim_alone', needs split.kind = 'kels'",
        ),
        (
            {"method": {"name": "repr"}, "training": {"epochs": 90}},
            [("training", "epochs"), ("method", "cycles")],
            "training.epochs = 90, must be more than method.cycles * (method.full_epochs + method.dropped_epochs) = "
            "90, so that the full network trains last",
        ),
        (
            {"method": {"name": "repeats"}, "network": {"pretrained": True}},
            [("network", "pretrained"), ("method", "name")],
            "network.pretrained = true, does not go with method.name = 'repeats'",
        ),
        (
            {"method": {"name": "born_again"}, "network": {"weights": "w.pt"}},
            [("network", "weights"), ("method", "name")],
            "network.weights = 'w.pt', does not go with method.name = 'born_again', which begins every generation "
            "but the first from random weights",
        ),
        (
            {"network": {"weights": "w.pt", "pretrained": True}},
            [("network", "weights"), ("network", "pretrained")],
            "network.weights = 'w.pt', does not go with pretrained = true: they are two starts",
        ),
        (
            {"network": {"freeze": ["backbone.layer1"]}},
            [("network", "freeze"), ("network", "weights"), ("network", "pretrained")],
            "network.freeze = ['backbone.layer1'], needs weights or pretrained = true: random layers that",
        ),
        (
            {"network": {"weights": "w.pt", "freeze": ["backbone.layer1", "head"]}},
            [("network", "freeze")],
            "network.freeze = ['backbone.layer1', 'head'], must be backbone or modules in it, such as",
        ),
        (
            {"network": {"weights": "w.pt", "freeze": ["backbone"]}, "method": {"name": "shrink_and_perturb"}},
            [("network", "freeze"), ("method", "name")],
            "network.freeze = ['backbone'], does not go with method.name = 'shrink_and_perturb', which changes "
            "weights wherever they lie (but with knowledge_evolution, later_layer_forgetting, neural_regeneration, "
            "restarts, slim_alone)",
        ),
        (
            {"method": {"reset": "starting_weights"}},
            [("method", "reset"), ("network", "weights"), ("network", "pretrained")],
            "method.reset = 'starting_weights', needs network.weights or network.pretrained = true",
        ),
        (
            {"training": {"norm_statistics": "stored"}},
            [("training", "norm_statistics"), ("network", "weights")],
            "training.norm_statistics = 'stored', needs network.weights or network.pretrained = true: those of a "
            "random network are 0 and 1",
        ),
        (
            {
                "training": {"norm_statistics": "stored"},
                "network": {"weights": "w.pt"},
                "split": {"rates": [0.5]},
                "evaluation": {"slim_repair": "auto"},
            },
            [("training", "norm_statistics"), ("split", "rates")],
            "training.norm_statistics = 'stored', does not go with split.rates = [0.5]",
        ),
        (
            {"optimizer": {"backbone_factor": 0.1}, "network": {"weights": "w.pt", "freeze": ["backbone"]}},
            [("optimizer", "backbone_factor"), ("network", "freeze")],
            "optimizer.backbone_factor = 0.1, has no effect where network.freeze has the backbone",
        ),
        (
            {"task": "classification", "miner": {"name": "TripletMarginMiner"}},
            [("miner",), ("task",)],
            "miner = 'TripletMarginMiner', picks tuples of embeddings and has no use where task = 'classification'",
        ),
        (
            {"data": {"image_size": 512}},
            [("evaluation", "resize"), ("data", "image_size")],
            "evaluation.resize = 256, must be at least data.image_size = 512",
        ),
    ],
)
def test_a_problem_knows_its_fields(fields, paths, words):
    (problem,) = problems_of(fields)
    assert list(problem.paths) == paths
    assert words in problem.sentence


def test_all_problems_are_found():
    fields = {"seed": -1, "split": {"rate": 2, "kind": "x", "zork": 1}, "loss": {"name": 1}, "zork": 2}
    assert len(problems_of(fields)) == 6


@pytest.mark.parametrize(
    ("path", "expected"), [((), ""), (("seed",), "seed"), (("data", "mean", 1), "data.mean[1]"), (("a", "b"), "a.b")]
)
def test_dotted(path, expected):
    assert dotted(path) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "null"), (True, "true"), (False, "false"), (1, "1"), ("a", "'a'"), ([1.5], "[1.5]")],
)
def test_shown(value, expected):
    assert shown(value) == expected


def test_long_values_are_cut_off():
    assert len(shown("x" * 81)) == 80
    assert shown("x" * 81).endswith("...")
    assert shown("x" * 78) == repr("x" * 78)


def found_in(fields):
    """Return the problems of any fields, none where they are right."""
    try:
        Recipe.model_validate({"name": "x"} | fields)
    except ValidationError as error:
        return find_problems(error)
    return []


@given(st.sampled_from(SECTIONS), st.data(), JSON)
def test_one_wrong_value_is_told_of_its_field_in_our_own_words(section, data, value):
    field = data.draw(st.sampled_from(list(type(getattr(COMPLETE, section)).model_fields)))
    named = {"name": "x"} if section == "miner" else {}
    for problem in found_in({section: named | {field: value}}):
        assert (section, field) in {path[:2] for path in problem.paths}
        assert "Input should" not in problem.sentence


@given(JSON)
def test_anything_in_the_place_of_a_section_is_described(value):
    for problem in found_in({"split": value}):
        assert problem.paths[0][0] == "split"
        assert "split" in problem.sentence
