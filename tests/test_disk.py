"""Files and folders are whole or not there: after an error, after a kill at any operation, and on a full disk."""

import errno
import fcntl
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ke_metric import disk
from ke_metric.disk import (
    append_line,
    lock_for_writing,
    remove_folder,
    temporary_name,
    to_json,
    whole_folder,
    write_text,
)
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.lineage.files import not_written

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def in_a_child(action, *, kill_at=None):
    """Run `action` in a forked process that is killed before its `kill_at`-th change to the disk.

    Return the signal that ended it as a negative number, or the exit code its error asks for.
    """
    child = os.fork()
    if child == 0:
        code = int(ExitCode.UNEXPECTED)
        try:
            if kill_at is not None:
                sys.addaudithook(kill_before(kill_at))
            action()
            code = 0
        except KeMetricError as error:
            code = int(error.exit_code)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_before(step):
    left = step

    def hook(event, arguments):
        nonlocal left
        if event in CHANGES or (event == "open" and arguments[2] & WRITING):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def fill(folder, text="new"):
    with whole_folder(folder, sole_writer=True, as_error=not_written) as temporary:
        (temporary / "a").write_text(text)
        (temporary / "b").write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_everything_is_in_it(tmp_path):
    folder = tmp_path / "deep" / "er" / "folder"
    with whole_folder(folder) as temporary:
        (temporary / "a").write_text("a")
        assert not folder.exists()
        assert temporary.parent == folder.parent
    assert names(folder.parent) == ["folder"]
    assert (folder / "a").read_text() == "a"


def test_an_empty_folder_may_be_there_already(tmp_path):
    (tmp_path / "folder").mkdir()
    fill(tmp_path / "folder")
    assert names(tmp_path / "folder") == ["a", "b"]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    fill(tmp_path / "folder", "old")
    with pytest.raises(KeMetricError, match="folder: cannot be written: Directory not empty") as raised:
        fill(tmp_path / "folder")
    assert raised.value.exit_code == ExitCode.ENVIRONMENT
    assert (tmp_path / "folder" / "a").read_text() == "old"
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), KeMetricError("x")])
def test_after_an_error_nothing_is_left(tmp_path, error):
    def fail():
        with whole_folder(tmp_path / "folder") as temporary:
            (temporary / "a").write_text("a")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert names(tmp_path) == []


@pytest.mark.parametrize("failing", [(Path, "write_text"), (os, "fsync"), (Path, "rename"), (Path, "mkdir")])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_on_a_full_disk_nothing_is_left(tmp_path, monkeypatch, failing, number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(*failing, fail)
        with pytest.raises(KeMetricError, match=r"folder: .*disk is full.*--resume") as full:
            fill(tmp_path / "folder")
    assert full.value.exit_code == ExitCode.ENVIRONMENT
    assert names(tmp_path) == []


def test_another_trouble_is_named(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeMetricError, match=r"cannot be written: Input/output error\.") as raised:
        write_text(tmp_path / "file", "x", as_error=not_written)
    assert raised.value.exit_code == ExitCode.ENVIRONMENT


def test_everything_reaches_the_disk_before_the_folder_appears(tmp_path, monkeypatch):
    reached = []
    monkeypatch.setattr(disk, "reach_disk", lambda path: reached.append((path.name, names(tmp_path))))
    with whole_folder(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("a")
        (temporary / "b").write_text("b")
        own = temporary.name
    before, after = reached[:-1], reached[-1]
    assert {name for name, _ in before} == {"a", "b", own}
    assert all(present == [own] for _, present in before)
    assert after == (tmp_path.name, ["folder"])


def test_a_killed_process_leaves_the_whole_folder_or_none(tmp_path):
    folder = tmp_path / "folder"
    outcomes = set()
    for step in range(100):
        code = in_a_child(lambda: fill(folder), kill_at=step)
        outcomes.add(folder.exists())
        assert not folder.exists() or names(folder) == ["a", "b"]
        if code == 0:
            break
        if not folder.exists():
            fill(folder)
        assert names(tmp_path) == ["folder"], f"left by a kill at operation {step}"
        remove_folder(folder)
    assert code == 0
    assert step > 3
    assert outcomes == {False, True}


def test_leftovers_of_another_folder_are_not_touched(tmp_path):
    other = temporary_name(tmp_path / "of-folder")
    other.mkdir()
    own = temporary_name(tmp_path / "folder")
    own.mkdir()
    fill(tmp_path / "folder")
    assert names(tmp_path) == [other.name, "folder"]


def test_two_processes_never_share_a_temporary_folder(tmp_path):
    assert len({temporary_name(tmp_path / "folder") for _ in range(100)}) == 100


def test_a_limit_on_file_sizes_is_an_error_of_the_environment(tmp_path):
    """The real thing: the operating system refuses the write, not a stand-in."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        fill(tmp_path / "folder", "x" * 1001)

    assert in_a_child(limited) == ExitCode.ENVIRONMENT
    assert names(tmp_path) == []


def test_others_may_read_what_we_write(tmp_path):
    before = os.umask(0o022)
    try:
        fill(tmp_path / "folder")
        write_text(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "folder" / "a").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_a_removed_folder_is_gone_and_leaves_nothing(tmp_path):
    fill(tmp_path / "folder")
    remove_folder(tmp_path / "folder")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_removed_is_an_error_of_the_environment(tmp_path):
    with pytest.raises(KeMetricError, match="folder: cannot be written: No such file") as raised:
        remove_folder(tmp_path / "folder")
    assert raised.value.exit_code == ExitCode.ENVIRONMENT


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    outcomes = []
    for step in range(10):
        code = in_a_child(lambda: write_text(path, "new ä\n", sole_writer=True), kill_at=step)
        outcomes.append(path.read_bytes().decode())
        if code == 0:
            break
    assert outcomes[0] == "old"
    assert outcomes[-1] == "new ä\n"
    assert set(outcomes) == {"old", "new ä\n"}
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("failing", [(Path, "write_bytes"), (os, "fsync"), (Path, "replace")])
def test_on_a_full_disk_a_file_stays_as_it_was(tmp_path, monkeypatch, failing):
    write_text(tmp_path / "file", "old")

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*failing, fail)
        with pytest.raises(KeMetricError, match=r"file: .*disk is full"):
            write_text(tmp_path / "file", "new")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_two_who_write_one_file_do_not_disturb_each_other(tmp_path, monkeypatch):
    """The second one writes all of it while the first one is on its way to the disk."""
    reach, path = disk.reach_disk, tmp_path / "file"

    def meanwhile(temporary):
        monkeypatch.setattr(disk, "reach_disk", reach)
        write_text(path, "second")
        assert path.read_text() == "second"
        reach(temporary)

    monkeypatch.setattr(disk, "reach_disk", meanwhile)
    write_text(path, "first")
    assert path.read_text() == "first"
    assert names(tmp_path) == ["file"]


def test_what_a_killed_process_left_of_a_file_goes_when_it_is_old(tmp_path):
    path, other = tmp_path / "file", tmp_path / "another-file"
    for place in (path, path, other):
        temporary_name(place).write_text("half")
    [old, new] = [each for each in tmp_path.iterdir() if each.name.endswith("-file") and "another" not in each.name]
    os.utime(old, (0, 0))
    write_text(path, "text")
    assert not old.exists()
    assert new.exists()
    write_text(path, "text", sole_writer=True)
    assert [each.endswith("another-file") for each in names(tmp_path)] == [True, False]


def test_lines_are_appended(tmp_path):
    for line in ("one", "zwei ü"):
        append_line(tmp_path / "log", line)
    assert (tmp_path / "log").read_bytes() == "one\nzwei ü\n".encode()


@pytest.mark.parametrize("torn", ["{", "one\n{half a li"])
def test_a_line_after_a_torn_one_is_on_its_own(tmp_path, torn):
    (tmp_path / "log").write_text(torn)
    append_line(tmp_path / "log", "whole")
    append_line(tmp_path / "log", "more")
    assert (tmp_path / "log").read_text() == f"{torn}\nwhole\nmore\n"


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts the bytes read as Linux does")
def test_a_long_log_is_not_read_again_for_every_line(tmp_path):
    with (tmp_path / "log").open("wb") as file:
        file.truncate(50_000_000)

    def bytes_read():
        return int(Path("/proc/self/io").read_text().split()[1])

    before = bytes_read()
    append_line(tmp_path / "log", "line")
    assert bytes_read() - before < 50_000


def test_a_log_on_a_full_disk(tmp_path):
    with pytest.raises(KeMetricError, match="full: cannot be written: the disk is full") as raised:
        append_line(Path("/dev/full"), "line")
    assert raised.value.exit_code == ExitCode.ENVIRONMENT


def test_a_number_that_is_not_finite_never_gets_into_a_file():
    assert json.loads(to_json({"a": [1.5, None]})) == {"a": [1.5, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json({"a": float("nan")})


def test_a_folder_that_failed_takes_the_parents_with_it_that_it_made(tmp_path):
    (tmp_path / "there").mkdir()
    for place in (tmp_path / "there" / "folder", tmp_path / "made" / "deeper" / "folder"):
        with pytest.raises(KeMetricError, match=r"folder: cannot be written: the disk is full$"), whole_folder(place):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == ["there"]
    assert names(tmp_path / "there") == []


def fill_as(path, as_error):
    with whole_folder(path, as_error=as_error):
        pass


@pytest.mark.parametrize(
    "act",
    [
        fill_as,
        lambda path, as_error: write_text(path, "text", as_error=as_error),
        lambda path, as_error: append_line(path, "line", as_error=as_error),
        lambda path, as_error: remove_folder(path, as_error=as_error),
    ],
)
def test_a_room_says_a_failure_in_its_own_words(tmp_path, monkeypatch, act):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    def as_error(path, error):
        return KeMetricError(f"{path.name} of a room: {error.strerror}", ExitCode.DATA)

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(Path, "open", fail)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KeMetricError, match="file of a room: Input/output error") as raised:
        act(tmp_path / "file", as_error)
    assert raised.value.exit_code is ExitCode.DATA


def test_a_lock_is_one_writer_s(tmp_path):
    lock = lock_for_writing(tmp_path / "made" / "lock", "busy")
    try:
        with pytest.raises(KeMetricError, match=r"^busy$") as raised:
            lock_for_writing(tmp_path / "made" / "lock", "busy")
    finally:
        lock.release()
    assert raised.value.exit_code == ExitCode.LINEAGE
    lock_for_writing(tmp_path / "made" / "lock", "busy").release()


LOOKING = """
import sys
from pathlib import Path
from ke_metric.disk import is_locked
print("looking", flush=True)
seen = 0
while not Path(sys.argv[2]).exists():
    seen += is_locked(Path(sys.argv[1]))
print(seen)
"""


def test_looking_at_a_lock_refuses_no_writer(tmp_path):
    """Another process looks all the time; half of all tries would be refused if they did not wait for it."""
    path, stop = tmp_path / "lock", tmp_path / "stop"
    path.touch()
    command = [sys.executable, "-c", LOOKING, str(path), str(stop)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as looking:
        assert looking.stdout.readline() == "looking\n"
        try:
            for _ in range(200):
                lock_for_writing(path, "busy").release()
            before = disk.is_locked(path)
            lock = lock_for_writing(path, "busy")
            held = disk.is_locked(path)
            lock.release()
        finally:
            stop.touch()
    assert (before, held) == (False, True)


def test_those_who_look_do_not_take_one_another_for_a_writer(tmp_path):
    path = tmp_path / "lock"
    assert not disk.is_locked(path)
    path.touch()
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert not disk.is_locked(path)
    path.chmod(0o444)
    assert not disk.is_locked(path)
