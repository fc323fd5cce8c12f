"""Any valid recipe survives being written and read; the strategy follows the schema, so new fields are covered."""

from typing import get_args, get_origin

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ke_metric.recipe.file import load_recipe
from ke_metric.recipe.method_rules import RULES
from ke_metric.recipe.schema import Recipe
from ke_metric.schema import Section

BOUNDS = ("gt", "ge", "lt", "le")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["no", "1e-3", "010", "~", "1:30"]
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=3,
)
SHARES = st.floats(0, 1, exclude_min=True)
OF_ONE_FIELD = {
    "mean": st.tuples(FINITE, FINITE, FINITE),
    "std": st.tuples(SHARES, SHARES, SHARES),
    "scale": st.tuples(SHARES, SHARES).map(sorted),
    "ratio": st.tuples(SHARES, SHARES).map(sorted),
    "blur_sigma": st.tuples(SHARES, SHARES).map(sorted),
    "recall_at": st.lists(st.integers(1, 10**6), min_size=1, max_size=5),
    "keep_whole": st.lists(TEXT, max_size=3),
    "layers": st.lists(TEXT, max_size=3),
    "background": st.sampled_from(["white", "keep", "#00ff7f"]),
    "path_column": TEXT.filter(bool),
    "label_column": TEXT.filter(bool),
    "channel_multiple": st.integers(1, 64),
}


def of_field(name, field):
    """Return a strategy for the values of one field, from its type and its bounds."""
    if name in OF_ONE_FIELD:
        return OF_ONE_FIELD[name]
    bounds = {bound: getattr(mark, bound) for mark in field.metadata for bound in BOUNDS if hasattr(mark, bound)}
    is_optional = type(None) in get_args(field.annotation)
    kinds = get_args(field.annotation) if is_optional else [field.annotation]
    return st.one_of([of_kind(kind, bounds) for kind in kinds])


def of_kind(kind, bounds):
    if kind is int:
        return st.integers(bounds["ge"], bounds.get("le", 2**31 - 1))
    if kind is float:
        low, high = bounds.get("gt", bounds.get("ge")), bounds.get("lt", bounds.get("le"))
        open_ends = {"exclude_min": "gt" in bounds, "exclude_max": "lt" in bounds}
        return st.floats(low, high, allow_nan=False, allow_infinity=False, **open_ends)
    if get_origin(kind) is dict:
        return st.dictionaries(TEXT, JSON, max_size=3)
    if isinstance(kind, type) and issubclass(kind, Section):
        return of_section(kind)
    simple = {type(None): st.none(), bool: st.booleans(), str: TEXT}
    return simple[kind] if kind in simple else st.sampled_from(get_args(kind))


def of_section(section):
    return st.fixed_dictionaries({name: of_field(name, field) for name, field in section.model_fields.items()})


def only_what_is_read(method):
    """Leave out what the method does not read, and give it what it needs."""
    read = {"name", *RULES[method["name"]].reads}
    kept = {name: value for name, value in method.items() if name in read}
    if method["name"] == "later_layer_forgetting":
        kept["layers"] = [*method["layers"], "layer4"][:1]
    if method["name"] != "born_again" and not kept.get("teacher_weight") and not kept.get("slim_last"):
        kept.pop("teacher_temperature", None)
    return kept


def augment_consistently(augmentation):
    """Leave out what no step reads."""
    if augmentation["policy"] != "rand_augment":
        del augmentation["policy_operations"], augmentation["policy_magnitude"]
    if not augmentation["blur"]:
        del augmentation["blur_sigma"]


def start_consistently(fields):
    """Have one start at most, and what goes with it."""
    network, method = fields["network"], fields["method"]
    rules = RULES[method["name"]]
    if rules.begins_anew:
        network |= {"pretrained": False, "weights": None}
    network["weights"] = None if network["pretrained"] else (network["weights"] or None)
    is_given = bool(network["pretrained"] or network["weights"])
    network["freeze"] = ["backbone.layer1"] if is_given and not rules.changes_all else []
    if not is_given or fields["split"]["rates"]:
        fields["training"]["norm_statistics"] = "batch"
    if method.get("reset") == "starting_weights" and not is_given:
        method["reset"] = "official"


def average_consistently(fields):
    """Ask for one average at most, of what there is, and let a child inherit another where there is one."""
    training, method = fields["training"], fields["method"]
    if training["average"] is not None or method["name"] == "repr" or training["epochs"] < 2:
        training["average_last"] = None
    if method["name"] == "repr":
        training["average"] = None
    if training["average_last"] is not None:
        training["average_last"] = min(training["average_last"], training["epochs"])
    elif training["average"] is None:
        method.pop("inherit_average", None)


def wait_consistently(fields):
    """Have patience where it goes with the rest."""
    training, method = fields["training"], fields["method"]
    is_last = training["average_last"] is not None or not method.get("inherit_average", True)
    if is_last or method["name"] == "repr":
        training["patience"] = None


def made_consistent(fields):
    """Mend what the schema asks of a name, and of two fields together."""
    fields["name"] = f"x{len(fields['name'])}"
    fields["batches"]["size"] *= fields["batches"]["images_per_class"]
    fields["method"] = only_what_is_read(fields["method"])
    if fields["method"]["name"] == "repr":
        cycle = fields["method"].get("full_epochs", 20) + fields["method"].get("dropped_epochs", 10)
        fields["training"]["epochs"] = 1 + fields["method"].get("cycles", 3) * cycle
    fields["training"]["warmup_epochs"] = min(fields["training"]["warmup_epochs"], fields["training"]["epochs"] / 2)
    if fields["method"]["name"] == "slim_alone":
        fields["split"]["kind"] = "kels"
    if fields["method"].get("slim_last"):
        fields["split"]["kind"] = "kels"
    fields["generations"] = min(1000, fields["generations"] + 3)
    if fields["evaluation"]["slim_repair"] in ("whiten", "refit"):
        fields["evaluation"]["slim_repair"] = "whiten" if fields["task"] == "retrieval" else "refit"
    fields["split"]["rates"] = [0.25, 0.5, 0.75]
    is_narrow = fields["split"]["kind"] == "wels" or fields["method"]["name"] == "slim_alone"
    if is_narrow or fields["evaluation"]["slim_repair"] == "none":
        fields["split"] |= {"rates": [], "joint": "all", "joint_teacher": 0.0}
    if fields["split"]["rates"]:
        fields["training"]["compile"] = False
    augment_consistently(fields["augmentation"])
    start_consistently(fields)
    average_consistently(fields)
    wait_consistently(fields)
    if fields["task"] == "classification":
        fields["miner"] = None
    if fields["task"] == "retrieval":
        fields["augmentation"] |= {"mixup": 0.0, "cutmix": 0.0}
    is_nested = fields["task"] == "retrieval" and fields["network"]["embedding_size"] > 2
    fields["network"]["nested_sizes"] = [2] if is_nested else []
    fields["network"].pop("embedding_size" if fields["task"] == "classification" else "head")
    fields["evaluation"]["resize"] = max(fields["evaluation"]["resize"], fields["data"]["image_size"])
    return fields


RECIPES = of_section(Recipe).map(made_consistent).map(Recipe.model_validate)
any_number_of_times = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@any_number_of_times
@given(recipe=RECIPES)
def test_a_written_recipe_is_read_as_an_equal_one(recipe, tmp_path):
    path = tmp_path / "other-name.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    found = load_recipe(path)
    assert found == recipe
    assert found.digest == recipe.digest
    assert found.to_yaml() == recipe.to_yaml()


@any_number_of_times
@given(one=RECIPES, other=RECIPES)
def test_digests_agree_only_where_recipes_do(one, other):
    assert (one.digest == other.digest) == (one == other)
    assert Recipe.model_validate(one.model_dump()).digest == one.digest
