"""From file and overrides to a recipe: precedence, blame, and files that are none."""

import contextlib
import errno
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.file import MAX_RECIPE_BYTES, load_recipe
from ke_metric.recipe.schema import Recipe

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write recipes/x.yaml and make its path short, as a user would type it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()

    def write(content, name="x.yaml"):
        path = Path("recipes") / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refusal(path, overrides=(), **others):
    """Return the lines of the error; its exit code is always that of a recipe."""
    with pytest.raises(KeMetricError) as caught:
        load_recipe(path, overrides, **others)
    assert caught.value.exit_code is ExitCode.RECIPE
    return str(caught.value).split("\n")


# -- precedence


def test_what_is_left_out_takes_the_default(write):
    assert load_recipe(write("split: {rate: 0.8}")) == Recipe(name="x", split={"rate": 0.8})


def test_a_recipe_is_named_after_its_file_unless_it_has_a_name(write):
    assert load_recipe(write("{}", "cars_r50.v2.yaml")).name == "cars_r50.v2"
    assert load_recipe(write("name: mine")).name == "mine"
    assert load_recipe(write("name: mine"), ["name=other"]).name == "other"


def test_the_path_may_be_text(write):
    assert load_recipe(str(write("seed: 3"))).seed == 3


def test_overrides_win_over_the_file_and_the_seed_over_both(write):
    path = write("seed: 1\nsplit: {rate: 0.8, kind: wels}")
    recipe = load_recipe(path, ["seed=2", "split.rate=0.3", "split.rate=0.4"], seed=7)
    assert (recipe.seed, recipe.split.rate, recipe.split.kind) == (7, 0.4, "wels")
    assert load_recipe(path, ["seed=2"]).seed == 2
    assert load_recipe(path, seed=0).seed == 0


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("split.rate=1e-1", ("split", "rate"), 0.1),
        ("split={rate: 0.7}", ("split", "rate"), 0.7),
        ("miner=null", ("miner",), None),
        ("miner.name=AngularMiner", ("miner", "name"), "AngularMiner"),
        ("evaluation.recall_at=[1,10]", ("evaluation", "recall_at"), (1, 10)),
        ("evaluation.slim=false", ("evaluation", "slim"), False),
        ("loss.arguments.alpha=32", ("loss", "arguments"), {"margin": 0.1, "alpha": 32}),
        ("loss.arguments.margin=0.2", ("loss", "arguments"), {"margin": 0.2}),
        ("loss.arguments={}", ("loss", "arguments"), {}),
        ("loss.arguments.a.b=c=d", ("loss", "arguments"), {"margin": 0.1, "a": {"b": "c=d"}}),
        ("data.root='1'", ("data", "root"), "1"),
        (" data.root = a b ", ("data", "root"), "a b"),
    ],
)
def test_an_override_is_typed_by_yaml_and_reaches_any_depth(write, override, place, value):
    found = load_recipe(write("loss: {arguments: {margin: 0.1}}\nminer: {name: TripletMarginMiner}"), [override])
    for part in place:
        found = getattr(found, part)
    assert found == value


def test_an_override_may_fill_a_section_that_is_null(write):
    assert load_recipe(write("miner:\n"), ["miner.name=AngularMiner"]).miner.name == "AngularMiner"


def test_an_override_may_repair_the_file(write):
    assert load_recipe(write("split: {rate: 4}"), ["split.rate=0.4"]).split.rate == 0.4


# -- blame


def test_all_problems_are_listed_and_blamed_on_the_file(write):
    path = write("split: {rate: 1.4, rat: 0.8}\ntraining: {epochs: many}\n")
    assert refusal(path) == [
        "recipes/x.yaml: split.rate = 1.4, must be greater than 0 and at most 1",
        "recipes/x.yaml: unknown field 'split.rat'; did you mean 'rate'? Fields of split: "
        "kind, rate, keep_whole, channel_multiple, rates, joint, joint_teacher",
        "recipes/x.yaml: training.epochs = 'many', must be a whole number",
    ]


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (
            ["split.rat=0.8"],
            [
                "--set split.rat=0.8: unknown field 'split.rat'; did you mean 'rate'? "
                "Fields of split: kind, rate, keep_whole, channel_multiple, rates, joint, joint_teacher"
            ],
        ),
        (["split.rate=2"], ["--set split.rate=2: split.rate = 2, must be greater than 0 and at most 1"]),
        (
            ["split.rate=2", "split.rate=3"],
            ["--set split.rate=3: split.rate = 3, must be greater than 0 and at most 1"],
        ),
        (
            ["split.rate=2", "split={rate: 3}"],
            ["--set split={rate: 3}: split.rate = 3, must be greater than 0 and at most 1"],
        ),
        (["miner.arguments.margin=0.1"], ["--set miner.arguments.margin=0.1: miner.name is missing"]),
        (
            ["training.epochs=1", "split.rate=0.3"],
            ["--set training.epochs=1: training.warmup_epochs = 2.0, must be less than training.epochs = 1"],
        ),
        (
            ["training.epochs=1", "training.warmup_epochs=1"],
            [
                "--set training.epochs=1, --set training.warmup_epochs=1: "
                "training.warmup_epochs = 1.0, must be less than training.epochs = 1"
            ],
        ),
        (
            ["seed.x=3", "loss.arguments.margin.x=1"],
            [
                "--set seed.x=3: seed is 4, which has no fields",
                "--set loss.arguments.margin.x=1: loss.arguments.margin is 0.1, which has no fields",
            ],
        ),
        (
            ["split.rate", "=1", "a..b=1", "split.rate=", "split.rate= "],
            [
                f"--set {text}: must have the form field=value, for example split.rate=0.8"
                for text in ["split.rate", "=1", "a..b=1", "split.rate=", "split.rate= "]
            ],
        ),
        (
            ["split.rate=[1", "keep=some"],
            [
                "--set split.rate=[1: line 1, column 3: while parsing a flow sequence expected ',' or ']', "
                "but got '<stream end>'",
                "--set keep=some: keep = 'some', must be last, best or all",
            ],
        ),
    ],
)
def test_an_override_is_blamed_on_its_own_text(write, overrides, lines):
    path = write("seed: 4\ntraining: {warmup_epochs: 2}\nloss: {arguments: {margin: 0.1}}")
    assert refusal(path, overrides) == lines


def test_a_setting_that_cannot_be_applied_does_not_take_the_blame_of_the_file(write):
    assert refusal(write("split: 3"), ["split.rate=0.5"]) == [
        "--set split.rate=0.5: split is 3, which has no fields",
        "recipes/x.yaml: split = 3, must be a mapping with fields of split: kind, rate, keep_whole, "
        "channel_multiple, rates, joint, joint_teacher",
    ]


def test_the_seed_is_blamed_on_its_option(write):
    assert refusal(write("seed: 1"), ["seed=-2"], seed=-1) == [
        "--seed: seed = -1, must be at least 0 and less than 2147483648"
    ]


def test_a_name_taken_from_the_file_says_so(write):
    (line,) = refusal(write("{}", "my cars.yaml"))
    assert line.startswith("recipes/my cars.yaml (named after the file): name = 'my cars', must be 1 to 100 letters")


# -- files that are no recipes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("# nothing but a comment\n", "is empty"),
        ("- a\n- b\n", "holds ['a', 'b']; a recipe is a mapping"),
        ("hello", "holds 'hello'; a recipe is a mapping"),
        ("split: {rate: 0.5", "line 1, column 18: while parsing a flow mapping"),
        ("seed: 1\nseed: 2\n", "line 2, column 1: the key 'seed' is given twice"),
        (b"\x89PNG\r\n\x1a\n", "is not a text file in UTF-8 (byte 0x89 at position 1)"),
        (b"a: 1\n\xff", "is not a text file in UTF-8 (byte 0xff at position 6)"),
        ("a" * (MAX_RECIPE_BYTES + 1), "is larger than 1000000 bytes"),
    ],
)
def test_files_that_are_no_recipes(write, content, words):
    (line,) = refusal(write(content))
    assert line.startswith("recipes/x.yaml: ")
    assert words in line


def test_a_file_of_the_largest_size_is_read(write):
    assert load_recipe(write("seed: 5\n".ljust(MAX_RECIPE_BYTES, "#"))).seed == 5


def test_a_file_from_windows_is_read(write):
    assert load_recipe(write(b"\xef\xbb\xbfseed: 5\r\nsplit:\r\n  rate: 0.25\r\n")).split.rate == 0.25


def test_a_missing_file_names_its_closest_neighbor(write):
    write("{}", "cars_resnet50.yaml")
    assert refusal("recipes/cars_resnet5.yaml") == [
        "recipes/cars_resnet5.yaml: there is no such file; did you mean 'cars_resnet50.yaml'?"
    ]
    assert refusal("elsewhere/x.yaml") == ["elsewhere/x.yaml: there is no such file"]


def test_a_folder_is_no_recipe(write):
    write("{}")
    assert refusal("recipes") == ["recipes: cannot be read: Is a directory"]


def test_a_file_that_may_not_be_read_is_told(write, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    path = write("{}")
    monkeypatch.setattr(Path, "open", refuse)
    assert refusal(path) == ["recipes/x.yaml: cannot be read: Permission denied"]


# -- what we ship, and what nobody would


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_are_right(path):
    assert load_recipe(path).name == path.stem


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary() | st.text().map(str.encode), override=st.text())
def test_whatever_is_given_the_answer_is_a_recipe_or_our_error(write, content, override):
    path = write(content)
    with contextlib.suppress(KeMetricError):
        load_recipe(path, [override])
    with contextlib.suppress(KeMetricError):
        load_recipe(path, [f"loss.arguments.{override}"])
