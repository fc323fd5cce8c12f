"""A gallery: what its files hold, who sees what when, and what damage or a kill at any step leaves of it."""

import os
import resource
import signal
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
from store_twin import Twin, assert_same_content, refused, some_items, unit_vectors

from ke_metric.errors import ExitCode
from ke_metric.stores import gallery_files
from ke_metric.stores.contract import Item, Where
from ke_metric.stores.gallery import Gallery

D = 4
ROW = 4 * D


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "new" / "gallery"


@pytest.fixture
def opened(folder):
    """Open the gallery of the test's folder; it is closed when the test ends."""
    galleries = []

    def make(*, writing=True, dimension=D):
        galleries.append(Gallery(folder, dimension, writing=writing))
        return galleries[-1]

    yield make
    for one in reversed(galleries):
        one.close()


def fill(gallery, count=10, *, first=0):
    vectors = unit_vectors(count, D, seed=count + first)
    gallery.add(some_items(count, first=first), vectors)
    return vectors


def filled(opened, count=10):
    """Make a gallery with items and two holes, and close it."""
    gallery = opened()
    fill(gallery, count)
    gallery.remove(["id-3", "id-7"])
    gallery.close()


def test_rows_are_never_moved_and_never_used_again(opened):
    gallery = opened()
    vectors = fill(gallery)
    gallery.remove(["id-3", "id-7"])
    again = unit_vectors(2, D, seed=1)
    gallery.add([Item("id-3"), Item("id-0")], again, replace=True)
    assert gallery.rows == 12
    assert len(gallery) == 9
    assert gallery.holes.tolist() == [0, 3, 7]
    assert gallery.holes.dtype == np.int64
    np.testing.assert_array_equal(gallery.vectors(np.arange(12)), np.concatenate([vectors, again]))
    assert [item.id for item in gallery.items(np.array([11, 10, 1]))] == ["id-0", "id-3", "id-1"]
    everything = np.fromfile(gallery.folder / "vectors.f32", np.float32).reshape(-1, D)
    np.testing.assert_array_equal(everything, np.concatenate([vectors, again]))


def test_blocks_hold_every_row(opened):
    gallery = opened()
    vectors = fill(gallery, 10)
    gallery.remove(["id-3"])
    for first, last, at_a_time in [(0, 10, 3), (2, 9, 100), (4, 5, 1), (5, 5, 3), (0, 10, 10)]:
        found = [(start, block.copy()) for start, block in gallery.blocks(first, last, at_a_time)]
        assert [start for start, _ in found] == list(range(first, last, at_a_time))
        assert all(len(block) <= at_a_time for _, block in found)
        together = np.concatenate([np.empty((0, D), np.float32), *(block for _, block in found)])
        np.testing.assert_array_equal(together, vectors[first:last])


@pytest.mark.parametrize("near", [1, ROW, 3 * ROW, 1 << 16])
def test_vectors_of_any_rows_in_any_order(opened, monkeypatch, near):
    monkeypatch.setattr(gallery_files, "GATHERED_BYTES", near)
    gallery = opened()
    vectors = fill(gallery, 50)
    for rows in ([], [7], [0, 49], [49, 0, 0, 7, 8, 9], list(range(50)), list(range(0, 50, 3))[::-1]):
        found = gallery.vectors(np.array(rows, np.int64))
        np.testing.assert_array_equal(found, vectors[rows] if rows else np.empty((0, D)))


@pytest.mark.parametrize("rows", [[-1], [10]])
def test_a_row_that_there_is_not_is_a_mistake(opened, rows):
    gallery = opened()
    fill(gallery)
    with pytest.raises(AssertionError):
        gallery.vectors(np.array(rows))
    with refused("row"):
        gallery.items(np.array(rows))


def test_a_row_that_was_removed_since_it_was_found_is_said_so(opened):
    gallery = opened()
    fill(gallery)
    gallery.remove(["id-3"])
    with refused("row 3 .*removed or replaced"):
        gallery.items(np.array([2, 3]))


def test_every_change_has_a_version_of_its_own(opened):
    gallery, reader = opened(), opened(writing=False)
    seen = [gallery.version]
    for change in (
        lambda: fill(gallery),
        lambda: gallery.add([Item("id-1")], unit_vectors(1, D, seed=0), replace=True),
        lambda: gallery.remove(["id-1"]),
        lambda: gallery.set_fact("covered", "7"),
    ):
        change()
        seen.append(gallery.version)
        assert reader.version == seen[-1]
    assert seen == sorted(set(seen))
    gallery.remove([])
    gallery.add([], np.empty((0, D), np.float32))
    assert gallery.version == seen[-1]
    gallery.close()
    assert opened().version == seen[-1]


def test_facts(opened):
    gallery, reader = opened(), opened(writing=False)
    assert gallery.fact("covered") is None
    for value in ("7", "ü\n'\"", ""):
        gallery.set_fact("covered", value)
        assert gallery.fact("covered") == reader.fact("covered") == value
    with pytest.raises(AssertionError):
        gallery.set_fact("rows", "7")


def test_a_reader_changes_nothing(opened):
    filled(opened)
    reader = opened(writing=False)
    for change in (
        lambda: fill(reader, first=20),
        lambda: reader.remove(["id-1"]),
        lambda: reader.set_fact("a", "b"),
    ):
        with pytest.raises(AssertionError):
            change()
    assert len(reader) == 8


def test_what_is_read_is_of_the_moment_when_reading_began(opened):
    gallery = opened()
    twin = Twin()
    vectors = fill(gallery, 10)
    twin.add(some_items(10), vectors)
    reading = gallery.read(3)
    found = [next(reading)]
    gallery.remove(["id-5", "id-0"])
    gallery.add([Item("id-6", "other")], unit_vectors(1, D, seed=0), replace=True)
    fill(gallery, 5, first=20)
    found.extend(reading)
    assert [item for items, _ in found for item in items] == some_items(10)
    np.testing.assert_array_equal(np.concatenate([block for _, block in found]), vectors)


def test_reading_may_stop_anywhere(opened):
    gallery = opened()
    fill(gallery)
    reading = gallery.read(3)
    next(reading)
    reading.close()
    gallery.remove(["id-1"])
    assert len(gallery) == 9


def test_many_threads(opened):
    gallery = opened()
    fill(gallery, 200)
    wrong = []

    def look():
        for _ in range(30):
            rows = gallery.rows_matching(Where.parse('label == "class-1"'))
            if any(item.label != "class-1" for item in gallery.items(rows)) or len(rows) != 29:
                wrong.append(rows)
            rows, holes = gallery.snapshot()
            if rows != 200 + len(holes):
                wrong.append((rows, holes))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for step in range(30):
        gallery.add([Item("id-0")], unit_vectors(1, D, seed=step), replace=True)
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_condition_is_looked_up_once_until_something_changes(opened, monkeypatch):
    writer, reader = opened(), opened(writing=False)
    where, other = Where.parse('label == "class-1"'), Where.parse('label != "class-1"')
    for changed in (
        lambda: fill(writer, 20),
        lambda: writer.add([Item("new", label="class-1")], unit_vectors(1, D, seed=3)),
        lambda: writer.remove(["new"]),
        lambda: writer.add([Item("id-0", label="class-1")], unit_vectors(1, D, seed=3), replace=True),
    ):
        changed()
        for gallery in (writer, reader):
            asked, matching = [], gallery._table.matching
            content = [item for batch, _ in gallery.read() for item in batch]
            with monkeypatch.context() as patch:
                patch.setattr(gallery._table, "matching", lambda one, m=matching, a=asked: a.append(one) or m(one))
                for one in (where, other, where, other):
                    there = [item.id for item in gallery.items(gallery.rows_matching(one))]
                    assert there == [item.id for item in content if one.holds(item)]
            assert asked == [where, other]
    with pytest.raises(ValueError, match="read-only"):
        reader.rows_matching(where)[0] = 7


def test_answers_to_conditions_are_not_kept_beyond_a_bound(opened, monkeypatch):
    monkeypatch.setattr("ke_metric.stores.gallery.ROWS_KEPT", 25)
    gallery = opened()
    fill(gallery, 40)
    for number in range(40):
        assert len(gallery.rows_matching(Where.parse(f'id != "id-{number}"'))) == 39
        assert len(gallery._matching) == 0
        gallery.rows_matching(Where.parse(f'id in ["id-{number}", "x", "y"]'))
    for number in range(40):
        assert len(gallery.rows_matching(Where.parse(f'id in ["id-{number}", "x", "y"]'))) == 1
        assert len(gallery._matching) <= 6


def test_closed_by_another_thread_it_is_free(opened):
    gallery = opened()
    closing = threading.Thread(target=gallery.close)
    closing.start()
    closing.join()
    fill(opened())


def test_a_folder_that_cannot_be_written_is_read(opened, folder, monkeypatch):
    filled(opened)
    for name in ("items.sqlite-wal", "items.sqlite-shm"):
        assert not (folder / name).exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    reader = opened(writing=False)
    assert len(reader) == 8
    assert sum(len(items) for items, _ in reader.read(3)) == 8
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "items.sqlite", "vectors.f32"]


# --- damage -------------------------------------------------------------------------------------------------------


def cut(size):
    return lambda path: os.truncate(path, path.stat().st_size + size if size < 0 else size)


def overwrite(first, text):
    def damage(path):
        with path.open("r+b") as file:
            file.seek(first)
            file.write(text)

    return damage


def sql(*statements):
    def damage(path):
        with sqlite3.connect(path) as table:
            for statement in statements:
                table.execute(statement)
        table.close()

    return damage


DAMAGE = {
    "one vector is missing": ("vectors.f32", cut(-ROW), ExitCode.DATA, "damaged"),
    "one byte is missing": ("vectors.f32", cut(-1), ExitCode.DATA, "damaged"),
    "no vectors": ("vectors.f32", cut(0), ExitCode.DATA, "damaged"),
    "no file of vectors": ("vectors.f32", Path.unlink, ExitCode.LINEAGE, "missing"),
    "no table": ("items.sqlite", Path.unlink, ExitCode.LINEAGE, "missing"),
    "an empty table": ("items.sqlite", cut(0), ExitCode.LINEAGE, "missing or empty"),
    "half a table": ("items.sqlite", cut(5000), ExitCode.DATA, "damaged"),
    "a few bytes of a table": ("items.sqlite", cut(50), ExitCode.DATA, "damaged"),
    "text in place of a table": ("items.sqlite", overwrite(0, b"crow\n" * 4000), ExitCode.DATA, "damaged"),
    "a broken page": ("items.sqlite", overwrite(4096, b"\xff" * 4096), ExitCode.DATA, "damaged"),
    "another database": ("items.sqlite", sql("DROP TABLE facts"), ExitCode.DATA, "no gallery"),
    "another format": (
        "items.sqlite",
        sql("UPDATE facts SET value = 2 WHERE name = 'format'"),
        ExitCode.LINEAGE,
        "format 2",
    ),
    "an item is missing": ("items.sqlite", sql("DELETE FROM items WHERE row = 2"), ExitCode.DATA, "damaged"),
    "a hole is missing": ("items.sqlite", sql("DELETE FROM holes WHERE row = 3"), ExitCode.DATA, "damaged"),
    "a row beyond": ("items.sqlite", sql("UPDATE items SET row = 99 WHERE row = 2"), ExitCode.DATA, "damaged"),
}


@pytest.mark.parametrize("case", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("writing", [False, True])
def test_damage_is_seen_when_it_is_opened(opened, folder, case, writing):
    name, damage, exit_code, match = case
    filled(opened)
    damage(folder / name)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".sqlite", ".f32")}
    for _ in range(2):
        if writing and name == "vectors.f32" and damage is Path.unlink:
            exit_code, match = ExitCode.DATA, "damaged"
        with refused(match, exit_code):
            opened(writing=writing)
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".sqlite", ".f32")}
    assert {name: after[name] for name in before} == before


def test_a_file_of_vectors_that_is_cut_while_it_is_open_is_no_answer(opened, folder):
    gallery = opened()
    fill(gallery)
    cut(-ROW)(folder / "vectors.f32")
    with refused("damaged"):
        list(gallery.blocks(0, 10, 4))
    with refused("damaged"):
        gallery.vectors(np.array([9]))


def test_a_text_that_is_none_any_more_is_damage(opened, folder):
    filled(opened)
    sql("UPDATE items SET label = CAST(x'ff41' AS TEXT) WHERE row = 2")(folder / "items.sqlite")
    gallery = opened(writing=False)
    with refused("damaged"):
        gallery.items(np.array([2]))


def test_what_lies_after_the_last_row_is_worthless(opened, folder):
    filled(opened)
    with (folder / "vectors.f32").open("ab") as file:
        file.write(b"\xff" * 3 * ROW + b"x")
    gallery = opened()
    vectors = fill(gallery, 2, first=20)
    np.testing.assert_array_equal(gallery.vectors(np.array([10, 11])), vectors)


def test_another_dimension_is_named(opened):
    filled(opened)
    with refused(f"dimension {D} .*dimension 5", ExitCode.LINEAGE):
        opened(dimension=5)


# --- a disk that is full, and a kill at every step ---------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1, ROW, 20 * ROW, 40 * ROW])
def test_a_full_disk_costs_only_the_addition(opened, folder, room):
    """A limit on the size of files is the nearest to a full disk that a test can make without being root."""
    gallery = opened()
    vectors = fill(gallery, 100)
    twin = Twin()
    twin.add(some_items(100), vectors)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 * ROW + room, limits[1]))
    try:
        with refused("cannot be read or written", ExitCode.ENVIRONMENT):
            fill(gallery, 100, first=200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (folder / "vectors.f32").stat().st_size == 100 * ROW
    assert_same(gallery, twin)
    twin.add(some_items(100, first=200), fill(gallery, 100, first=200))
    assert_same(gallery, twin)
    gallery.close()
    assert_same(opened(), twin)


def assert_same(gallery, twin):
    assert_same_content(gallery, twin, 33)


def change(gallery, twin):
    """All kinds of changes; yield after each."""
    for action in (
        lambda one: one.add(some_items(3), unit_vectors(3, D, seed=1)),
        lambda one: one.add(some_items(3, first=2), unit_vectors(3, D, seed=2), **replacing(one)),
        lambda one: one.remove(["id-0", "id-3"]),
        lambda one: one.add([Item("id-0", "again")], unit_vectors(1, D, seed=3)),
    ):
        if gallery is not None:
            action(gallery)
        action(twin)
        yield


def replacing(target):
    return {"replace": True} if isinstance(target, Gallery) else {}


class Step:
    """Kills this process before the step of a number: an SQL statement, or a call that changes a file."""

    def __init__(self, number):
        self.left = number

    def __call__(self, *_):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def before(self, function):
        def step_and_call(*arguments):
            self()
            return function(*arguments)

        return step_and_call


def write_until(step, folder, pipe):
    """What the child does: change a gallery, say after each change that it is done, and be killed at a step."""
    os.pwrite, os.fsync = step.before(os.pwrite), step.before(os.fsync)
    connect = sqlite3.connect

    def traced(*arguments, **options):
        connection = connect(*arguments, **options)
        connection.set_trace_callback(step)
        return connection

    sqlite3.connect = traced
    gallery = Gallery(folder, D, writing=True)
    os.write(pipe, b"opened ")
    for _ in change(gallery, Twin()):
        os.write(pipe, b"done ")
    gallery.close()
    os.write(pipe, b"closed ")


def killed_at(number, folder):
    """Return what a child said that was killed at a step."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write_until(Step(number), folder, writing)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        words = said.read().split()
    os.waitpid(child, 0)
    return words


def twin_after(changes):
    twin = Twin()
    for _, _ in zip(range(changes), change(None, twin), strict=False):
        pass
    return twin


def test_killed_at_every_step_it_has_what_was_acknowledged(tmp_path):
    """The last step of a change is its commit, so a change that is not acknowledged has not happened."""
    said, number = [], 0
    while "closed" not in said:
        folder = tmp_path / str(number)
        said = killed_at(number, folder)
        gallery = Gallery(folder, D, writing=True)
        assert_same(gallery, twin_after(said.count("done")))
        fill(gallery, 3, first=50)
        gallery.close()
        number += 1
    assert number > 60
