"""Lineages listed, damaged ones too, and removed: all that were named or none, and nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.lineage import ownership
from ke_metric.lineage.folder import LOCK, LOG, REPORT
from ke_metric.lineage.listing import (
    drop_superfluous_weights,
    list_lineages,
    remove_lineages,
    require_removable,
    summary_of,
    superfluous_weights,
    weights_kept,
)
from ke_metric.lineage.store import Lineage
from ke_metric.recipe.schema import Recipe

HOLD = """
import sys
from ke_metric.lineage.folder import one_writer
with one_writer(__import__("pathlib").Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def begun(folder: Path, status: str = "finished", **fields) -> Lineage:
    lineage = Lineage.create(folder, Recipe(name=folder.name, **fields), text="x", command="ke-metric train x.yaml")
    lineage.set_status(status)
    return lineage


def with_generation(lineage: Lineage, number: int, score: float | str, *, weights: int = 100) -> None:
    """Store what a listing reads of a generation."""
    folder = lineage.generation_folder(number)
    folder.mkdir()
    card = (
        f'{{"generation": {number}, "dense": {{"recall@1": {score}}}, "slim": {{"recall@1": {score}}}, '
        '"dense_parameters": 10, "slim_parameters": 5, "magnitudes": {}}'
    )
    (folder / "scorecard.json").write_text(card)
    if weights:
        (folder / "weights.safetensors").write_bytes(b"w" * weights)


@pytest.fixture
def three(tmp_path):
    """Three generations of which the second is the best."""
    lineage = begun(tmp_path / "lineages" / "three", generations=3)
    for number, score in enumerate((0.5, 0.75, 0.25), start=1):
        with_generation(lineage, number, score)
    return lineage


@pytest.fixture
def busy(three):
    """The same while another process writes it."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(three.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        yield three
        holder.stdin.close()


def test_a_summary_says_what_was_stored(three):
    found = summary_of(three.folder)
    assert (found.status, found.done, found.planned, found.task) == ("finished", 3, 3, "retrieval")
    assert found.score == "recall@1"
    assert found.scores == {"dense": {"last": 0.25, "best": 0.75}, "slim": {"last": 0.25, "best": 0.75}}
    assert found.size == sum(path.stat().st_size for path in three.folder.rglob("*") if path.is_file())
    assert found.to_json()["folder"] == str(three.folder)


def test_the_newest_comes_first(tmp_path):
    for position, name in enumerate(("b", "a", "c")):
        folder = begun(tmp_path / name).folder
        for path in (*folder.rglob("*"), folder):
            os.utime(path, (position, position))
    assert [each.folder.name for each in list_lineages(tmp_path)] == ["c", "a", "b"]


@pytest.mark.parametrize(("recorded", "told"), [("running", "interrupted"), ("failed", "failed")])
def test_a_killed_training_is_not_said_to_run(tmp_path, recorded, told):
    assert summary_of(begun(tmp_path / "x", recorded).folder).status == told


def test_files_that_vanish_meanwhile_are_no_error(three, monkeypatch):
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda folder: [*walk(folder), (str(folder), [], ["gone.safetensors"])])
    assert summary_of(three.folder).size == sum(
        path.stat().st_size for path in three.folder.rglob("*") if path.is_file()
    )


def test_a_lineage_that_is_being_written_is_busy(busy):
    assert summary_of(busy.folder).status == "busy"


def test_damage_is_listed_with_its_reason_and_stops_nothing(three):
    parent = three.folder.parent
    broken = begun(parent / "no-json").folder
    (broken / "lineage.json").write_text("{")
    gap = begun(parent / "gap")
    with_generation(gap, 2, 0.5)
    lost = begun(parent / "lost")
    with_generation(lost, 1, 0.5)
    (lost.folder / "lineage.json").unlink()
    torn = begun(parent / "torn")
    with_generation(torn, 1, 0.5)
    (torn.generation_folder(1) / "scorecard.json").write_text("[]")
    text = begun(parent / "text")
    with_generation(text, 1, '"x"')
    (parent / "photos").mkdir()
    found = {each.folder.name: each for each in list_lineages(parent)}
    assert set(found) == {"three", "no-json", "gap", "lost", "torn", "text"}
    assert {name for name, each in found.items() if each.status == "damaged"} == set(found) - {"three"}
    reasons = {
        "no-json": "lineage.json",
        "gap": "1 is missing",
        "lost": "no lineage here",
        "torn": "object",
        "text": "recall@1 = 'x', not a number",
    }
    for name, reason in reasons.items():
        assert reason in found[name].damage
        assert found[name].to_json()["damage"]


def test_where_nothing_was_trained_nothing_is_listed(tmp_path):
    assert list_lineages(tmp_path / "lineages") == []
    (tmp_path / "file").touch()
    with pytest.raises(KeMetricError, match="file: cannot be listed"):
        list_lineages(tmp_path / "file")


def test_weights_but_for_last_and_best_go(three):
    assert weights_kept(three) == {1: 100, 2: 100, 3: 100}
    before = {number: three.scorecard(number) for number in three.numbers}
    assert drop_superfluous_weights([three.folder]) == {three.folder: {1: 100}}
    assert weights_kept(three) == {2: 100, 3: 100}
    assert superfluous_weights(three) == {}
    assert {number: three.scorecard(number) for number in three.numbers} == before


def test_a_lineage_is_gone_and_its_neighbours_stay(three, tmp_path):
    other = begun(three.folder.parent / "other").folder
    outside = tmp_path / "photos"
    outside.mkdir()
    (outside / "kept.png").touch()
    (three.folder / "tensorboard").symlink_to(outside)
    remove_lineages([three.folder])
    assert sorted(path.name for path in other.parent.iterdir()) == ["other"]
    assert (outside / "kept.png").exists()


def test_all_are_removed_or_none(three, monkeypatch):
    other = begun(three.folder.parent / "other").folder
    rename, calls = Path.rename, []

    def fail_once(self, target):
        calls.append(self)
        if len(calls) == 2:
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(KeMetricError, match="nothing was removed"):
        remove_lineages([three.folder, other])
    assert sorted(path.name for path in other.parent.iterdir()) == ["other", "three"]
    assert summary_of(three.folder).done == 3


@pytest.mark.parametrize("removing", [remove_lineages, drop_superfluous_weights])
def test_a_lineage_that_is_being_written_stays(busy, removing):
    with pytest.raises(KeMetricError, match="a process is writing it") as refused:
        removing([busy.folder])
    assert refused.value.exit_code == ExitCode.LINEAGE
    assert weights_kept(busy) == {1: 100, 2: 100, 3: 100}


def test_what_is_no_lineage_or_a_link_stays(three, tmp_path, monkeypatch):
    photos, link = tmp_path / "photos", tmp_path / "link"
    (photos / "generation-001").mkdir(parents=True)
    link.symlink_to(three.folder)
    refused = {
        photos: "is no lineage",
        link: "is a link to",
        tmp_path / "lineages" / "thre": "did you mean .*three",
    }
    for folder, reason in refused.items():
        with pytest.raises(KeMetricError, match=reason):
            remove_lineages([three.folder, folder])
    with pytest.raises(KeMetricError, match="is named twice"):
        require_removable([three.folder, three.folder / ".." / "three"])
    monkeypatch.chdir(three.generation_folder(1))
    with pytest.raises(KeMetricError, match="is where you are"):
        remove_lineages([three.folder])
    assert weights_kept(three) == {1: 100, 2: 100, 3: 100}


def test_a_generation_that_is_a_link_keeps_its_weights(three, tmp_path):
    first = three.generation_folder(1)
    shutil.move(first, tmp_path / "elsewhere")
    first.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeMetricError, match="is a link to"):
        drop_superfluous_weights([three.folder])
    assert (tmp_path / "elsewhere" / "weights.safetensors").exists()


def test_a_damaged_lineage_can_be_removed(tmp_path):
    folder = begun(tmp_path / "broken").folder
    (folder / "lineage.json").write_text("{")
    remove_lineages([folder])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{}", "{", '{"name": "a graph of tables"}', "[1]"])
def test_a_file_that_is_called_lineage_json_makes_no_lineage(tmp_path, content):
    precious = tmp_path / "project" / "src" / "precious"
    precious.parent.mkdir(parents=True)
    precious.touch()
    (tmp_path / "project" / "lineage.json").write_text(content)
    with pytest.raises(KeMetricError, match=r"is no lineage .*lineage.json of ours.*nothing was removed"):
        remove_lineages([tmp_path / "project"])
    assert precious.exists()


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize(
    "name", ["notes.txt", "src/main.py", "generation-001/notes.txt", "vectors/notes.txt", "in-progress/notes.txt"]
)
def test_what_others_put_into_a_lineage_is_never_deleted(three, name, damaged):
    (three.folder / name).parent.mkdir(exist_ok=True)
    (three.folder / name).touch()
    if damaged:
        (three.folder / "lineage.json").write_text("{")
    [named] = ownership.foreign_names(three.folder)
    assert name.startswith(named)
    with pytest.raises(KeMetricError, match=f"not the lineage's own: {named};.*nothing was removed"):
        remove_lineages([three.folder])
    assert (three.folder / name).exists()
    assert three.has_weights(1)


def test_weights_go_whatever_lies_beside_them(three):
    (three.folder / "notes.txt").touch()
    drop_superfluous_weights([three.folder])
    assert (three.folder / "notes.txt").exists()


def test_all_that_a_lineage_can_hold_is_its_own(three):
    for name in (LOCK, LOG, "data.json", "untrained.json", REPORT, ".writing-0123abcd-lineage.json"):
        (three.folder / name).touch()
    inner = (f"vectors/{'0a' * 32}.safetensors", "in-progress/generation-002-epoch-00003/state.json")
    for name in (*inner, "vectors/.writing-0123abcd-x", "tensorboard/events.out.tfevents.1"):
        (three.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (three.folder / name).touch()
    assert ownership.foreign_names(three.folder) == []
    remove_lineages([three.folder])
    assert not list(three.folder.parent.iterdir())


def test_what_cannot_be_deleted_is_told(three, monkeypatch):
    unlink = os.unlink

    def refuse(path, **options):
        if str(path).endswith("scorecard.json"):
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(KeMetricError, match=r"three: not all could be deleted.*three: Permission denied"):
        remove_lineages([three.folder])
    assert not three.folder.exists()
    assert {path.name for path in three.folder.parent.rglob("*") if path.is_file()} == {"scorecard.json"}
