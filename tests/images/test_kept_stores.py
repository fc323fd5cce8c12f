"""Kept stores: the very pixels that decoding gives, never old ones, never half of them, never more than allowed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import multiprocessing
import os
import pickle
import pwd
import signal
import stat
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ke_metric.benchmarks.official_lists import BannerlessSource
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images import kept_files
from ke_metric.images import kept_stores as module
from ke_metric.images.decoding import Decoding
from ke_metric.images.image_set import FolderSource, labelled_set
from ke_metric.images.kept_stores import KeptStores
from ke_metric.images.pixel_store import Pictures, PixelStore

COUNT = 12


def write(path, seed, size=(48, 40)):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    keys = [f"{number:02d}.bmp" for number in range(COUNT)]
    for number, key in enumerate(keys):
        write(folder / key, number, (48 + number, 40))
    return labelled_set(keys, [0] * COUNT, {0: "noise"}, FolderSource(folder))


class Stores(KeptStores):
    """Keeps whatever it is given, and remembers what was told."""

    def __init__(self, folder, **options):
        self.told = []
        super().__init__(folder, **{"least_seconds": 0, "tell": self.told.append} | options)


@pytest.fixture
def stores(tmp_path):
    return Stores(tmp_path / "cache")


def pixels(store):
    return [store.picture(index).copy() for index in range(len(store))]


def same(one, other):
    return len(one) == len(other) and all(map(np.array_equal, pixels(one), pixels(other)))


def decodings(monkeypatch):
    """Return the list that grows by the keys that are decoded."""
    read, keys = FolderSource.read, []

    def counted(self, key):
        keys.append(key)
        return read(self, key)

    monkeypatch.setattr(FolderSource, "read", counted)
    return keys


@pytest.mark.parametrize("shape", ["keep", "square"])
def test_what_is_kept_and_found_is_what_decoding_gives(images, stores, shape, monkeypatch):
    plain = PixelStore.build(images, 32, shape=shape)
    assert same(stores.store(images, 32, shape=shape), plain)
    keys, progress = decodings(monkeypatch), []
    found = Stores(stores.folder).store(images, 32, shape=shape, progress=lambda *done: progress.append(done))
    assert same(found, plain)
    assert found.contents == plain.contents
    assert found.nbytes == plain.nbytes
    assert not keys
    assert progress == [(COUNT, COUNT)]
    with pytest.raises(ValueError, match="read-only"):
        found.picture(0)[0, 0, 0] = 0


def test_its_size_is_told_before_and_where_it_was_found(images, stores):
    stores.store(images, 32)
    (told,) = stores.told
    assert "12 pictures of" in told
    assert "keeping about 0 MB" in told
    assert str(stores.folder) in told
    again = Stores(stores.folder)
    again.store(images, 32)
    assert "found in" in again.told[0]
    (kept,) = again
    assert kept.pictures == COUNT
    assert kept.settings["store_size"] == 32
    assert str(images.source.root) in kept.of


def test_a_picture_changed_in_size_and_time_alike_is_seen_anew(images, stores):
    """Sizes, times and inodes of files say nothing: the contents do."""
    path = images.source.root / images.keys[3]
    before = path.stat()
    old = pixels(stores.store(images, 32))[3]
    path.write_bytes(bytes([*path.read_bytes()[:60], *bytes(300), *path.read_bytes()[360:]]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert path.stat().st_ino == before.st_ino
    now = stores.store(images, 32)
    assert same(now, PixelStore.build(images, 32))
    assert not np.array_equal(now.picture(3), old)


def changed(images, **changes):
    return replace(images, source=replace(images.source, **changes))


def test_everything_that_decides_about_pixels_is_part_of_the_name(images, stores, monkeypatch):
    stores.store(images, 32)
    stores.store(images, 33)
    stores.store(images, 32, shape="square")
    stores.store(changed(images, decoding=Decoding(background="keep")), 32)
    stores.store(changed(images, decoding=Decoding(exif_orientation=False)), 32)
    stores.store(replace(images, source=BannerlessSource(images.source)), 32)
    stores.store(images.at(np.arange(COUNT)[::-1]), 32)
    stores.store(images.at(np.arange(3)), 32)
    monkeypatch.setattr(module.features, "version", lambda name: "another")
    stores.store(images, 32)
    monkeypatch.undo()
    monkeypatch.setattr(module, "VERSION", 10**6)
    stores.store(images, 32)
    assert len(list(stores)) == 10
    assert not any("found" in told for told in stores.told)


def test_where_the_pictures_lie_is_not(images, stores, tmp_path):
    images.source.root.rename(tmp_path / "elsewhere")
    moved = changed(images, root=tmp_path / "elsewhere")
    stores.store(moved, 32)
    assert "found in" not in stores.told[-1]
    (tmp_path / "elsewhere").rename(images.source.root)
    stores.store(images, 32)
    assert "found in" in stores.told[-1]


def test_the_pixels_of_a_file_are_those_of_this_version(tmp_path):
    """Where this fails on purpose, because the same file gives other pixels now, raise `kept_stores.VERSION`."""
    colours = np.arange(64 * 48 * 4, dtype=np.uint32).reshape(48, 64, 4).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colours).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(colours[..., 0].astype(np.uint16) * 251).save(tmp_path / "wide.png")
    images = labelled_set(["turned.png", "wide.png"], [0, 0], {0: "x"}, FolderSource(tmp_path))
    digest = hashlib.sha256(b"".join(picture.tobytes() for picture in pixels(PixelStore.build(images, 32))))
    assert (module.VERSION, digest.hexdigest()[:16]) == (1, "3ed0758f60ac02d7")


class One:
    def __init__(self, image):
        self.image = image

    def read(self, key):
        return self.image


def test_pictures_that_are_drawn_are_not_kept(stores):
    drawn = labelled_set(["x"], [0], {0: "x"}, One(Image.new("RGB", (40, 40))))
    assert len(stores.store(drawn, 32)) == 1
    assert not list(stores)


def test_nothing_to_decode_is_nothing_to_keep(images, stores):
    assert len(stores.store(images.at(np.empty(0, np.int64)), 32)) == 0
    assert not stores.folder.exists()


def test_pictures_that_cannot_be_decoded_are_all_named(images, stores):
    (images.source.root / images.keys[2]).write_bytes(b"no picture")
    (images.source.root / images.keys[5]).unlink()
    with pytest.raises(KeMetricError, match="2 pictures cannot be decoded") as raised:
        stores.store(images, 32)
    assert raised.value.exit_code is ExitCode.DATA
    with pytest.raises(KeMetricError, match=r"02\.bmp: cannot be decoded"):
        stores.store(images.at(np.array([1, 2])), 32)
    assert not list(stores)


def test_one_beyond_the_sample_that_cannot_be_decoded_leaves_nothing(images, stores, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 2)
    (images.source.root / images.keys[5]).write_bytes(b"no picture")
    with pytest.raises(KeMetricError, match=r"05\.bmp: cannot be decoded"):
        stores.store(images, 32)
    assert not list(stores.folder.iterdir())


def test_a_picture_that_changes_while_it_is_decoded_is_not_kept(images, stores, monkeypatch):
    read = FolderSource.read

    def changing(self, key):
        if key == images.keys[4]:
            write(self.root / key, time.perf_counter_ns(), (52, 40))
        return read(self, key)

    monkeypatch.setattr(FolderSource, "read", changing)
    store = stores.store(images, 32)
    assert "changed while" in stores.told[-1]
    assert not list(stores.folder.iterdir())
    monkeypatch.undo()
    assert same(store, PixelStore.build(images, 32))


def test_what_decodes_quickly_is_not_kept(images, tmp_path):
    stores = Stores(tmp_path / "cache", least_seconds=60)
    assert same(stores.store(images, 32), PixelStore.build(images, 32))
    assert not stores.folder.exists()
    assert not stores.told


def test_what_decodes_quickly_is_kept_beside_what_does_not(images, tmp_path, monkeypatch):
    small, large = images.at(np.arange(3)), images.at(np.arange(3, COUNT))
    monkeypatch.setattr(module._Job, "expected", lambda self: (100, 2.0 * len(self.images)))
    Stores(tmp_path / "cache", least_seconds=10).store(small, 32)
    assert not (tmp_path / "cache").exists()
    for _ in ("large is made", "large is found"):
        stores = Stores(tmp_path / "cache", least_seconds=10)
        stores.store(large, 32)
        stores.store(small, 32)
        assert {kept.pictures for kept in stores} == {3, 9}
        (path,) = (kept.path for kept in stores if kept.pictures == 3)
        path.unlink()


def test_who_only_looks_makes_nothing(images, stores):
    looking = Stores(stores.folder, keeps=False)
    looking.store(images, 32)
    assert not stores.folder.exists()
    stores.store(images, 32)
    looking.store(images, 32)
    assert "found" in looking.told[-1]


@pytest.mark.parametrize("damage", [lambda whole: whole[:-100], lambda whole: b"", lambda whole: whole[100:]])
def test_a_damaged_store_is_made_anew(images, stores, damage):
    stores.store(images, 32)
    (kept,) = stores
    kept.path.write_bytes(damage(kept.path.read_bytes()))
    assert [each.pictures for each in stores] == [0]
    assert same(stores.store(images, 32), PixelStore.build(images, 32))
    assert same(stores.store(images, 32), PixelStore.build(images, 32))
    assert "found" in stores.told[-1]


def test_a_folder_that_cannot_be_written_is_told(images, tmp_path):
    (tmp_path / "cache").write_text("a file")
    stores = Stores(tmp_path / "cache" / "pixels")
    assert same(stores.store(images, 32), PixelStore.build(images, 32))
    assert "cannot be kept" in stores.told[0]
    assert "KE_METRIC_CACHE" in stores.told[0]


def test_a_full_disk_is_told_and_leaves_nothing(images, stores, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    assert same(stores.store(images, 32), PixelStore.build(images, 32))
    assert "the disk is full" in stores.told[-1]
    assert not list(stores.folder.iterdir())


def test_a_disk_that_would_be_filled_is_left_alone(images, stores, monkeypatch):
    monkeypatch.setattr(module, "SPARE_BYTES", 10**18)
    assert same(stores.store(images, 32), PixelStore.build(images, 32))
    assert "0 MB on its disk" in stores.told[0]
    assert not stores.folder.exists()


def parts(images):
    return [images.at(np.arange(start, start + 3)) for start in (0, 3, 6)]


def test_what_was_used_longest_ago_goes_first_and_what_is_in_use_stays(images, stores):
    limited = Stores(stores.folder, most_bytes=25_000)
    first, second, third = parts(images)
    in_use = limited.store(first, 32)
    assert in_use.nbytes > 10_000
    limited.store(second, 32)
    for kept in limited:
        os.utime(kept.path, (1, 1) if kept.in_use else (2, 2))
    limited.store(third, 32)
    assert "used longest ago" in limited.told[-1] or "used longest ago" in limited.told[-2]
    assert sum(kept.bytes for kept in limited) <= 25_000
    assert "found" not in limited.told[-1]
    limited.store(first, 32)
    assert "found" in limited.told[-1]


def test_the_order_of_removal_is_that_of_use(images, stores):
    for part in parts(images):
        stores.store(part, 32)
    for age, kept in enumerate(stores):
        os.utime(kept.path, (100 - age, 100 - age))
    newest, middle, _ = (kept.path for kept in stores)
    limited = Stores(stores.folder, most_bytes=sum(kept.bytes for kept in stores) - 1)
    assert limited._make_room(0)
    assert [kept.path for kept in limited] == [newest, middle]


def test_a_store_larger_than_allowed_is_not_kept(images, tmp_path):
    stores = Stores(tmp_path / "cache", most_bytes=1000)
    assert same(stores.store(images, 32), PixelStore.build(images, 32))
    assert "a limit of 0 MB (KE_METRIC_CACHE_GB)" in stores.told[0]
    assert not list(stores)


def test_none_are_kept_nor_looked_for(images, stores):
    stores.store(images, 32)
    off = Stores(stores.folder, most_bytes=0)
    off.store(images, 32)
    assert not off.told


def test_clearing_leaves_what_is_in_use(images, stores):
    first, second, _ = parts(images)
    stores.store(first, 32)
    used = stores.store(first, 32)
    assert "found in" in stores.told[-1]
    stores.store(second, 32)
    (stores.folder / f"{'0' * 32}.writing").write_bytes(b"left by a killed process")
    gone, left = stores.clear()
    assert [len(gone), len(left)] == [1, 1]
    assert [kept.in_use for kept in stores] == [True]
    assert len(list(stores.folder.iterdir())) == 1
    expected = pixels(PixelStore.build(first, 32))
    assert all(map(np.array_equal, pixels(used), expected))
    del used
    stores.clear()
    assert not list(stores.folder.iterdir())


def test_a_pickled_store_goes_on_in_use(images, stores):
    received = pickle.loads(pickle.dumps(stores.store(images, 32)))
    assert same(received, PixelStore.build(images, 32))
    assert [kept.in_use for kept in stores] == [True]


def _slow(monkeypatch_seconds):
    read = FolderSource.read

    def slowly(self, key):
        time.sleep(monkeypatch_seconds)
        return read(self, key)

    FolderSource.read = slowly


def _build(folder, images, queue, seconds):
    _slow(seconds)
    stores = Stores(folder)
    store = stores.store(images, 32)
    queue.put((stores.told, int(sum(picture.sum() for picture in pixels(store)))))


def started(folder, images, seconds):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_build, args=(folder, images, queue, seconds))
    process.start()
    return process, queue


def test_of_two_builders_one_decodes_and_the_other_waits(images, stores):
    builders = [started(stores.folder, images, 0.05) for _ in range(2)]
    answers = [queue.get(timeout=60) for _, queue in builders]
    for process, _ in builders:
        process.join()
    expected = int(sum(picture.sum() for picture in pixels(PixelStore.build(images, 32))))
    assert [total for _, total in answers] == [expected, expected]
    assert sorted(any("keeping" in line for line in told) for told, _ in answers) == [False, True]
    assert len(list(stores)) == 1


@pytest.mark.parametrize("seconds", [0.1, 0.5, 0.9])
def test_what_a_killed_builder_left_is_removed_and_never_used(images, stores, seconds):
    process, _ = started(stores.folder, images, 0.1)
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list(stores)
    others = parts(images)[0]
    stores.store(others, 32)
    assert [path.suffix for path in stores.folder.iterdir()] == [".pixels"], "the leftover of other pictures goes too"
    assert same(stores.store(images, 32), PixelStore.build(images, 32))


def test_all_parts_of_a_benchmark_are_kept(images, stores, make_class_folders, tmp_path, monkeypatch):
    from ke_metric.benchmarks.registry import load_benchmark
    from ke_metric.recipe.schema import Data

    benchmark = load_benchmark(Data(benchmark="folder", root=str(make_class_folders(tmp_path / "pets"))), "retrieval")
    plain = Pictures.decode(benchmark, 32)
    kept = Pictures.decode(benchmark, 32, build=stores.store)
    assert kept.fingerprint == plain.fingerprint
    assert len(list(stores)) == 2
    keys = decodings(monkeypatch)
    found = Pictures.decode(benchmark, 32, build=stores.store)
    assert not keys
    assert found.fingerprint == plain.fingerprint
    assert same(found.train, plain.train)
    assert same(found.query, plain.query)


def test_where_they_lie_is_said_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("KE_METRIC_CACHE", str(tmp_path / "named"))
    assert KeptStores.of_environment().folder == tmp_path / "named" / "pixels"
    monkeypatch.delenv("KE_METRIC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "general"))
    assert KeptStores.of_environment().folder == tmp_path / "general" / "ke_metric" / "pixels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert KeptStores.of_environment().folder == tmp_path / ".cache" / "ke_metric" / "pixels"
    monkeypatch.setenv("KE_METRIC_CACHE_GB", "1.5")
    assert KeptStores.of_environment().most_bytes == 1_500_000_000


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_none(text, monkeypatch):
    monkeypatch.setenv("KE_METRIC_CACHE_GB", text)
    with pytest.raises(KeMetricError, match=r"KE_METRIC_CACHE_GB = .* must be the gigabytes") as raised:
        KeptStores.of_environment()
    assert raised.value.exit_code is ExitCode.ENVIRONMENT


def test_what_a_killed_builder_wrote_is_written_over(images, stores):
    process, _ = started(stores.folder, images, 0.1)
    time.sleep(0.9)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert [path.suffix for path in stores.folder.iterdir()] == [".writing"]
    assert next(stores.folder.iterdir()).stat().st_size > 0
    stores.store(images, 32)
    found = stores.store(images, 32)
    assert "found in" in stores.told[-1]
    assert same(found, PixelStore.build(images, 32))


def test_a_store_that_became_larger_than_was_expected_is_made_room_for_afterwards(images, stores, monkeypatch):
    first, second, _ = parts(images)
    stores.store(first, 32)
    (before,) = stores
    monkeypatch.setattr(module._Job, "expected", lambda job: (10, 9.0))
    limited = Stores(stores.folder, most_bytes=before.bytes + 1000)
    kept = limited.store(second, 32)
    assert "used longest ago" in limited.told[-1]
    assert [each.bytes > kept.nbytes for each in limited] == [True]


def place_of(images, stores):
    """Return where the store of these pictures is kept, and its bytes; nothing is kept afterwards."""
    stores.store(images, 32)
    (kept,) = stores
    stores.clear()
    assert not list(stores.folder.iterdir())
    return kept.path, kept.bytes


@pytest.mark.parametrize("of_the_same_pictures", [True, False])
def test_what_a_killed_process_left_takes_no_room(images, stores, of_the_same_pictures, monkeypatch):
    place, size = place_of(images, stores)
    stem = place.stem if of_the_same_pictures else "0" * 32
    leftover = place.with_name(f"{stem}.writing")
    leftover.write_bytes(bytes(size))
    disk_usage = module.shutil.disk_usage

    def without_the_leftover(path):
        assert not leftover.exists()
        return disk_usage(path)

    monkeypatch.setattr(module.shutil, "disk_usage", without_the_leftover)
    Stores(stores.folder, most_bytes=size + 1000).store(images, 32)
    assert list(stores.folder.iterdir()) == [place]


def test_a_link_is_not_written_through(images, stores, tmp_path):
    place, _ = place_of(images, stores)
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    place.with_suffix(".writing").symlink_to(victim)
    for opened in (kept_files.open_to_write, kept_files.open_to_read):
        with pytest.raises(OSError, match="symbolic links"):
            opened(place.with_suffix(".writing"))
    assert same(stores.store(images, 32), PixelStore.build(images, 32))
    assert "cannot be kept" in stores.told[-1]
    stores.clear()
    assert victim.read_text() == "precious"


def test_a_link_is_not_read_through(images, stores, tmp_path):
    stores.store(images, 32)
    (kept,) = stores
    elsewhere = kept.path.rename(tmp_path / "elsewhere")
    kept.path.symlink_to(elsewhere)
    assert not list(stores)
    assert same(stores.store(images, 32), PixelStore.build(images, 32))
    assert "cannot be kept" in stores.told[-1]
    stores.clear()
    assert elsewhere.exists()
    assert kept.path.is_symlink()


def test_nothing_is_written_into_a_file_of_others(tmp_path, monkeypatch):
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    (tmp_path / "also").hardlink_to(victim)
    with pytest.raises(PermissionError):
        kept_files.open_to_write(tmp_path / "also")
    (tmp_path / "also").unlink()
    kept_files.open_to_write(victim).close()
    monkeypatch.setattr(kept_files.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PermissionError):
        kept_files.open_to_write(victim)
    assert victim.read_text() == "precious"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_may_read_them(images, stores, monkeypatch):
    seen, built_into = [], PixelStore.built_into

    def watched(file, *given, **options):
        seen.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode))
        return built_into(file, *given, **options)

    monkeypatch.setattr(PixelStore, "built_into", watched)
    umask = os.umask(0o022)
    try:
        stores.store(images, 32)
    finally:
        os.umask(umask)
    (kept,) = stores
    assert seen == [0o600]
    assert (mode(kept.path), mode(stores.folder)) == (0o600, 0o700)


def test_a_folder_that_was_there_stays_as_open_as_it_was(images, stores):
    stores.folder.mkdir()
    stores.folder.chmod(0o750)
    stores.store(images, 32)
    assert mode(stores.folder) == 0o750


def test_files_of_others_are_never_removed(images, stores):
    stores.store(images, 32)
    (kept,) = stores
    whole = kept.path.read_bytes()
    foreign = [
        ("holiday.pixels", whole),
        ("novel.writing", b"chapter one"),
        (f"{'A' * 32}.pixels", whole),
        (f"{'a' * 33}.pixels", whole),
        (f"{'a' * 31}.writing", b""),
        (f"{'a' * 32}.pixels", b"no store"),
    ]
    for name, content in foreign:
        (stores.folder / name).write_bytes(content)
    Stores(stores.folder, most_bytes=1)._make_room(0)
    assert sorted(path.name for path in stores.folder.iterdir()) == sorted(name for name, _ in foreign)
    gone, left = stores.clear()
    assert not gone
    assert [each.of for each in left] == [f"damaged: {'a' * 32}.pixels"]
    assert all((stores.folder / name).read_bytes() == content for name, content in foreign)


def test_a_folder_in_the_place_of_a_store_is_left_out(images, stores):
    for name in ("x.pixels", f"{'a' * 32}.pixels", f"{'a' * 32}.writing"):
        (stores.folder / name).mkdir(parents=True)
    assert not list(stores)
    stores.store(images, 32)
    assert len(list(stores)) == 1
    assert [len(each) for each in stores.clear()] == [1, 0]
    assert len(list(stores.folder.iterdir())) == 3


def test_another_users_file_is_listed_as_not_readable(images, stores, monkeypatch):
    """The tests may run as root, who may read everything: the operating system's answer is imitated."""
    first, second, _ = parts(images)
    stores.store(first, 32)
    (kept,) = stores
    stores.store(second, 32)
    opened = kept_files.os.open

    def refused(name, *given):
        if name == str(kept.path) or name == kept.path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(name, *given)

    monkeypatch.setattr(kept_files.os, "open", refused)
    assert sorted(each.of.startswith("not readable") for each in stores) == [False, True]
    assert sum(each.bytes for each in stores) == sum(path.stat().st_size for path in stores.folder.iterdir())
    stores.store(first, 32)
    assert "Permission denied" in stores.told[-1]
    gone, left = stores.clear()
    assert [each.pictures for each in gone] == [3]
    assert [(each.path, each.in_use) for each in left] == [(kept.path, False)]


def test_a_file_system_without_locks_is_listed_and_nothing_removed(images, stores, monkeypatch):
    stores.store(images, 32)

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    assert [(each.pictures, each.in_use) for each in stores] == [(COUNT, True)]
    assert [len(each) for each in stores.clear()] == [0, 1]
    assert same(stores.store(images, 32), PixelStore.build(images, 32))
    assert "No locks available" in stores.told[-1]


def test_a_file_that_must_be_writable_to_be_locked_can_be_removed(images, stores, monkeypatch):
    """NFS locks a file exclusively only where it is open for writing."""
    flock = fcntl.flock

    def as_on_nfs(file, kind):
        if kind & fcntl.LOCK_EX and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        return flock(file, kind)

    monkeypatch.setattr(fcntl, "flock", as_on_nfs)
    stores.store(images, 32)
    assert [each.in_use for each in stores] == [False]
    assert [len(each) for each in stores.clear()] == [1, 0]


def test_who_waits_never_gets_the_finished_file_to_write_into(images, stores, monkeypatch):
    """Sharing an exclusive lock is to let it go and to take another: in between it may be somebody else's."""
    place, _ = place_of(images, stores)
    flock, given = fcntl.flock, []

    def with_a_gap(file, kind):
        if kind == fcntl.LOCK_SH:
            monkeypatch.undo()
            flock(file, fcntl.LOCK_UN)
            with Stores(stores.folder)._file_to_write(place, "the same pictures") as another:
                given.append(another is not None)
            del another
        return flock(file, kind)

    monkeypatch.setattr(fcntl, "flock", with_a_gap)
    assert same(stores.store(images, 32), PixelStore.build(images, 32))
    assert given == [False]
    assert [each.pictures for each in stores] == [COUNT]


def test_a_user_without_a_home_keeps_nothing_and_hears_of_it_once(images, tmp_path, monkeypatch):
    def nobody(number):
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME", "KE_METRIC_CACHE", "KE_METRIC_CACHE_GB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(module, "LEAST_SECONDS", 0)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    told = []
    stores = KeptStores.of_environment(told.append)
    for part in parts(images):
        assert same(stores.store(part, 32), PixelStore.build(part, 32))
    assert len(told) == 1
    assert "~/.cache/ke_metric is no absolute path" in told[0]
    assert "KE_METRIC_CACHE" in told[0]
    assert not list((tmp_path / "work").iterdir())
    monkeypatch.setenv("KE_METRIC_CACHE_GB", "0")
    KeptStores.of_environment(told.append)
    assert len(told) == 1, "who wants none need not hear of it"
