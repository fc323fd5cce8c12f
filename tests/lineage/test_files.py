"""What was written is read again, bit for bit; a damaged file is an error that names it."""

import json
import os
import pickle
import re
import stat
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ke_metric.disk import write_text
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import ClassScores, Generation, Provenance, Scorecard, TrainingState
from ke_metric.lineage.files import (
    LOSS_WEIGHTS,
    METHOD_WEIGHTS,
    OPTIMIZER,
    PROVENANCE,
    SCORECARD,
    SPLIT,
    SPLIT_BITS,
    STATE,
    TRAINING_LOG,
    WEIGHTS,
    drop_weights,
    newest_state,
    read_generation,
    read_log,
    read_object,
    read_scorecard,
    read_state,
    read_text,
    replace_state,
    write_generation,
    write_state,
)

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__")
SCORES = st.dictionaries(
    st.sampled_from(["recall@1", "recall@8", "map@r", "nmi", "queries"]), FINITE | st.integers(0, 99)
)
JSON = st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.integers() | FINITE | st.text(max_size=5))


@st.composite
def tensors(draw, dtypes=DTYPES):
    """Any bits there are, NaN and infinity among them, in up to three dimensions, also of size 0."""
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from(dtypes))
    size = torch.Size(shape).numel() * dtype.itemsize
    content = draw(st.binary(min_size=size, max_size=size))
    return (
        torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
    )


def weights(dtypes=DTYPES):
    return st.dictionaries(NAMES, tensors(dtypes), max_size=4)


CLASSES = st.builds(
    ClassScores,
    st.dictionaries(st.text(), FINITE, max_size=2),
    st.dictionaries(st.text(), st.dictionaries(st.text(), st.integers(1, 99), max_size=2), max_size=2),
)


@st.composite
def scorecards(draw):
    slim = draw(st.none() | SCORES)
    return Scorecard(
        draw(SCORES),
        slim,
        draw(st.integers(0, 10**9)),
        None if slim is None else draw(st.integers(0, 99)),
        draw(st.none() | st.dictionaries(st.sampled_from(["dense", "slim"]), CLASSES)),
    )


@st.composite
def generations(draw):
    number = draw(st.integers(1, 1000))
    return Generation(
        number=number,
        weights=draw(weights()),
        loss_weights=draw(weights()),
        split=json.dumps(draw(JSON)),
        split_bits=draw(weights(dtypes=(torch.uint8,))),
        scorecard=draw(scorecards()),
        training_log=tuple(
            {**record, "epoch": epoch} for epoch, record in enumerate(draw(st.lists(JSON, max_size=3)))
        ),
        magnitudes=draw(st.dictionaries(NAMES, st.tuples(st.none() | FINITE, st.none() | FINITE), max_size=2)),
        provenance=Provenance(
            recipe_digest=draw(st.text()),
            parent_digest=None if number == 1 else draw(st.text()),
            seed=draw(st.integers(0, 2**31)),
            environment=draw(JSON),
            training=draw(JSON),
            seconds=draw(st.dictionaries(st.text(), FINITE)),
            class_names=tuple(draw(st.lists(st.text(), max_size=3))),
        ),
    )


def assert_same(found, expected):
    """The same types, and the same bits of every tensor, all the way down."""
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride())
        assert torch.equal(found.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8))
    elif isinstance(expected, dict):
        assert type(found) is dict
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_same(found[name], value)
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif hasattr(expected, "__dataclass_fields__"):
        assert type(found) is type(expected)
        assert_same(vars(found), vars(expected))
    else:
        assert (type(found), found) == (type(expected), expected)


@pytest.fixture
def generation():
    """Everything a generation can have."""
    return Generation(
        number=2,
        weights={"w": torch.randn(2, 3), "b": torch.zeros(3)},
        loss_weights={"proxies": torch.randn(4, 2)},
        split='{"kind": "wels"}',
        split_bits={"w": torch.tensor([7], dtype=torch.uint8)},
        scorecard=Scorecard({"recall@1": 0.5}, {"recall@1": 0.25}, 9, 4),
        training_log=({"epoch": 1, "loss": 2.5},),
        magnitudes={"w": (0.5, None)},
        provenance=Provenance("digest", "parent", 7, {}, {}, seconds={"training": 1.5}, class_names=("a", "b")),
    )


def trained(name, steps=3):
    """A convolution in NHWC and batch norm with an optimizer that has taken some steps, as in a training."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    network.to(memory_format=torch.channels_last)
    kinds = {
        "sgd": (torch.optim.SGD, {"momentum": 0.9}),
        "adam": (torch.optim.Adam, {}),
        "adamw": (torch.optim.AdamW, {}),
    }
    kind, options = kinds[name]
    optimizer = kind([{"params": list(network.parameters()), "lr": 0.1, "peak": 0.1}], fused=True, **options)
    take_steps(network, optimizer, steps)
    return network, optimizer


def take_steps(network, optimizer, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(4, 3, 8, 8, generator=generator)).square().sum().backward()
        optimizer.step()


def state_of(network, optimizer, *, number=2, epoch=3):
    return TrainingState(
        number=number,
        epoch=epoch,
        weights={name: value.detach().clone().contiguous() for name, value in network.state_dict().items()},
        loss_weights={},
        optimizer={"optimizer": optimizer.state_dict(), "scaler": {}},
        training_log=({"epoch": 1, "loss": 0.1 + 0.2}, {"epoch": 2, "loss": 1 / 3}),
        seconds=12.75,
        method_weights={"old": torch.ones(2, 3), "dropped": torch.tensor([True, False])},
    )


@settings(max_examples=40, deadline=None)
@given(generation=generations())
def test_what_was_written_is_read_again(tmp_path_factory, generation):
    folder = tmp_path_factory.mktemp("files") / "generation"
    write_generation(folder, generation)
    assert_same(read_generation(folder, generation.number), generation)
    assert_same(read_scorecard(folder / SCORECARD, generation.number), generation.scorecard)


def test_a_generation_is_plain_files(tmp_path, generation):
    write_generation(tmp_path / "generation", generation)
    written = {path.name for path in (tmp_path / "generation").iterdir()}
    assert written == {
        "weights.safetensors", "loss.safetensors", "split.json", "split.safetensors", "scorecard.json",
        "training.jsonl", "provenance.json",
    }  # fmt: skip
    assert json.loads((tmp_path / "generation" / "scorecard.json").read_text()) == {
        "generation": 2,
        "dense": {"recall@1": 0.5},
        "slim": {"recall@1": 0.25},
        "dense_parameters": 9,
        "slim_parameters": 4,
        "magnitudes": {"w": [0.5, None]},
    }


def test_weights_can_be_read_by_others(tmp_path, generation):
    before = os.umask(0o022)
    try:
        write_generation(tmp_path / "generation", generation)
        write_state(tmp_path / "state", state_of(*trained("sgd")))
    finally:
        os.umask(before)
    for path in [*(tmp_path / "generation").iterdir(), *(tmp_path / "state").iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path


def test_dropped_weights_leave_everything_else(tmp_path, generation):
    folder = tmp_path / "generation"
    write_generation(folder, generation)
    for _ in range(2):
        drop_weights(folder)
    assert {path.name for path in folder.iterdir()} == {SPLIT, SPLIT_BITS, SCORECARD, TRAINING_LOG, PROVENANCE}
    assert_same(read_scorecard(folder / SCORECARD, 2), generation.scorecard)
    with pytest.raises(KeMetricError, match=r"not kept.*keep: all") as raised:
        read_generation(folder, 2)
    assert raised.value.exit_code == ExitCode.LINEAGE


GARBAGE = (None, b"", b"{}", b"[]", b"null", b"\xff\x00garbage", "half")
DAMAGED = [(name, content) for name in (SCORECARD, PROVENANCE) for content in GARBAGE] + [
    *((name, content) for name in (WEIGHTS, LOSS_WEIGHTS, SPLIT_BITS) for content in (b"", b"garbage", "half")),
    (SPLIT, None),
    (SPLIT, b"\xff"),
    (TRAINING_LOG, None),
    (TRAINING_LOG, b"{\n"),
]


def spoil(path, content):
    if content is None:
        path.unlink()
    elif content == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(content)


@pytest.mark.parametrize(("name", "content"), DAMAGED)
def test_a_damaged_file_of_a_generation_is_named(tmp_path, generation, name, content):
    write_generation(tmp_path / "generation", generation)
    spoil(tmp_path / "generation" / name, content)
    with pytest.raises(KeMetricError, match=f"generation/{name}: (damaged|no such file|cannot be read)") as raised:
        read_generation(tmp_path / "generation", 2)
    assert raised.value.exit_code == ExitCode.LINEAGE


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (SCORECARD, {"slim": None}),
        (SCORECARD, {"slim_parameters": None}),
        (SCORECARD, {"dense": 1}),
        (SCORECARD, {"magnitudes": {"w": [1]}}),
        (SCORECARD, {"magnitudes": 3}),
        (PROVENANCE, {"parent_digest": None}),
        (PROVENANCE, {"more": 1}),
        (PROVENANCE, {"class_names": "ab"}),
        (PROVENANCE, {"class_names": [1]}),
    ],
)
def test_good_json_of_the_wrong_kind_is_damage(tmp_path, generation, name, change):
    write_generation(tmp_path / "generation", generation)
    path = tmp_path / "generation" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(KeMetricError, match=f"{name}: damaged") as raised:
        read_generation(tmp_path / "generation", 2)
    assert raised.value.exit_code == ExitCode.LINEAGE


def test_a_folder_that_was_renamed_is_not_another_generation(tmp_path, generation):
    write_generation(tmp_path / "generation", generation)
    folder = tmp_path / "generation"
    for read, path in ((read_generation, folder), (read_scorecard, folder / SCORECARD)):
        with pytest.raises(KeMetricError, match="generation 2 in the folder of generation 3") as raised:
            read(path, 3)
        assert raised.value.exit_code == ExitCode.LINEAGE


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_training_goes_on_bit_for_bit_from_a_stored_state(tmp_path, name):
    network, optimizer = trained(name)
    state = state_of(network, optimizer)
    write_state(tmp_path / "state", state)
    read = read_state(tmp_path / "state", 2)
    assert_same(read, state)

    other, fresh = trained(name, steps=0)
    other.load_state_dict(read.weights)
    fresh.load_state_dict(read.optimizer["optimizer"])
    take_steps(network, optimizer, 3, seed=2)
    take_steps(other, fresh, 3, seed=2)
    assert_same(dict(other.state_dict()), dict(network.state_dict()))
    assert_same(fresh.state_dict(), optimizer.state_dict())


@settings(max_examples=20, deadline=None)
@given(weights(), weights(), weights(), weights(), st.lists(JSON, max_size=2), FINITE)
def test_a_state_is_read_again(tmp_path_factory, network, loss, method, average, log, seconds):
    folder = tmp_path_factory.mktemp("files") / "state"
    state = TrainingState(1, 2, network, loss, {"scaler": {"scale": 1.5}}, tuple(log), seconds, method, average)
    write_state(folder, state)
    assert_same(read_state(folder, 1), state)


def test_files_of_before_classifications_and_methods_are_read(tmp_path, generation):
    """They say nothing of class names and of what a method keeps."""
    write_generation(tmp_path / "generation", generation)
    state = replace(state_of(*trained("sgd")), method_weights={})
    write_state(tmp_path / "state", state)
    paths = {"class_names": tmp_path / "generation" / PROVENANCE, "method_weights": tmp_path / "state" / STATE}
    for name, path in paths.items():
        facts = json.loads(path.read_text())
        del facts[name]
        path.write_text(json.dumps(facts))
    assert not (tmp_path / "state" / METHOD_WEIGHTS).exists()
    old = read_generation(tmp_path / "generation", 2)
    assert_same(replace(old, provenance=replace(old.provenance, class_names=("a", "b"))), generation)
    assert_same(read_state(tmp_path / "state", 2), state)


@pytest.mark.parametrize("name", [STATE, OPTIMIZER, WEIGHTS, LOSS_WEIGHTS, METHOD_WEIGHTS])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", "half"])
def test_a_damaged_state_is_named_with_the_way_out(tmp_path, name, content):
    folder = tmp_path / "state"
    write_state(folder, state_of(*trained("adam")))
    spoil(folder / name, content)
    message = f"state/{name}: .*; delete {folder} to train generation 2 from its beginning"
    with pytest.raises(KeMetricError, match=message) as raised:
        read_state(folder, 2)
    assert raised.value.exit_code == ExitCode.LINEAGE
    assert "weights_only" not in str(raised.value)


def test_a_state_of_another_generation_is_damage(tmp_path):
    write_state(tmp_path / "state", state_of(*trained("sgd")))
    with pytest.raises(KeMetricError, match="generation 2 in the folder of generation 1"):
        read_state(tmp_path / "state", 1)


def test_a_state_cannot_run_code(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harmed"),)

    write_state(tmp_path / "state", state_of(*trained("sgd")))
    torch.save({"optimizer": Harmful()}, tmp_path / "state" / OPTIMIZER)
    with pytest.raises(KeMetricError, match=f"{OPTIMIZER}: damaged"):
        read_state(tmp_path / "state", 2)
    (tmp_path / "state" / OPTIMIZER).write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(KeMetricError, match=f"{OPTIMIZER}: damaged"):
        read_state(tmp_path / "state", 2)
    assert not (tmp_path / "harmed").exists()


def test_the_newest_state_is_the_last_epoch_by_number(tmp_path):
    assert newest_state(tmp_path / "in-progress") is None
    for name in (
        "generation-001-epoch-99999",
        "generation-001-epoch-100000",
        "generation-1000-epoch-00001",
        ".writing-x",
    ):
        (tmp_path / "in-progress" / name).mkdir(parents=True)
    assert newest_state(tmp_path / "in-progress", 1).name == "generation-001-epoch-100000"
    assert newest_state(tmp_path / "in-progress", 100) is None
    assert newest_state(tmp_path / "in-progress").name == "generation-1000-epoch-00001"


def test_a_new_state_takes_the_place_of_all_before(tmp_path):
    folder = tmp_path / "in-progress"
    network, optimizer = trained("sgd")
    for epoch in (1, 2, 10):
        replace_state(folder, state_of(network, optimizer, epoch=epoch))
        (folder / ".writing-left-by-a-kill").mkdir()
    replace_state(folder, state_of(network, optimizer, epoch=11))
    assert [path.name for path in folder.iterdir()] == ["generation-002-epoch-00011"]
    assert read_state(newest_state(folder, 2), 2).epoch == 11


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; the lineage is damaged"),
        (b"", "damaged: JSONDecodeError"),
        (b'{"a": 1', "damaged: JSONDecodeError"),
        (b"\xff\xfe{}", "damaged: UnicodeDecodeError"),
        (b"[1]", "damaged: holds list, not an object"),
        (b"null", "damaged: holds NoneType, not an object"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    path = tmp_path / "facts.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KeMetricError, match=f"facts.json: {message}") as raised:
        read_object(path)
    assert raised.value.exit_code == ExitCode.LINEAGE


def test_what_is_no_file_cannot_be_read(tmp_path):
    with pytest.raises(KeMetricError, match=f"{tmp_path}: cannot be read: IsADirectoryError") as raised:
        read_text(tmp_path)
    assert raised.value.exit_code == ExitCode.LINEAGE


def test_text_is_read_as_it_was_written(tmp_path):
    write_text(tmp_path / "file", "a\r\nb\rc\n ")
    assert read_text(tmp_path / "file") == "a\r\nb\rc\n "


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        (("dense", "recall@1"), "x", "dense: recall@1 = 'x', not a number"),
        (("dense", "recall@1"), None, "dense: recall@1 = None, not a number"),
        (("dense", "recall@1"), True, "dense: recall@1 = True, not a number"),
        (("dense", "recall@1"), float("nan"), "dense: recall@1 = nan, not a finite number"),
        (("slim", "recall@1"), float("-inf"), "slim: recall@1 = -inf, not a finite number"),
        (("slim_as_cut",), {"recall@1": []}, "slim_as_cut: recall@1"),
        (("dense_parameters",), 9.5, "dense_parameters = 9.5, not a whole number"),
        (("slim_parameters",), "4", "slim_parameters = '4', not a whole number"),
        (("magnitudes",), {"w": ["x", None]}, "magnitudes: w = 'x'"),
        (("classes",), {"dense": {"accuracy": {"a": "x"}, "confusion": {}}}, "classes: dense: accuracy: a"),
        (
            ("classes",),
            {"dense": {"accuracy": {}, "confusion": {"a": {"b": "x"}}}},
            "classes: dense: confusion: a: b",
        ),
        (("narrow",), {"0.25": {"scores": {"recall@1": "x"}, "parameters": 1}}, "narrow: 0.25: scores: recall@1"),
        (("narrow",), {"half": {"scores": {}, "parameters": 1}}, "could not convert string to float: 'half'"),
        (("sizes",), {"dense": {"8": {"recall@1": float("inf")}}}, "sizes: dense: 8: recall@1"),
    ],
)
def test_a_score_that_is_no_finite_number_is_damage_that_is_named(generation, tmp_path, where, value, told):
    write_generation(tmp_path / "generation-002", generation)
    path = tmp_path / "generation-002" / SCORECARD
    facts = json.loads(path.read_text())
    inner = facts
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = value
    path.write_text(json.dumps(facts))
    with pytest.raises(KeMetricError, match=f"scorecard.json: damaged: .*{re.escape(told)}") as raised:
        read_scorecard(path, 2)
    assert raised.value.exit_code == ExitCode.LINEAGE


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[1]", "holds list, not an object"),
        ("", "Expecting value"),
        ('{"loss": 1.0}', "epoch = None"),
        ('{"epoch": "1"}', "epoch = '1'"),
        ('{"epoch": 1, "loss": NaN}', "loss = nan, not a finite number"),
        ('{"epoch": 1, "loss": 1e999}', "loss = inf, not a finite number"),
    ],
)
def test_a_line_of_a_log_that_is_no_record_is_damage_that_is_named(tmp_path, line, told):
    (tmp_path / TRAINING_LOG).write_text(f'{{"epoch": 0}}\n{line}\n{{"epoch": 2}}\n')
    with pytest.raises(KeMetricError, match=f"training.jsonl: damaged: line 2: .*{told}") as raised:
        read_log(tmp_path / TRAINING_LOG)
    assert raised.value.exit_code == ExitCode.LINEAGE
