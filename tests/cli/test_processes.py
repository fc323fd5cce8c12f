"""Processes end together; here all of them are objects of one process, which has no network to train."""

import os
import signal
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from ke_metric.cli import main, processes
from ke_metric.cli.processes import Processes, together
from ke_metric.errors import ExitCode, KeMetricError

GLOO = "[/pytorch/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:25782: Connection reset by peer. GLHF!"
GONE = "another process of this training has gone"
ALONE = SimpleNamespace(processes=1, is_main=True, rank=0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 0.3)
    monkeypatch.setattr(processes, "ANSWER", 2.0)
    monkeypatch.setattr(processes, "CONNECTED", 5.0)


@pytest.fixture
def killed(monkeypatch):
    """The exit codes with which processes have been ended from outside."""
    codes, ended = [], threading.Event()

    def end(code):
        codes.append(int(code))
        ended.set()

    monkeypatch.setattr(os, "_exit", end)
    return SimpleNamespace(codes=codes, wait=lambda: ended.wait(5))


def begin(folder, count, *, key=None, when_told=lambda address: None):
    """Return the processes of one machine; the others begin when the first one has told where it listens."""
    told, is_told, found = [], threading.Event(), {}

    def gather_records(records):
        if records:
            told.extend(records)
            when_told(tuple(records[0][:2]))
            is_told.set()
        assert is_told.wait(5)
        return [(*told[0][:2], key or told[0][2])] if not records else told

    def construct(rank):
        engine = SimpleNamespace(processes=count, is_main=rank == 0, rank=rank, gather_records=gather_records)
        found[rank] = Processes(engine, folder / "lineage", None)

    threads = [threading.Thread(target=construct, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return [found[rank] for rank in range(count)]


@pytest.fixture
def three(tmp_path, monkeypatch):
    """Three processes of one machine."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    found = begin(tmp_path, 3)
    assert all(each._is_connected.is_set() for each in found)
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


def test_an_error_is_said_at_once_and_by_the_first_process_alone(three, capsys):
    first, second, third = three
    ending = []
    error = KeMetricError("a broken picture", ExitCode.DATA)
    failing = threading.Thread(target=lambda: ending.append(second.stopped_by(error)))
    failing.start()
    found = lost(first)
    assert (str(found), found.exit_code) == ("a broken picture", ExitCode.DATA)
    assert capsys.readouterr().err == "ke-metric: a broken picture\n"
    endings = [first.stopped_by(found), third.stopped_by(lost(third))]
    failing.join()
    assert [each.code for each in (*ending, *endings)] == [ExitCode.DATA] * 3
    assert capsys.readouterr().err == ""


def test_an_error_that_all_have_is_said_by_the_first(three, capsys):
    error = KeMetricError("a wrong field", ExitCode.RECIPE)
    assert three[0].stopped_by(error) is error
    assert [each.stopped_by(error).code for each in three[1:]] == [ExitCode.RECIPE, ExitCode.RECIPE]
    assert capsys.readouterr().err == ""


def test_an_error_that_all_have_is_said_once_where_the_first_one_meets_it_last(three, capsys):
    error = KeMetricError("a wrong field", ExitCode.RECIPE)
    assert [each.stopped_by(error).code for each in reversed(three)] == [ExitCode.RECIPE] * 3
    assert capsys.readouterr().err == "ke-metric: a wrong field\n"


def test_an_error_of_its_own_is_said_beside_that_of_another_process(three):
    three[2]._is_over.set()
    three[1].stopped_by(KeMetricError("a broken picture", ExitCode.DATA))
    error = KeMetricError("a full disk", ExitCode.ENVIRONMENT)
    assert three[0].stopped_by(error) is error


def test_a_sigterm_because_another_process_was_killed_does_not_hide_it(three, capsys):
    three[2]._is_over.set()
    leave(three[1])
    assert three[0]._has_heard.wait(5)
    # Nothing to stop any more.
    three[0].terminate(signal.SIGTERM, None)
    assert three[0].stopped_by(processes._TerminatedError()).code == ExitCode.ENVIRONMENT
    assert capsys.readouterr().err.count(GONE) == 1


def test_a_sigterm_of_its_own_stops_a_process_at_once(three):
    for other in three[1:]:
        other._is_over.set()
    with pytest.raises(KeyboardInterrupt) as raised:
        three[0].terminate(signal.SIGTERM, None)
    assert three[0].stopped_by(raised.value) is raised.value


def test_a_sigterm_does_not_take_its_exit_code_from_a_process_that_ends(three, tmp_path, monkeypatch):
    for other in three[1:]:
        other._is_over.set()
    monkeypatch.setattr(processes, "Processes", lambda *arguments: three[0])
    before, handlers = signal.getsignal(signal.SIGTERM), []
    try:
        with pytest.raises(KeMetricError, match="mine"), together(three[0]._engine, tmp_path, None):
            raise meant(handlers)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert handlers == [three[0].terminate]


def meant(handlers):
    handlers.append(signal.getsignal(signal.SIGTERM))
    return KeMetricError("mine")


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


@pytest.mark.parametrize("says", [b"", b"\0\0\0\x10" + b"guessed guessed "])
def test_a_stranger_is_not_one_of_the_processes_and_keeps_none_out(says, tmp_path, monkeypatch, capsys):
    """One that says nothing stays connected, which must keep nobody waiting."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    strangers = []

    def come(address):
        assert address[0] == "127.0.0.1"
        strangers.append(socket.create_connection(address))
        strangers[0].sendall(says)

    first, second = begin(tmp_path, 2, when_told=come)
    strangers[0].close()
    assert (len(first._connections), len(second._connections)) == (1, 1)
    assert capsys.readouterr().err == ""


def test_who_cannot_be_connected_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "CONNECTED", 0.5)
    first, second = begin(tmp_path, 2, key=b"another one")
    told = capsys.readouterr().err
    assert "warning: process 0 has no connection to 1 of the others at 127.0.0.1:" in told
    assert "warning: process 1 has no connection" in told
    assert "digest" in told
    assert not first._connections + second._connections
    first._is_connected.set()


def test_several_machines_meet_at_an_address_that_the_others_reach(monkeypatch):
    """MASTER_ADDR may be one that the first machine alone knows: 127.0.1.1 is what Debian gives a host's own name."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.1.1")
    engine = SimpleNamespace(processes=2, gather_records=lambda records: [*records, "127.0.0.1"])
    assert processes._address_of_first(engine) == "127.0.0.1"


def test_a_forked_worker_does_not_hold_a_connection_open(three):
    """A loader's worker lives on for seconds when its parent is killed."""
    descriptors = [connection.fileno() for each in three for connection in each._connections]
    child = os.fork()
    if child == 0:
        os._exit(sum(Path(f"/proc/self/fd/{descriptor}").exists() for descriptor in descriptors))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(descriptors) == 4


@pytest.mark.parametrize(
    ("alone", "text", "expected"),
    [(False, GLOO, KeMetricError), (True, GLOO, RuntimeError), (False, "shapes do not fit", RuntimeError)],
)
def test_a_process_that_has_gone_is_told_in_words(alone, text, expected, three, tmp_path):
    process = Processes(ALONE, tmp_path, None) if alone else three[0]
    for other in set(three) - {process}:
        other._is_over.set()
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
    three[2]._is_over.set()
    leave(three[1])
    assert "Go on with: " in str(lost(three[0]))
    three[0]._is_over.set()


def test_one_process_ends_as_it_would(tmp_path):
    with together(ALONE, tmp_path, None):
        pass
    with pytest.raises(KeMetricError, match="mine"), together(ALONE, tmp_path, None):
        raise KeMetricError("mine")


@pytest.mark.parametrize("local_rank", ["0", "1"])
def test_an_error_before_the_processes_have_joined_is_said_whichever_meets_it(local_rank, tmp_path):
    found = CliRunner(env={"LOCAL_RANK": local_rank}).invoke(main, ["data", "check", str(tmp_path / "nonsense.yaml")])
    assert found.exit_code == ExitCode.DATA
    assert found.stderr.count("nonsense.yaml") == 1
