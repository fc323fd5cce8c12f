"""Which fields of a recipe are told as special, and that no place on this machine is."""

import pytest

from ke_metric.recipe.file import load_recipe
from ke_metric.recipe.schema import Recipe
from ke_metric.report.recipe_section import SHIPPED, differences, recipe_section, shipped_recipe


class StoredRecipe:
    """As much of a lineage as the section reads."""

    def __init__(self, recipe):
        self.recipe = recipe


def test_a_shipped_recipe_differs_in_nothing_from_itself():
    recipe = load_recipe(SHIPPED / "glyphs_resnet18.yaml")
    assert shipped_recipe("glyphs_resnet18") == recipe
    section = recipe_section(StoredRecipe(recipe))
    assert section.lead == ["No field differs from the shipped recipe glyphs_resnet18."]
    assert len(section.parts) == 1


def test_changed_fields_are_told_with_both_values():
    path = SHIPPED / "glyphs_resnet18.yaml"
    recipe = load_recipe(path, ["split.rate=0.8", "keep=all", "evaluation.recall_at=[1, 10]"])
    table, _ = recipe_section(StoredRecipe(recipe)).parts
    assert [list(row) for row in table.rows] == [
        ["keep", "all", "last"],
        ["split.rate", "0.8", "0.5"],
        ["evaluation.recall_at", "[1, 10]", "[1, 2, 4, 8]"],
    ]


def test_a_recipe_of_ones_own_is_held_against_the_defaults():
    recipe = Recipe(name="mine", generations=3)
    assert differences(recipe, Recipe(name="other")) == {"generations": (3, Recipe(name="x").generations)}
    assert "the defaults of the schema" in recipe_section(StoredRecipe(recipe)).lead[0]


@pytest.mark.parametrize("name", ["../secret", "*", "glyphs*"])
def test_a_name_is_no_pattern_and_no_path(name):
    assert shipped_recipe(name) is None


@pytest.mark.parametrize("root", ["/somewhere/deep/birds", "~/pictures/birds"])
def test_of_the_data_folder_the_last_name_is_shown(root):
    recipe = Recipe(name="mine", data={"benchmark": "folder", "root": root})
    table, text = recipe_section(StoredRecipe(recipe)).parts
    assert ["data.root", "birds", "null"] in [list(row) for row in table.rows]
    assert "root: birds" in text.text
    assert "deep" not in text.text
    assert "pictures" not in text.text
