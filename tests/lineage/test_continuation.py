"""A recipe continues a lineage if no weight would come out otherwise; else the fields are named, with both values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ke_metric.lineage.folder import FREE_FIELDS, changed_fields, forbidden_changes
from ke_metric.recipe.schema import Recipe


def recipe(**fields):
    return Recipe.model_validate({"name": "x", "generations": 3, **fields})


def test_a_recipe_continues_itself():
    assert changed_fields(recipe(), recipe()) == {}
    assert forbidden_changes(recipe(), recipe()) == {}


@pytest.mark.parametrize(
    ("stored", "given", "expected"),
    [
        ({}, {"seed": 1}, {"seed": "seed = 1, the lineage has 0"}),
        ({}, {"split": {"rate": 0.7}}, {"split.rate": "split.rate = 0.7, the lineage has 0.5"}),
        ({}, {"data": {"train_classes": 9}}, {"data.train_classes": "data.train_classes = 9, the lineage has None"}),
        (
            {"loss": {"arguments": {"margin": 0.2}}},
            {"loss": {"arguments": {"alpha": 32}}},
            {
                "loss.arguments.margin": "loss.arguments.margin is not set, the lineage has 0.2",
                "loss.arguments.alpha": "loss.arguments.alpha = 32, the lineage does not set it",
            },
        ),
        (
            {},
            {"miner": {"name": "TripletMarginMiner"}},
            {"miner": "miner = {'name': 'TripletMarginMiner', 'arguments': {}}, the lineage has None"},
        ),
        (
            {"loss": {"arguments": {"a": 1}}},
            {"loss": {"arguments": {"a": True}}},
            {"loss.arguments.a": "loss.arguments.a = True, the lineage has 1"},
        ),
        (
            {"evaluation": {"recall_at": [1, 2]}},
            {"evaluation": {"recall_at": [1]}},
            {"evaluation.recall_at": "evaluation.recall_at = [1], the lineage has [1, 2]"},
        ),
        (
            {},
            {"generations": 2},
            {"generations": "generations = 2, the lineage has 3 (it may grow, not shrink)"},
        ),
        (
            {},
            {"method": {"name": "layer_wise"}, "generations": 4},
            {
                "method.name": "method.name = 'layer_wise', the lineage has 'knowledge_evolution'",
            },
        ),
        (
            {"method": {"name": "layer_wise"}},
            {"method": {"name": "layer_wise"}, "generations": 4},
            {
                "generations": "generations = 4, the lineage has 3 (layer_wise shares its units out among the "
                "generations it was begun with)"
            },
        ),
        (
            {"method": {"slim_last": True}},
            {"method": {"slim_last": True}, "generations": 4},
            {
                "generations": "generations = 4, the lineage has 3 (method.slim_last makes the last one the slim "
                "network)"
            },
        ),
        (
            {"method": {"name": "neural_regeneration", "final_share": 0.1}},
            {"method": {"name": "neural_regeneration", "final_share": 0.1}, "generations": 4},
            {"generations": "generations = 4, the lineage has 3 (method.final_share belongs to the last one)"},
        ),
        (
            {},
            {"method": {"reset": "zero"}},
            {"method.reset": "method.reset = 'zero', the lineage has 'official'"},
        ),
        (
            {},
            {"keep": "all", "seed": 2},
            {"keep": "keep = 'all', the lineage has 'last'", "seed": "seed = 2, the lineage has 0"},
        ),
    ],
)
def test_what_makes_it_another_lineage_is_named_with_both_values(stored, given, expected):
    assert forbidden_changes(recipe(**stored), recipe(**given)) == expected


@pytest.mark.parametrize("fields", [{"generations": 4}, {"data": {"root": "elsewhere"}}, {"data": {"workers": 4}}])
def test_what_changes_no_weight_is_allowed_and_told(fields):
    assert forbidden_changes(recipe(), recipe(**fields)) == {}
    assert len(changed_fields(recipe(), recipe(**fields))) == 1
    assert len(changed_fields(recipe(**fields), recipe())) == 1


@given(
    st.dictionaries(st.sampled_from("ab"), st.sampled_from([0, 1, True, 1.0, None, "x", [1], {}, {"c": 1}])),
    st.dictionaries(st.sampled_from("ab"), st.sampled_from([0, 1, True, 1.0, None, "x", [1], {}, {"c": 1}])),
)
def test_recipes_without_a_difference_have_one_digest(stored, given):
    """The digest is the authority: what it tells apart has a changed field, and the other way round."""
    old, new = (recipe(loss={"arguments": arguments}) for arguments in (stored, given))
    assert (changed_fields(old, new) == {}) == (old.digest == new.digest)


def test_the_free_fields_exist():
    fields = recipe().model_dump()
    for name in FREE_FIELDS:
        section, field = name.split(".")
        assert field in fields[section]
