"""Fetching the wheel of the solar cells with pip, from folders of wheels in place of an index."""

import json
import zipfile

import pytest
from click.testing import CliRunner

from ke_metric.benchmarks import solar as reader
from ke_metric.cli import main
from ke_metric.datasets import prepare as source_files
from ke_metric.datasets import published_files, solar
from ke_metric.datasets.prepare import prepare
from ke_metric.datasets.published_files import Distribution, PublishedFile, file_checksum
from ke_metric.datasets.solar import PACKAGE, prepare_solar
from ke_metric.errors import ExitCode, KeMetricError

WHEEL = "elpv_dataset-1.0.0.post1-py3-none-any.whl"
DETAILS = {
    "METADATA": "Metadata-Version: 2.3\nName: elpv-dataset\nVersion: 1.0.0.post1\nRequires-Dist: numpy\n",
    "WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "RECORD": "",
}


def write_wheel(path, unpacked):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as wheel:
        for file in sorted(each for each in unpacked.rglob("*") if each.is_file()):
            wheel.write(file, file.relative_to(unpacked))
        for name, text in DETAILS.items():
            wheel.writestr(f"elpv_dataset-1.0.0.post1.dist-info/{name}", text)
    return path


@pytest.fixture
def wheel(make_solar, tmp_path, monkeypatch):
    """A small wheel, which is the published one for this test, in a folder that is all pip looks into."""
    found = write_wheel(tmp_path / "index" / WHEEL, make_solar(tmp_path / "unpacked"))
    published = PublishedFile(
        WHEEL, found.stat().st_size, file_checksum(found, "md5"), file_checksum(found, "sha256")
    )
    ways = (Distribution("elpv-dataset", (published,)),)
    for module in (published_files, source_files):
        monkeypatch.setattr(module, "DISTRIBUTIONS", {**module.DISTRIBUTIONS, "solar": ways})
    monkeypatch.setattr(reader, "COUNTS", dict.fromkeys(reader.COUNTS, 4))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(found.parent))
    return found


@pytest.fixture
def target(tmp_path):
    return tmp_path / "data" / "solar"


def refused(target, code):
    with pytest.raises(KeMetricError) as caught:
        prepare_solar(target)
    assert caught.value.exit_code is code
    assert not target.exists()
    return str(caught.value)


def test_the_pinned_version_is_the_published_wheel():
    name, _, version = PACKAGE.replace("-", "_").partition("==")
    (way,) = published_files.DISTRIBUTIONS["solar"]
    assert [file.name for file in way.files] == [f"{name}-{version}-py3-none-any.whl"]


def test_the_wheel_is_fetched_compared_and_unpacked(wheel, target):
    told = []
    report = prepare_solar(target, progress=told.append)
    assert [(file.name, file.action, file.checksum) for file in report.taken] == [
        (WHEEL, "unpacked", "sha256 as published")
    ]
    assert {part: (counts.images, counts.classes) for part, counts in report.counts.items()} == {
        "train": (16, 4),
        "test": (16, 4),
    }
    assert report.root == target
    assert told[0] == "fetching elpv-dataset==1.0.0.post1 with pip, 91 MB"
    # The licence comes along.
    assert list(target.rglob("LICENSE.md"))
    assert [path.name for path in target.parent.iterdir()] == ["solar"]


def test_the_command_fetches_without_a_source(wheel, target):
    finished = CliRunner().invoke(main, ["data", "prepare", "solar", "--to", str(target), "--json"])
    assert finished.exit_code == 0, finished.stderr
    assert json.loads(finished.stdout)["root"] == str(target)
    assert (target / "elpv_dataset" / "data" / "labels.csv").is_file()


@pytest.mark.parametrize("name", [WHEEL, "renamed.zip"])
def test_a_wheel_that_is_there_is_taken(wheel, target, name, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS")
    source = wheel.rename(wheel.parent / name)
    for given in (source, source.parent):
        report = prepare("solar", given, target=target / given.name)
        assert [file.checksum for file in report.taken] == ["sha256 as published"]
    again = prepare("solar", target / name, target=target / "elsewhere")
    assert (again.root, again.taken) == (target / name, ())


def test_another_wheel_of_that_name_is_refused(wheel, target):
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("elpv_dataset/more.py", "")
    message = refused(target, ExitCode.DATA)
    assert "sha256" in message
    assert "It is not the published elpv_dataset-1.0.0.post1-py3-none-any.whl (solar, elpv-dataset)" in message


def test_other_counts_are_refused_and_nothing_is_kept(wheel, target, monkeypatch):
    monkeypatch.setitem(reader.COUNTS, 0, 588)
    message = refused(target, ExitCode.DATA)
    assert "images of class mono 0.00: expected 588, found 4" in message


def test_where_pip_finds_nothing_it_says_what_pip_said_and_what_else_can_be_done(wheel, target, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS")
    message = refused(target, ExitCode.DATA)
    assert "No matching distribution found for elpv-dataset==1.0.0.post1" in message
    assert "python -m pip download --no-deps elpv-dataset==1.0.0.post1" in message
    assert "--from PATH" in message


def test_a_source_archive_is_not_run(wheel, target, tmp_path):
    wheel.rename(wheel.parent / "elpv_dataset-1.0.0.post1.tar.gz")
    assert "No matching distribution" in refused(target, ExitCode.DATA)


def test_a_fetch_that_hangs_is_given_up(wheel, target, monkeypatch):
    monkeypatch.setattr(solar, "FETCH_SECONDS", 0.01)
    message = refused(target, ExitCode.DATA)
    assert "timed out" in message
    assert "--from PATH" in message


def test_without_pip_it_says_what_to_do(wheel, target, monkeypatch):
    monkeypatch.setattr(solar, "find_spec", lambda _: None)
    message = refused(target, ExitCode.ENVIRONMENT)
    assert "does not have" in message
    assert "--from PATH" in message


def test_an_occupied_target_is_refused_before_anything_is_fetched(wheel, target):
    target.mkdir(parents=True)
    (target / "mine.txt").write_text("mine")
    told = []
    with pytest.raises(KeMetricError, match="not an empty folder") as caught:
        prepare_solar(target, progress=told.append)
    assert caught.value.exit_code is ExitCode.DATA
    assert told == []
    assert (target / "mine.txt").read_text() == "mine"
