"""`ke-metric data store`, and what `train` and `eval` say of decoded pictures that are kept."""

import json

import pytest
from click.testing import CliRunner

from ke_metric.cli import main
from ke_metric.images import kept_stores

RECIPE = """
name: pets
generations: 1
data: {benchmark: folder, root: pets, image_size: 24, store_size: 24}
network: {backbone: resnet18, stem: small}
batches: {size: 8, images_per_class: 2}
training: {epochs: 1, precision: fp32, warmup_epochs: 0}
evaluation: {resize: 24}
"""


@pytest.fixture
def cache(tmp_path, monkeypatch, make_class_folders):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KE_METRIC_CACHE", str(tmp_path / "cache"))
    make_class_folders(tmp_path / "pets", 8)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "cache" / "pixels"


def run(*words):
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return result


def test_nothing_is_kept_yet(cache):
    assert json.loads(run("data", "store", "list", "--json").stdout)["stores"] == []
    assert "0 of 64,000 MB in" in run("data", "store", "list").stdout
    assert "removed 0 stores" in run("data", "store", "clear").stdout
    assert not cache.exists()


def test_a_second_training_and_eval_find_what_the_first_one_kept(cache, monkeypatch):
    monkeypatch.setattr(kept_stores, "LEAST_SECONDS", 0)
    first = run("train", "recipe.yaml", "--device", "cpu", "--lineage", "one")
    second = run("train", "recipe.yaml", "--device", "cpu", "--lineage", "two")
    scored = run("eval", "--lineage", "two", "--device", "cpu", "--json")
    assert first.stderr.count("keeping about") == 2
    assert second.stderr.count("found in") == 2
    assert scored.stderr.count("found in") == 1
    weights = [
        (cache.parents[1] / name / "generation-001" / "weights.safetensors").read_bytes() for name in ("one", "two")
    ]
    assert weights[0] == weights[1]

    listed = json.loads(run("data", "store", "list", "--json").stdout)
    assert listed["bytes"] == sum(path.stat().st_size for path in cache.iterdir())
    assert [kept["pictures"] for kept in listed["stores"]] == [16, 16]
    assert listed["stores"][0]["settings"]["store_size"] == 24
    assert "16 pictures of" in run("data", "store", "list").stdout

    cleared = json.loads(run("data", "store", "clear", "--json").stdout)
    assert [len(cleared["removed"]), len(cleared["in_use"])] == [2, 0]
    assert not list(cache.iterdir())


def test_small_data_sets_are_decoded_every_time_and_nothing_is_said(cache):
    said = run("train", "recipe.yaml", "--device", "cpu").stderr
    assert "kept" not in said
    assert "keeping" not in said
    assert not cache.exists()


def test_a_limit_that_is_no_number(cache, monkeypatch):
    monkeypatch.setenv("KE_METRIC_CACHE_GB", "a lot")
    result = CliRunner().invoke(main, ["train", "recipe.yaml", "--device", "cpu"])
    assert result.exit_code == 5
    assert "KE_METRIC_CACHE_GB = 'a lot'" in result.stderr


def test_what_is_not_a_whole_store_is_listed_and_left(cache):
    cache.mkdir(parents=True)
    (cache / f"{'a' * 32}.pixels").write_bytes(b"somebody's")
    (cache / "x.pixels").mkdir()
    (listed,) = json.loads(run("data", "store", "list", "--json").stdout)["stores"]
    assert listed["of"] == f"damaged: {'a' * 32}.pixels"
    assert "damaged" in run("data", "store", "list").stdout
    cleared = json.loads(run("data", "store", "clear", "--json").stdout)
    assert [len(cleared[name]) for name in ("removed", "in_use", "not_removable")] == [0, 0, 1]
    assert "1 that are damaged or another user's stay" in run("data", "store", "clear").stdout
    assert len(list(cache.iterdir())) == 2
