"""The real commands on small data: what they print, write, refuse, and exit with."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from ke_metric.cli import main
from ke_metric.errors import ExitCode
from ke_metric.losses.building import build_loss
from ke_metric.recipe.file import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
TINY = """
generations: 2
keep: all
data: {benchmark: folder, image_size: 32, store_size: 32}
network: {backbone: squeezenet1_1, embedding_size: 8}
loss: {name: ProxyAnchorLoss, learning_rate_factor: 10}
batches: {size: 8, images_per_class: 2}
optimizer: {name: adamw, learning_rate: 1e-3}
training: {epochs: 1, precision: fp32}
evaluation: {resize: 32, recall_at: [1, 2]}
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def expect(code: ExitCode, *arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result.stderr if code else result.stdout


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def images(make_class_folders, tmp_path: Path) -> Path:
    return make_class_folders(tmp_path / "images", classes=8, images_per_class=4)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> tuple[Path, dict]:
    """A finished lineage on glyphs, and what training printed."""
    folder = tmp_path_factory.mktemp("grown") / "lineage"
    printed = expect(
        ExitCode.OK, "train", recipe, "--lineage", folder, "--json", "--set", "data.benchmark=glyphs",
        "--set", "data.train_classes=8", "--set", "data.test_classes=4",
    )  # fmt: skip
    return folder, json.loads(printed)


def test_train_prints_one_document_with_every_generation(grown):
    folder, document = grown
    assert document["lineage"] == str(folder)
    assert [generation["generation"] for generation in document["generations"]] == [1, 2]
    for generation in document["generations"]:
        for network in ("dense", "slim"):
            names = {"recall@1", "recall@2", "map@r", "r_precision", "nmi", "ami"}
            assert names <= generation[network].keys()
            assert all(0 <= generation[network][name] <= 1 for name in names - {"ami"})


def test_train_writes_the_files_that_the_design_names(grown):
    folder, _ = grown
    top = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert top == {
        "recipe.yaml", "recipe.resolved.yaml", "lineage.json", "log.jsonl", "tensorboard", "data.json",
        "untrained.json",
        "generation-001", "generation-002",
    }  # fmt: skip
    generation = {path.name for path in (folder / "generation-002").iterdir()}
    assert {"weights.safetensors", "split.json", "scorecard.json", "training.jsonl", "provenance.json"} <= generation
    assert json.loads((folder / "lineage.json").read_text())["status"] == "finished"
    assert (folder / "recipe.yaml").read_text() == TINY


def test_eval_gives_the_stored_scores_again(grown):
    folder, document = grown
    result = run("eval", "--lineage", folder, "--gen", 2, "--json")
    assert result.exit_code == 0, result.output
    scored = json.loads(result.stdout)
    assert scored["untrained"]["dense"] == document["untrained"]["dense"]
    assert scored == {"lineage": str(folder), "untrained": scored["untrained"], **document["generations"][1]}
    assert "equal to the stored scorecard" in result.stderr


def test_eval_all_best_and_one_network(grown):
    folder, document = grown
    scored = json.loads(expect(ExitCode.OK, "eval", "--lineage", folder, "--gen", "all", "--json"))
    assert scored["generations"] == document["generations"]
    best = max(document["generations"], key=lambda generation: generation["dense"]["recall@1"])
    scored = json.loads(
        expect(ExitCode.OK, "eval", "--lineage", folder, "--gen", "best", "--network", "slim", "--json")
    )
    assert scored == {"lineage": str(folder), "generation": scored["generation"], "slim": scored["slim"]}
    assert best["dense"]["recall@1"] == document["generations"][scored["generation"] - 1]["dense"]["recall@1"]


def test_eval_takes_the_newest_lineage_and_says_which(grown, tmp_path, monkeypatch):
    folder, _ = grown
    (tmp_path / "lineages").mkdir()
    shutil.copytree(folder, tmp_path / "lineages" / "copied")
    monkeypatch.chdir(tmp_path)
    result = run("eval")
    assert result.exit_code == 0, result.output
    assert "newest lineage: lineages/copied" in result.stderr
    assert "generation 2: equal to the stored scorecard" in result.stderr
    assert "dense" in result.stdout
    assert "slim" in result.stdout


def test_quality_gate(grown):
    folder, document = grown
    reached = document["generations"][0]["dense"]["recall@1"]
    arguments = ("eval", "--lineage", folder, "--gen", 1, "--network", "dense", "--json")
    assert json.loads(expect(ExitCode.OK, *arguments, "--min", f"recall@1={reached}"))["dense"]["recall@1"] == reached
    result = run(*arguments, "--min", f"recall@1={reached}", "--min", "r_precision=99.5%")
    assert result.exit_code == ExitCode.GATE
    assert json.loads(result.stdout)["generation"] == 1  # the scores are printed all the same
    assert "r_precision" in result.stderr
    assert "below the minimum 0.995 (99.5 %)" in result.stderr
    expect(ExitCode.OK, *arguments, "--min", f"recall@1={99 * reached}%", "--min", "queries=1")
    assert "did you mean 'recall@1'" in expect(ExitCode.USAGE, *arguments, "--min", "recal@1=0.1")
    assert "SCORE=VALUE" in expect(ExitCode.USAGE, *arguments, "--min", "recall@1")
    assert "SCORE=VALUE" in expect(ExitCode.USAGE, *arguments, "--min", "recall@1=high")


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ("top1=38", "for 38 % write top1=38% or top1=0.38"),
        ("recall@1=1.5", "for 1.5 % write recall@1=1.5% or recall@1=0.015"),
        ("nmi=120%", "nothing is above 1"),
        ("map@r=300", "nothing is above 1"),
        ("recall@1=101%", "nothing is above 1, and 100 % is the most"),
    ],
)
def test_a_gate_above_one_is_refused_before_anything_is_scored(gate, words, tmp_path):
    told = expect(ExitCode.USAGE, "eval", "--lineage", tmp_path / "nowhere", "--min", gate)
    assert "shares from 0 to 1, which tables show in percent" in told
    assert words in told


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ("recall@1=-0.1", "recall@1 is never below 0"),
        ("map@r=-5%", "map@r is never below 0"),
        ("queries=-1", "queries is never below 0"),
        ("queries=60%", "queries is a number of queries, which has no percent"),
        ("queries_of_nothing=60", "nothing is above 1"),
    ],
)
def test_a_gate_that_says_nothing_is_refused(gate, words, tmp_path):
    assert words in expect(ExitCode.USAGE, "eval", "--lineage", tmp_path / "nowhere", "--min", gate)
    for allowed in ("queries=60", "ami=-0.1", "recall@1=100%", "recall@1=0"):
        expect(ExitCode.LINEAGE, "eval", "--lineage", tmp_path / "nowhere", "--min", allowed)


def test_generations_that_are_not_there(grown, tmp_path):
    folder, _ = grown
    assert "no generation 3; there are generations 1 to 2" in expect(
        ExitCode.LINEAGE, "eval", "--lineage", folder, "--gen", 3
    )
    last = json.loads(expect(ExitCode.OK, "eval", "--lineage", folder, "--gen", "last", "--json"))
    assert last["generation"] == 2
    assert "must be a number, all, last or best; did you mean 'best'" in expect(
        ExitCode.USAGE, "eval", "--lineage", folder, "--gen", "bst"
    )
    assert "no lineage here" in expect(ExitCode.LINEAGE, "eval", "--lineage", tmp_path, "--gen", 1)


def test_a_lineage_is_not_replaced_continued_or_mixed_by_mistake(grown, recipe):
    folder, _ = grown
    glyphs = ("--set", "data.benchmark=glyphs", "--set", "data.train_classes=8", "--set", "data.test_classes=4")
    train = ("train", recipe, "--lineage", folder, *glyphs)
    assert "--resume" in expect(ExitCode.LINEAGE, *train)
    assert "finished" in expect(ExitCode.LINEAGE, *train, "--resume")
    told = expect(ExitCode.LINEAGE, *train, "--resume", "--set", "split.rate=0.8")
    assert "split.rate = 0.8, the lineage has 0.5" in told
    assert "exclude each other" in expect(ExitCode.USAGE, *train, "--resume", "--overwrite")
    assert json.loads((folder / "lineage.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    "setting", ["network.backbone=resnt50", "loss.name=Typo", "batches.size=4096", "evaluation.backend=faiss-gpu"]
)
def test_overwrite_deletes_nothing_before_the_new_recipe_is_known_to_work(grown, recipe, tmp_path, setting):
    kept = tmp_path / "kept"
    shutil.copytree(grown[0], kept)
    before = sorted(path.relative_to(kept) for path in kept.rglob("*") if path.name != ".lock")
    arguments = ("--set", "data.benchmark=glyphs", "--set", "data.train_classes=8", "--set", "data.test_classes=4")
    result = run("train", recipe, "--lineage", kept, "--overwrite", *arguments, "--set", setting)
    assert result.exit_code in (ExitCode.RECIPE, ExitCode.ENVIRONMENT), result.output
    assert sorted(path.relative_to(kept) for path in kept.rglob("*") if path.name != ".lock") == before


def test_a_complete_lineage_whose_end_was_not_recorded_is_finished_by_resume(grown, recipe, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(grown[0], copied)
    facts = json.loads((copied / "lineage.json").read_text())
    (copied / "lineage.json").write_text(json.dumps(facts | {"status": "running"}))
    told = expect(ExitCode.LINEAGE, "train", copied / "recipe.resolved.yaml", "--lineage", copied, "--resume")
    assert "finished" in told
    assert json.loads((copied / "lineage.json").read_text())["status"] == "finished"


def test_the_current_folder_is_no_lineage(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "one of the lineage's own" in expect(ExitCode.USAGE, "train", recipe, "--lineage", ".")


def test_a_gate_needs_a_number_and_a_network_that_is_scored(grown, tmp_path):
    folder, _ = grown
    assert "SCORE=VALUE" in expect(ExitCode.USAGE, "eval", "--lineage", folder, "--gen", 1, "--min", "recall@1=nan")
    unscored = tmp_path / "unscored"
    shutil.copytree(folder, unscored)
    resolved = unscored / "recipe.resolved.yaml"
    resolved.write_text(resolved.read_text().replace("slim: true", "slim: false"))
    told = expect(
        ExitCode.LINEAGE, "eval", "--lineage", unscored, "--gen", 1, "--network", "slim", "--min", "recall@1=0.99"
    )
    assert "no slim network is scored" in told


def test_modules_can_be_kept_whole(recipe, images):
    counts = []
    for setting in ("split.keep_whole=[]", "split.keep_whole=[backbone.features.3]"):
        arguments = ("--dry-run", "--json", "--set", f"data.root={images}", "--set", setting)
        counts.append(json.loads(expect(ExitCode.OK, "train", recipe, *arguments))["parameters_reset"])
    assert counts[1] < counts[0]
    told = expect(
        ExitCode.RECIPE, "train", recipe, "--dry-run", "--set", f"data.root={images}", "--set", "split.keep_whole=[x]"
    )
    assert "'x'" in told


def test_more_generations_can_be_asked_for(grown, recipe, tmp_path):
    folder, document = grown
    longer = tmp_path / "longer"
    shutil.copytree(folder, longer)
    printed = expect(
        ExitCode.OK, "train", longer / "recipe.resolved.yaml", "--lineage", longer, "--resume", "--json",
        "--set", "generations=3",
    )  # fmt: skip
    generations = json.loads(printed)["generations"]
    assert generations[:2] == document["generations"]
    assert len(generations) == 3


def test_weights_that_were_not_kept(grown, tmp_path):
    folder, _ = grown
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    (copied / "generation-001" / "weights.safetensors").unlink()
    assert "were not kept" in expect(ExitCode.LINEAGE, "eval", "--lineage", copied, "--gen", 1)
    result = run("eval", "--lineage", copied, "--gen", "all", "--json")
    assert [generation["generation"] for generation in json.loads(result.stdout)["generations"]] == [2]
    assert "weights were kept of 1 of 2 generations" in result.stderr


def test_dry_run_tells_and_writes_nothing(recipe, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    printed = expect(ExitCode.OK, "train", recipe, "--dry-run", "--json", "--set", f"data.root={images}")
    document = json.loads(printed)
    assert document["train"] == {"images": 16, "classes": 4}
    assert document["query"] == document["gallery"] == {"images": 16, "classes": 4}
    assert document["batches_per_epoch"] == 2
    assert document["parameters"] == document["parameters_fit"] + document["parameters_reset"]
    assert 0 < document["parameters_slim"] < document["parameters"]
    assert document["lineage"] == "lineages/tiny-s0"
    assert document["expected_disk_bytes"] > 4 * document["parameters"]
    assert sorted(tmp_path.rglob("*")) == before
    assert "nothing was written" in expect(ExitCode.OK, "train", recipe, "--dry-run", "--set", f"data.root={images}")


@pytest.mark.parametrize("name", ["cars_resnet50", "cars_googlenet", "cub_resnet50", "cub_googlenet"])
def test_shipped_recipes_train_a_step_and_score_on_files_in_the_real_layout(name, make_cars, make_cub, tmp_path):
    root = make_cars(tmp_path / "files", "A") if name.startswith("cars") else make_cub(tmp_path / "files")
    shrink = [
        f"data.root={root}", "data.verify_counts=false", "data.image_size=32", "data.store_size=32", "data.workers=0",
        "evaluation.resize=32", "evaluation.kmeans_seeds=1", "batches.size=8", "training.epochs=1",
        "training.warmup_epochs=0", "generations=1",
    ]  # fmt: skip
    overrides = [word for field in shrink for word in ("--set", field)]
    printed = expect(
        ExitCode.OK, "train", RECIPES / f"{name}.yaml", "--lineage", tmp_path / "l", "--json", *overrides
    )
    (generation,) = json.loads(printed)["generations"]
    assert {"recall@1", "recall@2", "recall@4", "recall@8", "map@r", "nmi"} <= generation["dense"].keys()
    assert generation["slim"].keys() == generation["dense"].keys()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cars_resnet50", "cars_annos.mat"), ("cars_googlenet", "car_ims"), ("cub_resnet50", "images.txt")],
)
def test_missing_data_names_the_files_and_the_command(name, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = expect(ExitCode.DATA, "train", RECIPES / f"{name}.yaml")
    assert expected in told
    assert "ke-metric data prepare" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("split.rat=0.5", "did you mean 'rate'"),
        ("split.rate=1.4", "at most 1"),
        ("training.epochs=many", "whole number"),
        ("loss.name=ProxyAnchorLos", "did you mean 'ProxyAnchorLoss'"),
        ("loss.arguments.alfa=3", "alpha"),
        ("network.backbone=resnet19", "did you mean 'resnet1"),
        ("data.benchmark=glyph", "did you mean 'glyphs'"),
        ("batches.images_per_class=1", "classes"),
    ],
)
def test_recipe_errors(recipe, images, setting, words, tmp_path):
    folder = tmp_path / "lineage"
    told = expect(
        ExitCode.RECIPE, "train", recipe, "--lineage", folder, "--set", f"data.root={images}", "--set", setting
    )
    assert words in told
    # A second try with the mistake mended needs no --overwrite: nothing was trained.
    retried = run("train", recipe, "--lineage", folder, "--set", f"data.root={images}", "--set", "generations=1")
    assert retried.exit_code == 0, retried.output


def test_a_truncated_picture_is_named(recipe, images, tmp_path):
    broken = sorted(images.rglob("*.jpg"))[5]
    broken.write_bytes(broken.read_bytes()[:300])
    told = expect(ExitCode.DATA, "train", recipe, "--lineage", tmp_path / "l", "--set", f"data.root={images}")
    assert broken.name in told
    told = run("data", "check", images)
    assert told.exit_code == ExitCode.DATA
    assert broken.name in told.stdout
    assert not (tmp_path / "l").exists()


def test_a_class_with_one_image_trains_and_is_reported(recipe, images, tmp_path):
    for folder in sorted(path for path in images.iterdir() if path.is_dir())[:3]:
        for picture in sorted(folder.iterdir())[1:]:
            picture.unlink()
    arguments = ("--set", f"data.root={images}", "--set", "generations=1", "--json")
    document = json.loads(expect(ExitCode.OK, "train", recipe, "--lineage", tmp_path / "l", *arguments))
    assert document["generations"][0]["dense"]["queries_without_match"] >= 0
    report = json.loads(run("data", "check", images, "--json").stdout)
    assert any("one" in problem["kind"] or "lone" in problem["kind"] for problem in report["problems"]) or any(
        "1 image" in problem["reason"] or "one image" in problem["reason"] for problem in report["problems"]
    )


def test_an_empty_folder(recipe, tmp_path):
    (tmp_path / "nothing").mkdir()
    told = expect(ExitCode.DATA, "train", recipe, "--set", f"data.root={tmp_path / 'nothing'}")
    assert "nothing" in told


def test_divergence_keeps_the_last_good_state(recipe, images, tmp_path):
    folder = tmp_path / "lineage"
    arguments = ("train", recipe, "--lineage", folder, "--set", f"data.root={images}", "--set", "training.epochs=40")
    told = expect(
        ExitCode.DIVERGED, *arguments, "--set", "optimizer.learning_rate=1e15", "--set", "optimizer.name=sgd"
    )
    assert "learning rate" in told
    assert "generation 1" in told
    assert json.loads((folder / "lineage.json").read_text())["status"] == "diverged"


def test_a_device_that_is_not_there(recipe, images):
    told = expect(ExitCode.ENVIRONMENT, "train", recipe, "--set", f"data.root={images}", "--device", "cuda:7")
    assert "cuda:7" in told
    assert "cpu" in told


def test_data_check_of_a_good_folder(images):
    report = json.loads(expect(ExitCode.OK, "data", "check", images, "--json"))
    assert report["ok"]
    assert report["images"] == 32


def test_data_prepare_needs_a_source(tmp_path):
    assert "--from" in expect(ExitCode.USAGE, "data", "prepare", "cub", "--to", tmp_path / "cub")
    assert "did you mean 'cub'" in expect(ExitCode.DATA, "data", "prepare", "cubb", "--from", tmp_path)


def test_data_prepare_of_an_archive(make_cub, tmp_path):
    make_cub(tmp_path / "files")
    archive = shutil.make_archive(str(tmp_path / "mine"), "gztar", tmp_path / "files")
    told = expect(ExitCode.DATA, "data", "prepare", "cub", "--from", archive, "--to", tmp_path / "cub")
    assert "cub" in told.lower()  # the fixture is not the published data set, and the counts say so
    assert not (tmp_path / "cub").exists()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_complete_and_builds_its_loss(path):
    recipe = load_recipe(path)
    loss = build_loss(recipe, class_sizes=[20] * 9)
    if recipe.task == "classification":
        assert loss(torch.randn(8, 9), torch.arange(8)).isfinite()
    else:
        assert loss(torch.randn(8, recipe.network.embedding_size), torch.arange(8) // 2).isfinite()
    assert path.read_text().startswith("# ")
