"""The package does what it did: a record of its answers is made again and compared with `recorded.json`.

`recorded.json` was written by `python tests/golden/record.py OUT` on the commit before the modules were moved.
Where an answer changes on purpose (a new field of a recipe, another name in a list of choices, other words of an
error), its value in `recorded.json` is changed or added by hand, in the commit that changes the answer and says
why: the values of everything else stay those of that commit.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # this folder's own modules

import written_set
from compare_records import differences, is_same_machine

HERE = Path(__file__).parent
RECORDED = json.loads((HERE / "recorded.json").read_text(encoding="utf-8"))
QUICK = ("recipes", "masks", "options", "base", "stores", "bundles", "commands", "errors")
LONG = ("lineages", "exports")
SHOWN = 5


def made_again(folder, parts):
    """Record parts in a process of its own: what the tests of this process have loaded and set has no part in it."""
    command = [sys.executable, HERE / "record.py", folder, *parts]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads((folder / "record.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return made_again(tmp_path_factory.mktemp("golden") / "quick", QUICK)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    return made_again(tmp_path_factory.mktemp("golden") / "long", LONG)


def require_equal(found, part):
    wrong = differences(RECORDED, found, part)
    how = "to the last bit" if is_same_machine(RECORDED, found) else "but for what another machine calculates"
    assert not wrong, f"{len(wrong)} values of {part!r} are not what they were, {how}:\n" + "\n".join(wrong[:SHOWN])


@pytest.mark.parametrize("part", QUICK)
def test_nothing_has_changed(quick, part):
    require_equal(quick, part)


@pytest.mark.parametrize("part", QUICK)
def test_nothing_has_changed_in_substance(quick, part):
    """What is compared on another machine must hold on this one too."""
    require_equal(quick | {"machine": "another"}, part)


@pytest.mark.slow
@pytest.mark.parametrize("part", LONG)
def test_no_method_and_no_export_has_changed(long, part):
    require_equal(long, part)


@pytest.mark.slow
def test_other_kernels_give_what_is_compared_elsewhere(tmp_path, monkeypatch):
    """The tolerances are wide enough for a processor that adds up in another order."""
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    found = made_again(tmp_path / "record", (*QUICK, *LONG))
    if is_same_machine(RECORDED, found):
        pytest.skip("the kernels of this machine are the same with and without the settings")
    for part in (*QUICK, *LONG):
        require_equal(found, part)


def changed(record, path, value):
    """Return a record with one other value."""
    whole = json.loads(json.dumps(record))
    inner = whole
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return whole


@pytest.mark.parametrize(
    ("path", "value", "everywhere"),
    [
        (("recipes", "cub_resnet50.yaml", "fields", "split", "rate"), 0.51, True),
        (("masks", "googlenet", "kels", "masks"), "0" * 32, True),
        (("options", "ke-metric eval", "parameters", "device", "words", 0), "--on-device", True),
        (("options", "ke-metric eval", "help", 0), "another", False),
        (("base", "base", "files", "generation-002/weights.safetensors", "content"), "bits:0", False),
        (("base", "base", "files", "generation-002/scorecard.json", "dense", "recall@1"), -1.0, True),
        (("base", "base", "files", "generation-002/split.json"), "sha256:0", True),
        (("base", "base", "train", "exit"), 1, True),
        (("stores", "memmap", "search, plain", "json", "queries", 0, "results", 0, "similarity"), 0.1, True),
        (("errors", "unknown field", "stderr", 0), "ke-metric: no", True),
    ],
)
def test_a_change_would_be_seen(path, value, everywhere):
    found = changed(RECORDED, path, value)
    (line,) = differences(RECORDED, found, path[0])
    assert " > ".join(map(str, path)) in line
    assert repr(value) in line
    elsewhere = differences(RECORDED, found | {"machine": "another"}, path[0])
    assert elsewhere == [line] * everywhere


@pytest.mark.parametrize("path", [("base", "base", "train", "json", "generations"), ("errors", "no index")])
def test_what_is_missing_would_be_seen(path):
    found = changed(RECORDED, path, "<gone>")
    assert differences(RECORDED, found, path[0])
    assert differences(RECORDED, found | {"machine": "another"}, path[0])


# Stored are those of a k-means that was drawn item by item.
CLUSTERS_IN_BLOCKS = {
    "dense": {"nmi": 0.5082707033278252, "ami": 0.31468016233085944},
    "slim": {"nmi": 0.7365900301838655, "ami": 0.6346692882513746},
}


@pytest.fixture
def written(tmp_path, monkeypatch):
    shutil.copytree(written_set.WRITTEN, tmp_path / "written")
    monkeypatch.chdir(tmp_path / "written")
    return json.loads(Path("answers.json").read_text(encoding="utf-8"))


def test_what_was_written_is_opened(written):
    """A lineage gives its scorecard, a bundle its vectors, an index its hits."""
    found = written_set.answers()
    stored = json.loads(Path("lineage/generation-002/scorecard.json").read_text(encoding="utf-8"))
    for network in ("dense", "slim"):
        assert found["eval"][network] == pytest.approx(stored[network] | CLUSTERS_IN_BLOCKS[network])
    assert found["digest"] == written["digest"]
    for vector, before in zip(found["vectors"], written["vectors"], strict=True):
        assert vector == pytest.approx(before, abs=1e-5)
    for name in written_set.INDEXES:
        for query, before in zip(found[name], written[name], strict=True):
            assert query["label"] == before["label"]
            assert [hit for hit, _ in query["hits"]] == [hit for hit, _ in before["hits"]]
            similarities = [[similarity for _, similarity in one["hits"]] for one in (query, before)]
            assert similarities[0] == pytest.approx(similarities[1], abs=1e-5)
