import errno
import gzip
import hashlib
import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ke_metric.datasets.archives import (
    ExtractionLimits,
    archive_format,
    inner_path,
    safe_extract,
)
from ke_metric.datasets.published_files import file_checksum, verify_checksum
from ke_metric.disk import new_folder
from ke_metric.errors import ExitCode, KeMetricError

CONTENT = {"birds/001.A/a.jpg": b"first", "birds/001.A/b.jpg": b"", "birds/list.txt": b"1 a\n" * 1000}


def tar_of(path, members, mode="w"):
    """Write TarInfo objects or (name, bytes) pairs into a tar archive."""
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member, io.BytesIO(bytes(member.size)))
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def zip_of(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members:
            zipped.writestr(name, content)
    return path


def entry(name, kind, linkname="", size=0):
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = linkname
    info.size = size
    return info


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(archive, target, code=ExitCode.DATA, **limits):
    """Extract, expect the error, and check that nothing at all was left behind; return the message."""
    before = sorted(path for path in target.parent.rglob("*"))
    with pytest.raises(KeMetricError) as caught:
        safe_extract(archive, target, limits=ExtractionLimits(**limits))
    assert caught.value.exit_code == code
    assert sorted(path for path in target.parent.rglob("*")) == before
    return str(caught.value)


WRITERS = {
    "tar": lambda path: tar_of(path, CONTENT.items()),
    "tar.gz": lambda path: tar_of(path, CONTENT.items(), "w:gz"),
    "zip": lambda path: zip_of(path, CONTENT.items()),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("name", ["archive.bin", "archive.zip", "archive.tgz"])
def test_content_is_unpacked_whatever_the_extension_says(tmp_path, kind, name):
    archive = WRITERS[kind](tmp_path / name)
    assert archive_format(archive) == kind
    safe_extract(archive, tmp_path / "data" / "birds")
    assert files_below(tmp_path / "data" / "birds") == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["data", name])
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["birds"]


def test_an_empty_target_is_used_and_an_occupied_one_is_refused(tmp_path):
    archive = WRITERS["zip"](tmp_path / "a.zip")
    empty = tmp_path / "empty"
    empty.mkdir()
    safe_extract(archive, empty)
    assert files_below(empty) == CONTENT
    assert "not an empty folder" in refused(archive, empty)
    file = tmp_path / "file"
    file.write_text("mine")
    assert "not an empty folder" in refused(archive, file)
    assert file.read_text() == "mine"


def test_folders_and_modes(tmp_path):
    executable = tarfile.TarInfo("run.sh")
    executable.mode = 0o4777
    archive = tar_of(tmp_path / "a.tar", [entry("./", tarfile.DIRTYPE), entry("empty/", tarfile.DIRTYPE), executable])
    safe_extract(archive, tmp_path / "out")
    assert (tmp_path / "out" / "empty").is_dir()
    assert (tmp_path / "out" / "run.sh").stat().st_mode & 0o7111 == 0
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "out" / "empty").stat().st_mode


HOSTILE_NAMES = [
    "../evil",
    "a/../../evil",
    "/evil",
    "//evil",
    "a/..",
    "C:\\evil",
    "C:evil",
    "\\evil",
    "..\\evil",
    "a\\..\\..\\evil",
    "a/.. /evil",
    "...",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_leave_the_target_are_refused(tmp_path, name, kind):
    members = [("fine.txt", b"x"), (name, b"evil")]
    archive = tar_of(tmp_path / "a", members) if kind == "tar" else zip_of(tmp_path / "a", members)
    message = refused(archive, tmp_path / "x" / "y" / "out")
    assert f"{archive}: member {name!r} would be written outside" in message
    assert not list(tmp_path.rglob("evil"))


def test_absolute_name_of_a_real_folder_is_refused(tmp_path):
    archive = tar_of(tmp_path / "a.tar", [(str(tmp_path / "planted"), b"evil")])
    refused(archive, tmp_path / "out")
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    ("member", "word"),
    [
        (entry("link", tarfile.SYMTYPE, "/etc/passwd"), "link"),
        (entry("link", tarfile.SYMTYPE, "fine"), "link"),
        (entry("link", tarfile.LNKTYPE, "fine"), "link"),
        (entry("device", tarfile.CHRTYPE), "special file"),
        (entry("device", tarfile.BLKTYPE), "special file"),
        (entry("pipe", tarfile.FIFOTYPE), "special file"),
    ],
)
def test_links_and_devices_are_refused(tmp_path, member, word):
    message = refused(tar_of(tmp_path / "a.tar", [("fine", b"x"), member]), tmp_path / "out")
    assert f"'{member.name}' is a {word}" in message


def test_sparse_member_is_refused(tmp_path):
    sparse = tarfile.TarInfo("sparse")
    sparse.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1",
                          "GNU.sparse.size": "1000000000"}  # fmt: skip
    assert "'sparse' is a sparse file" in refused(tar_of(tmp_path / "a.tar", [sparse]), tmp_path / "out")


def test_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    assert "'link' is a link" in refused(zip_of(tmp_path / "a.zip", [(info, b"/etc/passwd")]), tmp_path / "out")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_cannot_be_bounded_is_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as zipped:
        zipped.writestr("zeros", bytes(1000))
    assert f"'zeros' is compressed by method {method}" in refused(tmp_path / "a.zip", tmp_path / "out")


def test_encrypted_zip_says_what_to_do(tmp_path):
    archive = zip_of(tmp_path / "a.zip", [("img.jpg", b"secret")])
    packed = bytearray(archive.read_bytes())
    packed[packed.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(packed)
    assert "encrypted" in refused(archive, tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize(
    "members",
    [
        [("a", b"file"), ("a/b", b"below it")],
        [("a/b", b"below it"), ("a", b"file")],
        [("a", b"one"), ("a", b"two")],
        [(".", b"the folder itself")],
    ],
)
def test_members_that_collide_are_refused(tmp_path, kind, members):
    archive = tar_of(tmp_path / "a", members) if kind == "tar" else zip_of(tmp_path / "a", members)
    assert "collides" in refused(archive, tmp_path / "out")


def test_empty_name_in_a_zip_is_refused(tmp_path):
    archive = zip_of(tmp_path / "a.zip", [("q", b"")])
    archive.write_bytes(archive.read_bytes().replace(b"q", b"\0"))
    assert "member ''" in refused(archive, tmp_path / "out")


def test_name_that_no_file_can_have(tmp_path):
    assert "no file can have" in refused(zip_of(tmp_path / "a.zip", [("x" * 5000, b"")]), tmp_path / "out")


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"members": 2}, "more than 2 files and folders"),
        ({"file_bytes": 3999}, "a file of 4,000 bytes"),
        ({"total_bytes": 4004}, "more than 4,004 bytes"),
        ({"depth": 1}, "more than 1 folders"),
    ],
)
def test_limits(tmp_path, kind, limits, words):
    assert words in refused(WRITERS[kind](tmp_path / "a"), tmp_path / "out", **limits)


@pytest.mark.parametrize("kind", WRITERS)
def test_exact_limits_are_enough(tmp_path, kind):
    limits = ExtractionLimits(members=3, file_bytes=4000, total_bytes=4005, depth=2)
    safe_extract(WRITERS[kind](tmp_path / "a"), tmp_path / "out", limits=limits)
    assert files_below(tmp_path / "out") == CONTENT


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_decompression_bomb_is_refused_by_its_ratio(tmp_path, kind):
    zeros = [("zeros", bytes(17 * 1024**2))]
    archive = zip_of(tmp_path / "a", zeros) if kind == "zip" else tar_of(tmp_path / "a", zeros, "w:gz")
    assert "bomb" in refused(archive, tmp_path / "out")
    safe_extract(archive, tmp_path / "out", limits=ExtractionLimits(ratio=2000))


def test_many_small_files_count_together(tmp_path):
    members = [(f"zeros{number}", bytes(6 * 1024**2)) for number in range(3)]
    assert "zeros2" in refused(zip_of(tmp_path / "a.zip", members), tmp_path / "out")


def test_bomb_hidden_after_the_end_mark_is_refused(tmp_path):
    archive = tmp_path / "a.tgz"
    with gzip.open(archive, "wb") as packed:
        packed.write(bytes(10240 + 20 * 1024**2))
    assert "bomb" in refused(archive, tmp_path / "out", members=100)


def test_declared_size_of_a_zip_is_not_believed(tmp_path):
    archive = zip_of(tmp_path / "a.zip", [("lie", bytes(100_000))])
    packed = archive.read_bytes()
    archive.write_bytes(packed.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    refused(archive, tmp_path / "out", file_bytes=1000)


@pytest.mark.parametrize("size", [-512, -1, 10**15])
def test_forged_header_lengths_are_refused(tmp_path, size):
    extension = entry("x", tarfile.XHDTYPE)
    extension.size = size
    (tmp_path / "a.tar").write_bytes(extension.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    assert "damaged" in refused(tmp_path / "a.tar", tmp_path / "out")


@pytest.mark.parametrize("size", [-512, 10**15])
def test_forged_file_lengths_are_refused(tmp_path, size):
    (tmp_path / "a.tar").write_bytes(entry("x", tarfile.REGTYPE, size=size).tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    assert "'x'" in refused(tmp_path / "a.tar", tmp_path / "out")


@pytest.mark.parametrize("kind", WRITERS)
def test_truncated_archive_is_refused_wherever_it_ends(tmp_path, kind):
    whole = WRITERS[kind](tmp_path / "whole").read_bytes()
    cut = tmp_path / "cut"
    # Of a tar: 3 headers, 1 and 8 blocks of content, 1 block of zeros as the end mark; the rest is padding.
    needed = 512 * (3 + 1 + 8 + 1) if kind == "tar" else len(whole)
    for length in sorted({*range(0, needed, 128 if kind == "tar" else 5), needed - 1}):
        cut.write_bytes(whole[:length])
        refused(cut, tmp_path / "out")


def test_broken_header_in_the_middle_is_not_taken_for_the_end(tmp_path):
    archive = tar_of(tmp_path / "a.tar", [("one", b""), ("two", b""), ("three", b"")])
    packed = bytearray(archive.read_bytes())
    packed[512] ^= 0xFF
    archive.write_bytes(packed)
    assert "without an end mark" in refused(archive, tmp_path / "out")


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_archive_gives_our_error_or_the_right_files(tmp_path, kind, data):
    packed = bytearray(WRITERS[kind](tmp_path / "whole").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "damaged").write_bytes(packed)
    target = tmp_path / "out"
    try:
        safe_extract(tmp_path / "damaged", target)
    except KeMetricError:
        assert not target.exists()
    else:
        assert set(files_below(target).values()) <= set(CONTENT.values())
        shutil.rmtree(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "whole"]


@settings(max_examples=300, deadline=None)
@given(name=st.text(alphabet=st.sampled_from(list("ab./\\: \0\u00e9")), max_size=12) | st.text(max_size=12))
def test_no_name_lands_outside_of_the_folder(name):
    folder = Path("/nowhere/at/all")
    path = inner_path(name, folder)
    if path is None:
        return
    assert os.path.commonpath([os.path.normpath(path), folder]) == str(folder)
    assert "\0" not in str(path)
    # The twin: the standard library's filter agrees, and would not rename it either.
    filtered = tarfile.data_filter(tarfile.TarInfo(name), str(folder))
    assert filtered.name == name


def test_name_that_goes_through_a_link_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path)
    assert inner_path("link/evil", tmp_path / "folder") is None
    assert inner_path("links/fine", tmp_path / "folder") == tmp_path / "folder" / "links" / "fine"


def test_not_an_archive_and_no_file(tmp_path):
    (tmp_path / "a.zip").write_text("<html>404</html>")
    assert "not a tar, tar.gz or zip" in refused(tmp_path / "a.zip", tmp_path / "out")
    (tmp_path / "empty.tgz").write_bytes(b"")
    assert "not a tar, tar.gz or zip" in refused(tmp_path / "empty.tgz", tmp_path / "out")
    assert "no such file" in refused(tmp_path / "missing.zip", tmp_path / "out")
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"just text, longer than nothing" * 100))
    assert "damaged" in refused(tmp_path / "text.gz", tmp_path / "out")


def test_too_little_room_is_said_before_unpacking(tmp_path, monkeypatch):
    archive = WRITERS["zip"](tmp_path / "a.zip")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 0, 10))
    assert "10 are free" in refused(archive, tmp_path / "parent" / "out", ExitCode.ENVIRONMENT)


def half_written(target, error):
    with new_folder(target) as folder:
        (folder / "half").write_bytes(b"x")
        raise error


def test_disk_that_fills_up_leaves_nothing(tmp_path):
    with pytest.raises(KeMetricError, match="disk is full") as caught:
        half_written(tmp_path / "a" / "b", OSError(errno.ENOSPC, "No space left on device"))
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert list(tmp_path.iterdir()) == []


def test_disk_that_fills_up_while_a_member_is_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    archive = WRITERS["tar"](tmp_path / "a.tar")
    monkeypatch.setattr(shutil, "copyfileobj", full)
    assert "disk is full" in refused(archive, tmp_path / "parent" / "out", ExitCode.ENVIRONMENT)


def test_interrupt_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        half_written(tmp_path / "a" / "b", KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []


def occupied_meanwhile(target):
    with new_folder(target) as folder:
        (folder / "ours").write_bytes(b"x")
        target.mkdir()
        (target / "theirs").write_bytes(b"y")


def test_target_that_fills_up_meanwhile_is_not_overwritten(tmp_path):
    with pytest.raises(KeMetricError, match="nothing was kept"):
        occupied_meanwhile(tmp_path / "out")
    assert files_below(tmp_path) == {"out/theirs": b"y"}


def test_checksums(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    assert file_checksum(file, "md5") == "900150983cd24fb0d6963f7d28e17f72"
    assert file_checksum(file, "sha256") == hashlib.sha256(b"abc").hexdigest()
    verify_checksum(file, "900150983CD24FB0D6963F7D28E17F72")
    verify_checksum(file, hashlib.sha256(b"abc").hexdigest())
    for known, algorithm in (("0" * 32, "md5"), ("0" * 64, "sha256")):
        with pytest.raises(KeMetricError, match=rf"file: {algorithm} \w+, expected 0+$") as caught:
            verify_checksum(file, known)
        assert caught.value.exit_code == ExitCode.DATA
