"""Processes end together; here all of them are objects of one process, which has no network to train."""

import os
import socket
import threading
from multiprocessing.connection import Client
from types import SimpleNamespace

import pytest

from ke_metric.cli import processes
from ke_metric.cli.processes import Processes, together
from ke_metric.errors import ExitCode, KeMetricError

GLOO = "[/pytorch/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:25782: Connection reset by peer. GLHF!"
GONE = "another process of this training has gone"
ALONE = SimpleNamespace(processes=1, is_main=True, rank=0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 0.3)
    monkeypatch.setattr(processes, "ANSWER", 2.0)


@pytest.fixture
def killed(monkeypatch):
    """The exit codes with which processes have been ended from outside."""
    codes, ended = [], threading.Event()

    def end(code):
        codes.append(int(code))
        ended.set()

    monkeypatch.setattr(os, "_exit", end)
    return SimpleNamespace(codes=codes, wait=lambda: ended.wait(5))


@pytest.fixture
def three(tmp_path, monkeypatch):
    """Three processes of one machine."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    told = []

    def gather_records(records):
        told.extend(records)
        return told

    found = []
    for rank in range(3):
        engine = SimpleNamespace(processes=3, is_main=rank == 0, rank=rank, gather_records=gather_records)
        found.append(Processes(engine, tmp_path / "lineage", None))
    assert all(each._is_connected.wait(5) for each in found)
    return found


def leave(process):
    """Close a process's connections, as the operating system does when it is killed."""
    process._is_over.set()
    for connection in process._connections:
        with socket.socket(fileno=os.dup(connection.fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)


def lost(process):
    """Return what a process is told when it waits for one that has gone."""
    with pytest.raises(KeMetricError) as raised, process.lost_in_words():
        raise RuntimeError(GLOO)
    return raised.value


def test_an_error_is_said_by_the_first_process_alone(three, capsys):
    first, second, third = three
    ending = []
    error = KeMetricError("a broken picture", ExitCode.DATA)
    failing = threading.Thread(target=lambda: ending.append(second.stopped_by(error)))
    failing.start()
    found = lost(first)
    assert (str(found), found.exit_code) == ("a broken picture", ExitCode.DATA)
    assert first.stopped_by(found) is found
    others = third.stopped_by(lost(third))
    failing.join()
    assert [each.code for each in (*ending, others)] == [ExitCode.DATA, ExitCode.DATA]
    assert capsys.readouterr().err == ""


def test_an_error_that_all_have_is_said_by_the_first(three, capsys):
    error = KeMetricError("a wrong field", ExitCode.RECIPE)
    assert three[0].stopped_by(error) is error
    assert [each.stopped_by(error).code for each in three[1:]] == [ExitCode.RECIPE, ExitCode.RECIPE]
    assert capsys.readouterr().err == ""


def test_a_killed_process_is_missed_where_nobody_waits_for_it(three, killed, capsys):
    recorded = []
    three[0].record = lambda code, reason: recorded.append((code, reason))
    three[2]._is_over.set()
    leave(three[1])
    assert killed.wait()
    assert killed.codes[0] == ExitCode.ENVIRONMENT
    assert recorded[0][0] == ExitCode.ENVIRONMENT
    assert GONE in recorded[0][1]
    assert capsys.readouterr().err.count(GONE) == 1


def test_where_the_first_process_is_killed_another_one_says_so(three, capsys):
    leave(three[0])
    endings = [each.stopped_by(lost(each)) for each in three[1:]]
    assert [each.code for each in endings] == [ExitCode.ENVIRONMENT, ExitCode.ENVIRONMENT]
    assert capsys.readouterr().err.count(GONE) == len(endings) - 1


def test_an_error_of_our_own_shows_its_trace_where_it_is(three, killed):
    error = ZeroDivisionError("1 / 0")
    three[2]._is_over.set()
    assert three[1].stopped_by(error) is error
    assert killed.wait()
    assert killed.codes == [ExitCode.UNEXPECTED]


def test_processes_that_have_done_all_end_in_peace(three, killed):
    for each in three:
        each.done()
    for each in three:
        leave(each)
    assert not killed.codes
    assert not any(each._has_heard.wait(0.3) for each in three)


def test_a_stranger_is_not_one_of_the_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    told = []

    def gather_records(records):
        told.extend(records)
        return told

    first = Processes(
        SimpleNamespace(processes=2, is_main=True, rank=0, gather_records=gather_records), tmp_path, None
    )
    with pytest.raises((processes.AuthenticationError, EOFError, ConnectionError)):
        Client(("127.0.0.1", told[0][0]), authkey=b"guessed")
    assert not first._is_connected.is_set()
    Processes(SimpleNamespace(processes=2, is_main=False, rank=1, gather_records=gather_records), tmp_path, None)
    assert first._is_connected.wait(5)


@pytest.mark.parametrize(
    ("alone", "text", "expected"),
    [(False, GLOO, KeMetricError), (True, GLOO, RuntimeError), (False, "shapes do not fit", RuntimeError)],
)
def test_a_process_that_has_gone_is_told_in_words(alone, text, expected, three, tmp_path):
    process = Processes(ALONE, tmp_path, None) if alone else three[0]
    leave(three[1])
    with pytest.raises(expected) as raised, process.lost_in_words():
        raise RuntimeError(text)
    process._is_over.set()
    if expected is KeMetricError:
        assert raised.value.exit_code == ExitCode.ENVIRONMENT
        assert GONE in str(raised.value)
        assert "No lineage was begun yet" in str(raised.value)


def test_the_command_that_goes_on_is_told_where_there_is_a_lineage(three, tmp_path):
    (tmp_path / "lineage").mkdir()
    (tmp_path / "lineage" / "lineage.json").write_text("{}")
    leave(three[1])
    assert "Go on with: " in str(lost(three[0]))
    three[0]._is_over.set()


def test_one_process_ends_as_it_would(tmp_path):
    with together(ALONE, tmp_path, None):
        pass
    with pytest.raises(KeMetricError, match="mine"), together(ALONE, tmp_path, None):
        raise KeMetricError("mine")
