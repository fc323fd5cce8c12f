"""Data that change under a lineage: named, and never trained or scored on unnoticed."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ke_metric.cli import main
from ke_metric.errors import ExitCode

TINY = """
generations: 1
keep: all
data: {benchmark: folder, image_size: 32, store_size: 32}
network: {backbone: timm/test_resnet, embedding_size: 8}
loss: {name: ProxyAnchorLoss}
batches: {size: 8, images_per_class: 2}
training: {epochs: 1, precision: fp32}
evaluation: {resize: 32, recall_at: [1, 2], kmeans_seeds: 1}
"""
CLASSIFIER = """
task: classification
generations: 1
keep: all
data: {benchmark: folder, image_size: 32, store_size: 32}
network: {backbone: timm/test_resnet}
loss: {name: CrossEntropyLoss}
batches: {size: 8}
training: {epochs: 1, precision: fp32}
evaluation: {resize: 32}
"""


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


def grow(folder, recipe):
    """Eight classes of four pictures, half of them for testing, and what was trained on them."""
    for number in range(8):
        for picture in range(4):
            part = "train" if number < 4 or "classification" in recipe else "test"
            if "classification" in recipe and picture == 3:
                part = "test"
            draw(folder / "images" / part / f"class_{number}" / f"{picture}.png", 10 * number + picture)
    (folder / "tiny.yaml").write_text(recipe)
    go(folder, "train", folder / "tiny.yaml", "--set", f"data.root={folder / 'images'}")
    return folder


def go(folder, command, *arguments, code=ExitCode.OK):
    result = run(command, *arguments, "--lineage", folder / "lineage")
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result


def resume(folder, code=ExitCode.OK):
    fields = ("--set", f"data.root={folder / 'images'}", "--set", "generations=2")
    return " ".join(go(folder, "train", folder / "tiny.yaml", "--resume", *fields, code=code).stderr.split())


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    return {
        "retrieval": grow(tmp_path_factory.mktemp("retrieval"), TINY),
        "classification": grow(tmp_path_factory.mktemp("classification"), CLASSIFIER),
    }


@pytest.fixture
def copy(grown, tmp_path):
    """A copy of a lineage and its pictures, to be spoilt; `old`: as it was before fingerprints were kept."""

    def copied(task="retrieval", *, old=False):
        folder = tmp_path / "copy"
        shutil.copytree(grown[task], folder)
        resolved = folder / "lineage" / "recipe.resolved.yaml"
        resolved.write_text(resolved.read_text().replace(str(grown[task]), str(folder)))
        if old:
            (folder / "lineage" / "data.json").unlink()
            path = folder / "lineage" / "generation-001" / "provenance.json"
            facts = json.loads(path.read_text())
            del facts["data"]
            path.write_text(json.dumps(facts))
        return folder

    return copied


def test_provenance_holds_a_fingerprint_of_every_part(grown):
    facts = json.loads((grown["retrieval"] / "lineage" / "generation-001" / "provenance.json").read_text())
    assert {name: (part["images"], part["classes"]) for name, part in facts["data"].items()} == {
        "train": (16, 4), "query": (16, 4),
    }  # fmt: skip
    kept = json.loads((grown["retrieval"] / "lineage" / "data.json").read_text())["parts"]
    assert len(set(kept["train"]["contents"])) == len(kept["train"]["contents"]) == 16


def test_unchanged_data_go_on_without_a_word_of_them(copy):
    told = resume(copy())
    assert "fingerprint" not in told
    assert "data have changed" not in told


def test_a_class_that_moved_into_the_test_part_stops_a_resume(copy):
    folder = copy()
    (folder / "images" / "train" / "class_0").rename(folder / "images" / "test" / "class_0")
    told = resume(folder, ExitCode.DATA)
    assert "classes that were trained on are now tested on: class_0" in told
    assert "training part: 4 pictures removed (train/class_0/0.png, train/class_0/1.png, train/class_0/2.png" in told
    scored = go(folder, "eval", "--json")
    assert json.loads(scored.stdout)["data_changes"][0].endswith("now tested on: class_0")


def test_a_picture_of_other_content_stops_a_resume_and_is_named_by_eval(copy):
    folder = copy()
    draw(folder / "images" / "test" / "class_7" / "0.png", 999)
    draw(folder / "images" / "test" / "class_7" / "1.png", 998)
    changed = "test part: 2 pictures with other content (test/class_7/0.png, test/class_7/1.png)"
    assert changed in resume(folder, ExitCode.DATA)
    result = go(folder, "eval", "--json")
    assert json.loads(result.stdout)["data_changes"] == [changed]
    assert f"warning: the data have changed since {folder / 'lineage'} was begun: {changed}" in result.stderr
    assert "torch" not in result.stderr


def test_a_csv_with_another_label_stops_a_resume(tmp_path):
    rows = [f"{n}/{p}.png,{n},{'train' if n < 4 else 'test'}" for n in range(8) for p in range(4)]
    for row in rows:
        draw(tmp_path / row.partition(",")[0], len(row))
    table = tmp_path / "images"
    table.write_text("\n".join(["path,label,split", *rows]))
    (tmp_path / "tiny.yaml").write_text(TINY)
    go(tmp_path, "train", tmp_path / "tiny.yaml", "--set", f"data.root={table}")
    table.write_text(table.read_text().replace("3/2.png,3,train", "3/2.png,2,train"))
    assert "training part: 1 picture of another class (3/2.png (2, was 3))" in resume(tmp_path, ExitCode.DATA)


def test_an_old_lineage_goes_on_and_says_that_nothing_could_be_checked(copy):
    folder = copy(old=True)
    said = "could not be checked"
    assert said in " ".join(go(folder, "eval").stderr.split())
    assert said in resume(folder)
    # From here on there is something to compare with.
    assert json.loads((folder / "lineage" / "data.json").read_text())["since"] == 2
    draw(folder / "images" / "test" / "class_7" / "0.png", 999)
    told = " ".join(go(folder, "eval").stderr.split())
    since = f"since generation 2 of {folder / 'lineage'} was trained"
    assert f"have changed {since}: test part: 1 picture with other content" in told
    fields = ("--resume", "--set", f"data.root={folder / 'images'}", "--set", "generations=3")
    told = " ".join(go(folder, "train", folder / "tiny.yaml", *fields, code=ExitCode.DATA).stderr.split())
    assert "changed since generation 2 was trained" in told
    assert "begun" not in told


def test_an_old_lineage_takes_up_no_data_that_its_scorecard_contradicts(copy):
    folder = copy(old=True)
    shutil.rmtree(folder / "images" / "test" / "class_7")
    told = resume(folder, ExitCode.DATA)
    assert "test part: 12 query picture(s), generation 1 was scored on 16" in told
    assert "put them back" in told
    assert not (folder / "lineage" / "data.json").exists()
    assert json.loads(go(folder, "eval", "--json").stdout)["data_changes"] == [
        "test part: 12 query picture(s), generation 1 was scored on 16"
    ]


@pytest.mark.parametrize("old", [False, True])
def test_a_renamed_class_of_a_classification_is_refused(old, copy):
    folder = copy("classification", old=old)
    for part in ("train", "test"):
        (folder / "images" / part / "class_0").rename(folder / "images" / part / "zz")
    told = " ".join(go(folder, "eval", code=ExitCode.DATA).stderr.split())
    assert "8 classes then, 8 now; gone: class_0, new: zz" in told
    assert "zz" in resume(folder, ExitCode.DATA)


@pytest.mark.parametrize("reset_loss", ["true", "false"])
def test_a_class_more_is_refused_in_words_where_the_loss_has_a_row_for_each(reset_loss, copy):
    """An old lineage, where nothing but the shapes can tell."""
    folder = copy(old=True)
    fields = folder / "lineage" / "recipe.resolved.yaml"
    text = fields.read_text().replace("reset_loss: true", f"reset_loss: {reset_loss}")
    fields.write_text(text)
    (folder / "tiny.yaml").write_text(text)
    for picture in range(4):
        draw(folder / "images" / "train" / "class_9" / f"{picture}.png", picture)
    told = resume(folder, ExitCode.DATA)
    assert "the training part has 5 classes" in told
    assert "the parent's loss parameters do not fit" in told
    assert "loss.proxies has shape [4, 8], not [5, 8]" in told


@pytest.mark.parametrize(("built", "told"), [("+cu130", "search and torch are the same"), (".1", "torch ")])
def test_another_build_of_one_version_is_no_other_version(built, told, copy):
    folder = copy() / "lineage" / "generation-001"
    facts = json.loads((folder / "provenance.json").read_text())
    facts["environment"]["versions"]["torch"] += built
    (folder / "provenance.json").write_text(json.dumps(facts))
    card = json.loads((folder / "scorecard.json").read_text())
    card["dense"]["recall@1"] += 0.01
    (folder / "scorecard.json").write_text(json.dumps(card))
    (line,) = [line for line in go(folder.parents[1], "eval").stderr.splitlines() if "differs from" in line]
    assert told in line
    assert (f"{built} then" in line) is (built == ".1")
    assert "ties by" not in line
    assert "clusters by" not in line
    del facts["training"]["ties"], facts["training"]["clusters"]  # as it was before the rules were recorded
    (folder / "provenance.json").write_text(json.dumps(facts))
    (line,) = [line for line in go(folder.parents[1], "eval").stderr.splitlines() if "differs from" in line]
    assert "ties by order of rows then, mean over all orders now" in line
    assert "clusters by k-means drawn item by item then, k-means drawn in blocks now" in line
    assert "are the same" not in line
