"""The store: complete generations in order, weights as the recipe keeps them, and a record of it all."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ke_metric.environment import describe_environment
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import Generation, Provenance, Scorecard, TrainingState
from ke_metric.lineage import beginning
from ke_metric.lineage.beginning import require_room
from ke_metric.lineage.store import Lineage, default_folder
from ke_metric.recipe.file import load_recipe
from ke_metric.recipe.schema import Recipe

TEXT = "# as given\ngenerations: 3\n"


def recipe(**fields):
    return Recipe.model_validate({"name": "x", "generations": 3, **fields})


def generation(number, recall=0.5, *, size=3):
    return Generation(
        number=number,
        weights={"w": torch.full((size,), float(number))},
        loss_weights={"proxies": torch.full((2,), float(-number))},
        split="{}",
        split_bits={},
        scorecard=Scorecard({} if recall is None else {"recall@1": recall, "recall@2": 1 - recall}, None, size, None),
        training_log=({"epoch": 1, "loss": 1.0},),
        magnitudes={"w": (float(number), None)},
        provenance=Provenance(
            "recipe", None if number == 1 else "parent", 0, environment={}, training={}, seconds={}
        ),
    )


def state(number, epoch, *, size=3):
    return TrainingState(
        number=number,
        epoch=epoch,
        weights={"w": torch.full((size,), float(epoch))},
        loss_weights={},
        optimizer={"optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}, "scaler": {}},
        training_log=tuple({"epoch": done + 1} for done in range(epoch)),
        seconds=1.0,
    )


def begin(folder, *, overwrite=False, **fields):
    return Lineage.create(folder, recipe(**fields), text=TEXT, command="ke-metric train x.yaml", overwrite=overwrite)


def tree(folder):
    """Return every file and folder below, but for the lock, which only says that somebody has written here."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != ".lock")


def content(folder):
    return {name: (folder / name).read_bytes() for name in tree(folder) if (folder / name).is_file()}


def events(lineage):
    return [json.loads(line)["event"] for line in (lineage.folder / "log.jsonl").read_text().splitlines()]


def refused(exit_code, match):
    """Like pytest.raises, for an error with this exit code."""
    return pytest.raises(KeMetricError, match=match, check=lambda error: error.exit_code == exit_code)


@pytest.fixture(autouse=True, scope="module")
def _ask_once():
    """Asking git for the commit takes longer than all the rest."""
    facts = describe_environment()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beginning, "describe_environment", lambda: facts)
        yield


@pytest.fixture
def lineage(tmp_path):
    return begin(tmp_path / "x-s0")


@pytest.fixture
def grown(lineage):
    """Generation 1 and, of generation 2, one epoch."""
    with lineage.writing():
        lineage.append(generation(1))
        lineage.save_state(state(2, 1))
    return lineage


# Beginning


def test_a_new_lineage_holds_what_is_known_of_it(lineage):
    assert tree(lineage.folder) == ["lineage.json", "recipe.resolved.yaml", "recipe.yaml"]
    assert (lineage.folder / "recipe.yaml").read_text() == TEXT
    assert load_recipe(lineage.folder / "recipe.resolved.yaml") == recipe() == lineage.recipe
    facts = lineage.facts
    assert facts["format_version"] == 1
    assert facts["recipe_digest"] == recipe().digest
    assert facts["command"] == "ke-metric train x.yaml"
    assert facts["status"] == "created"
    assert "torch" in facts["versions"]
    assert time.strptime(facts["created"], "%Y-%m-%dT%H:%M:%SZ")
    assert lineage.numbers == []
    assert lineage.load_state() is None
    assert os.listdir(lineage.folder.parent) == ["x-s0"]  # noqa: PTH208 -- hidden names too


def test_the_default_folder_is_named_after_recipe_and_seed():
    assert default_folder(recipe(seed=3)) == Path("lineages/x-s3")


def test_a_lineage_is_found_by_text_too(lineage):
    assert Lineage(str(lineage.folder)).folder == lineage.folder


def test_where_there_is_no_lineage(tmp_path):
    with refused(ExitCode.LINEAGE, r"nowhere: no lineage here .*lineage\.json.*without --resume"):
        Lineage(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format_version": 2}', "format version 2, this version of ke_metric reads 1"),
        ("{}", "format version None"),
        ("[]", "damaged: holds list"),
        ("", "damaged"),
    ],
)
def test_a_lineage_of_another_format_or_a_damaged_one_is_refused(lineage, text, message):
    (lineage.folder / "lineage.json").write_text(text)
    for action in (lambda: Lineage(lineage.folder), lambda: begin(lineage.folder, overwrite=True)):
        with refused(ExitCode.LINEAGE, f"lineage.json: {message}"):
            action()
    assert (lineage.folder / "recipe.yaml").exists()


@pytest.mark.parametrize("text", [None, "", "name: x\nzork: 1\n", "\x00"])
def test_a_damaged_recipe_is_named(lineage, text):
    path = lineage.folder / "recipe.resolved.yaml"
    path.unlink() if text is None else path.write_text(text)
    with refused(ExitCode.LINEAGE, r"damaged: .*recipe\.resolved\.yaml"):
        lineage.recipe  # noqa: B018 -- the access is what is tested


def test_a_lineage_with_work_in_it_is_replaced_only_when_asked(lineage):
    with lineage.writing():
        lineage.save_state(state(1, 1))
    before = content(lineage.folder)
    with refused(ExitCode.LINEAGE, r"exists\. Go on with --resume, replace it with --overwrite, .*--lineage"):
        begin(lineage.folder)
    assert content(lineage.folder) == before
    assert begin(lineage.folder, overwrite=True, seed=4).recipe.seed == 4
    assert tree(lineage.folder.parent) == ["x-s0", *(f"x-s0/{name}" for name in content(lineage.folder))]


def test_a_lineage_without_a_finished_epoch_may_be_begun_again(lineage):
    with lineage.writing():
        lineage.set_status("failed")
        lineage.log("note", text="x")
    (lineage.folder / "tensorboard").mkdir()
    (lineage.folder / "in-progress" / ".writing-0123abcd-generation-001-epoch-00001").mkdir(parents=True)
    assert begin(lineage.folder, seed=4).recipe.seed == 4
    assert tree(lineage.folder) == ["lineage.json", "recipe.resolved.yaml", "recipe.yaml"]


@pytest.mark.parametrize("name", ["generation-001", "notes.txt", "in-progress/generation-001-epoch-00001"])
def test_whatever_cannot_be_made_again_is_kept(lineage, name):
    (lineage.folder / name).mkdir(parents=True)
    with refused(ExitCode.LINEAGE, "exists"):
        begin(lineage.folder)
    assert (lineage.folder / name).exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_lineage_is_never_deleted(tmp_path, overwrite):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("photos", "file"):
        with refused(
            ExitCode.LINEAGE, rf"{name}: exists and is no lineage \(no lineage.json\), so it is never replaced"
        ):
            begin(tmp_path / name, overwrite=overwrite)
    assert tree(tmp_path) == ["file", "photos", "photos/cat.jpg"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_project_with_a_lineage_json_of_its_own_is_never_deleted(tmp_path, overwrite):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "lineage.json").write_text('{"format_version": 1}')
    with refused(ExitCode.LINEAGE, r"is no lineage \(no lineage.json of ours\)"):
        begin(tmp_path / "project", overwrite=overwrite)
    assert tree(tmp_path) == ["project", "project/lineage.json"]


def test_what_others_put_into_a_lineage_is_not_overwritten_with_it(lineage):
    (lineage.folder / "notes.txt").touch()
    before = content(lineage.folder)
    for action in (
        lambda: begin(lineage.folder, overwrite=True),
        lambda: require_room(lineage.folder, overwrite=True),
    ):
        with refused(ExitCode.LINEAGE, "not the lineage's own: notes.txt; nothing was deleted"):
            action()
    assert content(lineage.folder) == before


def test_an_empty_folder_may_become_a_lineage(tmp_path):
    (tmp_path / "x").mkdir()
    assert begin(tmp_path / "x").numbers == []


def test_a_link_to_another_disk_stays_one(tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "x").symlink_to(tmp_path / "big" / "x")
    with begin(tmp_path / "x").writing():
        pass
    with begin(tmp_path / "x", overwrite=True).writing():
        pass
    assert (tmp_path / "x").is_symlink()
    assert (tmp_path / "big" / "x" / "lineage.json").exists()
    assert tree(tmp_path / "big") == ["x", "x/lineage.json", "x/recipe.resolved.yaml", "x/recipe.yaml"]


def test_the_newest_lineage_is_the_one_whose_status_changed_last(tmp_path):
    with refused(ExitCode.LINEAGE, "no lineage under .*--lineage.*ke-metric train"):
        Lineage.newest(tmp_path / "nowhere")
    folders = [tmp_path / name for name in ("a", "b", ".writing-0123abcd-c")]
    for position, folder in enumerate(folders):
        begin(folder)
        os.utime(folder / "lineage.json", (position, position))
    assert Lineage.newest(tmp_path).folder == tmp_path / "b"
    Lineage(tmp_path / "a").set_status("running")
    assert Lineage.newest(tmp_path).folder == tmp_path / "a"


def test_the_newest_of_a_task_passes_over_newer_ones_of_the_other(tmp_path):
    begin(tmp_path / "a")
    begin(tmp_path / "b", task="classification", loss={"name": "CrossEntropyLoss"})
    os.utime(tmp_path / "a" / "lineage.json", ns=(1, 1))
    assert Lineage.newest(tmp_path).folder == tmp_path / "b"
    assert Lineage.newest(tmp_path, task="retrieval").folder == tmp_path / "a"
    assert Lineage.newest(tmp_path, task="classification").folder == tmp_path / "b"
    (tmp_path / "a" / "lineage.json").unlink()
    with refused(ExitCode.LINEAGE, r"no lineage of task = 'retrieval' under .* \(1 of another task\)"):
        Lineage.newest(tmp_path, task="retrieval")


# What the generations are held against


def test_the_untrained_network_is_kept_and_no_work_of_its_own(tmp_path):
    lineage = begin(tmp_path / "a")
    assert lineage.untrained is None
    card = Scorecard({"recall@1": 0.25}, None, 9, None)
    lineage.record_untrained(card)
    assert Lineage(lineage.folder).untrained == card
    lineage = begin(tmp_path / "a")
    assert lineage.untrained is None
    (tmp_path / "a" / "untrained.json").write_text("{}")
    with refused(ExitCode.LINEAGE, "damaged"):
        _ = lineage.untrained


# Generations


def test_generations_are_stored_in_order(lineage):
    with refused(ExitCode.LINEAGE, "no generation 1; there is no complete generation yet"):
        lineage.load(1)
    with lineage.writing():
        lineage.append(generation(1))
        for wrong in (1, 3):
            with refused(ExitCode.LINEAGE, f"generation {wrong} cannot be stored, the next one is 2"):
                lineage.append(generation(wrong))
        lineage.append(generation(2))
    assert lineage.numbers == [1, 2]
    assert lineage.load(2).weights["w"].tolist() == [2, 2, 2]
    assert lineage.load(2).loss_weights["proxies"].tolist() == [-2, -2]
    for number in (0, 3):
        with refused(ExitCode.LINEAGE, f"no generation {number}; there are generations 1 to 2"):
            lineage.load(number)
        with refused(ExitCode.LINEAGE, f"no generation {number}"):
            lineage.scorecard(number)


def test_a_missing_parent_is_an_error_and_never_a_fresh_start(lineage):
    with lineage.writing():
        for number in (1, 2, 3):
            lineage.append(generation(number))
    (lineage.folder / "generation-002").rename(lineage.folder / "copy of generation-002")
    for action in (
        lambda: lineage.numbers,
        lambda: lineage.load(1),
        lambda: lineage.append(generation(3)),
        lineage.load_state,
        lambda: lineage.best,
    ):
        with refused(ExitCode.LINEAGE, "x-s0: generation 2 is missing, though there are later ones"):
            action()


def test_other_names_are_no_generations(grown):
    for name in ("generation-001 (copy)", "generation-two", "generation-2", ".writing-0123abcd-generation-002"):
        (grown.folder / name).mkdir()
    assert grown.numbers == [1]


def test_a_thousand_generations_are_in_order(lineage):
    for number in range(1, 1001):
        lineage.generation_folder(number).mkdir()
    assert lineage.numbers == list(range(1, 1001))
    (lineage.folder / "generation-999").rmdir()
    with refused(ExitCode.LINEAGE, "generation 999 is missing"):
        lineage.load(1)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["last", "best", "all"]), st.lists(st.sampled_from([0.1, 0.5, 0.9, None]), min_size=1, max_size=5)
)
def test_what_is_kept(tmp_path_factory, keep, recalls):
    lineage = begin(tmp_path_factory.mktemp("kept") / "x", keep=keep, evaluation={"recall_at": [2, 1]})
    with lineage.writing():
        for number, recall in enumerate(recalls, start=1):
            lineage.append(generation(number, recall))
            kept = {n for n in lineage.numbers if lineage.has_weights(n)}
            seen = recalls[:number]
            scored = [recall for recall in seen if recall is not None]
            best = seen.index(max(scored)) + 1 if scored else number
            assert kept == {"last": {number}, "best": {best, number}, "all": set(range(1, number + 1))}[keep]
            if scored:
                assert lineage.best == best
            for n in lineage.numbers:
                assert lineage.scorecard(n).dense == generation(n, recalls[n - 1]).scorecard.dense
                assert lineage.generation_folder(n).joinpath("loss.safetensors").exists() == (n in kept)


def test_the_best_of_none(lineage):
    with refused(ExitCode.LINEAGE, "no best generation: there is none yet that has a recall@1"):
        lineage.best  # noqa: B018 -- the access is what is tested
    with lineage.writing():
        lineage.append(generation(1, None))
    with refused(ExitCode.LINEAGE, "no best generation"):
        lineage.best  # noqa: B018 -- the access is what is tested


def test_a_generation_is_meant_by_number_or_by_name(lineage):
    with refused(ExitCode.LINEAGE, "no complete generation yet"):
        lineage.number_of("last")
    with lineage.writing():
        for number, recall in enumerate((0.2, 0.9, 0.4), start=1):
            lineage.append(generation(number, recall))
    assert [lineage.number_of(which) for which in (2, "2", "last", "best")] == [2, 2, 3, 2]
    for which in ("lst", "-1", "", "1.5"):
        with refused(ExitCode.USAGE, "must be a number, last or best"):
            lineage.number_of(which)


def test_weights_that_were_not_kept(lineage):
    with lineage.writing():
        lineage.append(generation(1))
        lineage.append(generation(2))
    with refused(ExitCode.LINEAGE, "generation-001: the weights of this generation were not kept"):
        lineage.load(1)


# A generation under way


def test_the_state_of_the_next_generation_is_what_a_resume_begins_with(lineage):
    with lineage.writing():
        for epoch in (1, 2, 10):
            lineage.save_state(state(1, epoch))
            assert lineage.load_state().epoch == epoch
            assert len(list((lineage.folder / "in-progress").iterdir())) == 1
        lineage.append(generation(1))
        assert lineage.load_state() is None
        assert not (lineage.folder / "in-progress").exists()


def test_a_state_of_a_generation_that_is_complete_is_of_no_use(grown):
    (grown.folder / "in-progress" / "generation-002-epoch-00001").rename(
        grown.folder / "in-progress" / "generation-001-epoch-00001"
    )
    assert grown.load_state() is None


# The record


def test_the_log_tells_what_happened(grown):
    with grown.writing():
        grown.log("epoch", loss=0.5)
        grown.append(generation(2))
    lines = [json.loads(line) for line in (grown.folder / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["generation", "epoch", "generation"]
    assert lines[1]["loss"] == 0.5
    assert lines[2]["number"] == 2
    assert lines[2]["dense"] == {"recall@1": 0.5, "recall@2": 0.5}
    assert lines[2]["magnitudes"] == {"w": [2.0, None]}
    assert all(time.strptime(line["time"], "%Y-%m-%dT%H:%M:%SZ") for line in lines)


def test_a_torn_line_of_the_log_does_not_hurt(grown):
    path = grown.folder / "log.jsonl"
    path.write_text(path.read_text() + '{"time": "20')
    grown.log("note", text="ü")
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[-1])["text"] == "ü"


def test_a_number_that_is_not_finite_is_never_logged(lineage):
    with pytest.raises(ValueError, match="JSON compliant"):
        lineage.log("epoch", loss=float("nan"))
    assert not (lineage.folder / "log.jsonl").exists()


def test_the_status_is_recorded_and_nothing_else_changes(lineage):
    before = lineage.facts
    lineage.set_status("finished")
    assert lineage.facts == before | {"status": "finished"}


# Going on


def test_another_recipe_is_refused_with_both_values(grown):
    before = content(grown.folder)
    for action in (grown.require_recipe, grown.continue_with):
        with refused(
            ExitCode.LINEAGE,
            r"x-s0: a lineage of another recipe: seed = 1, the lineage has 0; split\.rate = 0\.7, the lineage has",
        ):
            action(recipe(seed=1, split={"rate": 0.7}))
    with refused(ExitCode.LINEAGE, r"generations = 2, the lineage has 3 \(it may grow, not shrink\)"):
        grown.require_recipe(recipe(generations=2))
    assert content(grown.folder) == before


def test_more_generations_and_another_place_of_the_data_go_on(grown):
    longer = recipe(generations=9, data={"root": "elsewhere", "workers": 4})
    grown.continue_with(longer)
    assert grown.recipe == longer
    assert grown.facts["recipe_digest"] == longer.digest
    line = json.loads((grown.folder / "log.jsonl").read_text().splitlines()[-1])
    assert line["event"] == "resumed"
    assert line["changes"] == [
        "generations = 9, the lineage has 3",
        "data.root = 'elsewhere', the lineage has None",
        "data.workers = 4, the lineage has 0",
    ]
    with refused(ExitCode.LINEAGE, "generations = 3, the lineage has 9"):
        grown.require_recipe(recipe())


def test_going_on_unchanged_changes_nothing(grown):
    facts = grown.facts
    grown.continue_with(recipe())
    assert grown.recipe == recipe()
    assert grown.facts == facts
    assert events(grown) == ["generation", "resumed"]
