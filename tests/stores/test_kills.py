"""A store whose writer is killed at any moment has everything that was acknowledged, and nothing by halves.

The writer is a child of this very file run as a script, which imports the stores once and forks for each writer.
"""

import contextlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]  # milvus_server, postgres_server

import milvus_server
import postgres_server
from store_kinds import EACH, STORES
from store_twin import Twin, assert_same_answers, assert_same_content, unit_vectors

from ke_metric.errors import KeMetricError
from ke_metric.stores.contract import Item

D = 16
KILLS = 50
KILLS_PER_FOLDER = 10
CALLS = 12
LONGEST_WAIT = 0.05
"""Seconds from an acknowledgement to the kill, at most; calls take a tenth to all of it."""

# --- the writer ---------------------------------------------------------------------------------------------------


def serve(kind):
    """Fork a writer for each line of stdin, which holds a folder and the calls to make; say when it is dead."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                os.setsid()
                write(kind, **json.loads(line))
            finally:
                os._exit(1)
        say("dead", os.waitpid(child, 0)[1])


def write(kind, folder, calls):
    say("started", os.getpid())
    store = kind.make(Path(folder), D, True)
    say("opened")
    for call in calls:
        apply(store, call)
        say("done")
    store.close()
    say("finished")
    os._exit(0)


def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def apply(target, call):
    """Do a call on a store, or on its twin."""
    match call:
        case ["add", numbers, seed, replace]:
            items = [Item(f"id-{n}", f"{seed}/{n}.jpg", f"class-{n % 5}") for n in numbers]
            vectors = unit_vectors(len(items), D, seed=seed)
            if isinstance(target, Twin):
                target.add(items, vectors)
            else:
                target.add(items, vectors, replace=replace)
        case ["remove", numbers]:
            target.remove([f"id-{n}" for n in numbers])
        case ["flush"]:
            if not isinstance(target, Twin):
                target.flush()


# --- the test -----------------------------------------------------------------------------------------------------


class Writers:
    """The process that forks writers."""

    def __init__(self, name):
        self.process = subprocess.Popen(
            [sys.executable, __file__, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, folder, calls):
        print(json.dumps({"folder": str(folder), "calls": calls}), file=self.process.stdin, flush=True)
        return int(self.expect("started")[0])

    def expect(self, word):
        said, *rest = self.process.stdout.readline().split()
        assert said == word, (said, rest)
        return rest

    def until_dead(self):
        """Return everything it still said, and its status."""
        said = []
        while not said or said[-1][0] != "dead":
            said.append(self.process.stdout.readline().split())
        return [words[0] for words in said[:-1]], int(said[-1][1])

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)


@pytest.fixture(params=EACH)
def name(request):
    return request.param


@pytest.fixture
def writers(name):
    if name.startswith("postgres"):
        postgres_server.server_uri()  # the writers' as well: one that they started would die with them
    if name.startswith("milvus server"):
        milvus_server.server_uri()
    running = Writers(name)
    yield running
    running.close()


def draw_calls(draw, known, fresh):
    """Draw calls that follow on items `known`; new ones are numbered from `fresh` on."""
    known, calls = set(known), []
    while len(calls) < CALLS:
        match draw.choice(["add", "add", "add", "replace", "remove", "flush"]):
            case "add":
                numbers = list(range(fresh, fresh + draw.choice([1, 7, 200, 1500])))
                calls.append(["add", numbers, draw.randrange(10**6), False])
                known |= set(numbers)
                fresh = numbers[-1] + 1
            case "replace" if known:
                numbers = draw.sample(sorted(known), min(len(known), draw.choice([1, 30, 400])))
                calls.append(["add", numbers, draw.randrange(10**6), True])
            case "remove" if known:
                numbers = draw.sample(sorted(known), min(len(known), draw.choice([1, 30, 400])))
                calls.append(["remove", numbers])
                known -= set(numbers)
            case "flush":
                calls.append(["flush"])
    return calls


def copy_of(twin):
    new = Twin()
    new.content = dict(twin.content)
    return new


def twins_after(twin, calls, done):
    """Return what may be in a store after so many acknowledged calls: the twin after them, or after one more as well.

    Of a store that had not even opened (-1) nothing was called.
    """
    for call in calls[: max(done, 0)]:
        apply(twin, call)
    if not 0 <= done < len(calls):
        return [twin]
    one_more = copy_of(twin)
    apply(one_more, calls[done])
    return [twin, one_more]


def run_and_kill(writers, folder, calls, draw):
    """Kill a writer somewhere in its calls; return how many it acknowledged, -1 where it had not even opened."""
    process = writers.start(folder, calls)
    said = []
    for _ in range(draw.randrange(len(calls))):
        said.append("opened" if not said else "done")
        writers.expect(said[-1])
    time.sleep(draw.random() * LONGEST_WAIT)
    with contextlib.suppress(ProcessLookupError):  # it had finished
        os.killpg(process, signal.SIGKILL)
    rest, status = writers.until_dead()
    assert status in (0, signal.SIGKILL), status
    said += rest
    return said.count("done") if "opened" in said else -1


def holds(store, twin):
    try:
        assert_same_content(store, twin, batch_size=500)
    except AssertionError:
        return False
    return True


def check_after_kill(kind, folder, calls, done, twin):
    """Return what is in the store, the twin after the calls that were done or one more, and if one more."""
    possible = twins_after(twin, calls, done)
    found = []
    for writing in (False, True):
        try:
            store = kind.make(folder, D, writing)
        except KeMetricError:
            # A store that nobody has finished making is not there to be read, but can be made.
            assert done == -1
            assert not writing
            assert not twin.content
            continue
        there = [one for one in possible if holds(store, one)]
        assert there, f"{done} of {len(calls)} calls were acknowledged, next is {str(calls[done : done + 1])[:200]}"
        found.append(there[0])
        queries = unit_vectors(3, D, seed=done + 1)
        assert_same_answers(store, there[0], queries, 5, exact=kind.exact, tolerance=kind.tolerance)
        store.close()
    assert all(one is found[0] for one in found)
    return found[0], found[0] is not twin


@pytest.mark.slow
def test_a_writer_that_is_not_killed_finishes(name, writers, tmp_path):
    calls = draw_calls(random.Random(1), set(), 0)
    writers.start(tmp_path / "store", calls)
    said, status = writers.until_dead()
    assert said == ["opened", *["done"] * len(calls), "finished"]
    assert status == 0
    twin, _ = check_after_kill(STORES[name], tmp_path / "store", calls, len(calls), Twin())
    assert twin.content
    STORES[name].remove(tmp_path / "store")


@pytest.mark.slow
def test_killed_at_random_moments(name, writers, tmp_path):
    kill_writers(name, writers, tmp_path, KILLS)


@pytest.mark.parametrize("name", [name for name in STORES if name.startswith("postgres")])
def test_killed_a_few_times(name, writers, tmp_path):
    kill_writers(name, writers, tmp_path, 3)


def kill_writers(name, writers, tmp_path, kills):
    seed = int(os.environ.get("KE_METRIC_KILL_SEED", secrets.randbits(32)))
    draw = random.Random(seed)
    sys.stdout.write(f"KE_METRIC_KILL_SEED={seed}\n")
    outcomes, folder = Counter(), tmp_path / "none yet"
    for kill in range(kills):
        if kill % KILLS_PER_FOLDER == 0:
            STORES[name].remove(folder)
            folder, twin, fresh = tmp_path / f"store-{kill}", Twin(), 0
        calls = draw_calls(draw, {int(name.removeprefix("id-")) for name in twin.content}, fresh)
        done = run_and_kill(writers, folder, calls, draw)
        sys.stdout.write(f"kill {kill}: {done} of {len(calls)} calls acknowledged\n")
        twin, more = check_after_kill(STORES[name], folder, calls, done, twin)
        killed = "before it opened" if done < 0 else "when done" if done == len(calls) else f"in {calls[done][0]}"
        outcomes[f"{killed}, which happened" if more else killed] += 1
        fresh = max([fresh, *(n + 1 for call in calls if call[0] == "add" for n in call[1])])
    STORES[name].remove(folder)
    sys.stdout.write(f"{dict(outcomes)}\n")


if __name__ == "__main__":
    serve(STORES[sys.argv[1]])
