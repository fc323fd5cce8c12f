import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ke_metric.datasets import emoji_artwork as emoji_packages
from ke_metric.datasets.emoji_artwork import STYLES, Style, fetch_packages, read_icon_set
from ke_metric.errors import ExitCode, KeMetricError

NOTO_V1 = Style("noto-v1", "1.2.5")


def documents(**changes: Any) -> dict[str, bytes]:
    """The JSON files of a package with two drawings; a change of None leaves a file out."""
    contents = {
        "package.json": {"name": "@iconify-json/noto-v1", "version": "1.2.5"},
        "info.json": {
            "name": "Noto Emoji (v1)",
            "author": {"name": "Google Inc", "url": "https://example.org/noto"},
            "license": {"title": "Apache 2.0", "spdx": "Apache-2.0", "url": "https://example.org/licence"},
        },
        "icons.json": {
            "prefix": "noto-v1",
            "icons": {"dog": {"body": "<path/>"}, "cat": {"body": "<path/>", "width": 64.5}},
            "aliases": {"puppy": {"parent": "dog", "rotate": 1}},
            "width": 128,
            "height": 128,
        },
        "chars.json": {"1F436-FE0F": "dog"},
    } | {name.replace("_", "."): content for name, content in changes.items()}
    return {name: json.dumps(content).encode() for name, content in contents.items() if content is not None}


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def refusal(folder: Path) -> str:
    with pytest.raises(KeMetricError) as caught:
        read_icon_set(NOTO_V1, folder)
    assert caught.value.exit_code == ExitCode.DATA
    return str(caught.value)


def test_a_package_is_read_the_same_as_archive_and_as_folder(tmp_path: Path) -> None:
    (tmp_path / "archives").mkdir()
    write_archive(tmp_path / "archives" / "iconify-json-noto-v1-1.2.5.tgz", {"index.js": b"ignored", **documents()})
    write_folder(tmp_path / "plain" / "noto-v1", documents())
    write_folder(tmp_path / "scoped" / "@iconify-json" / "noto-v1", documents())
    read = [read_icon_set(NOTO_V1, tmp_path / name) for name in ("archives", "plain", "scoped")]
    assert read[0] == read[1] == read[2]
    assert read[0].version == "1.2.5"
    assert read[0].licence["spdx"] == "Apache-2.0"
    assert read[0].author["name"] == "Google Inc"
    assert read[0].characters == {"1f436": "dog"}
    assert read[0].defaults == {"left": 0, "top": 0, "width": 128, "height": 128}
    assert read[0].aliases["puppy"]["parent"] == "dog"


def test_noto_is_not_mistaken_for_noto_v1(tmp_path: Path) -> None:
    write_archive(tmp_path / "iconify-json-noto-1.2.9.tgz", documents())
    assert "no package @iconify-json/noto-v1" in refusal(tmp_path)
    assert "npm pack @iconify-json/noto-v1" in refusal(tmp_path)


def test_a_set_may_list_no_code_points_and_no_aliases(tmp_path: Path) -> None:
    icons = {"icons": {"dog": {"body": "<path/>"}}}
    write_folder(tmp_path / "noto-v1", documents(chars_json=None, icons_json=icons))
    read = read_icon_set(NOTO_V1, tmp_path)
    assert (read.characters, read.aliases) == ({}, {})
    assert read.defaults["width"] == 16


def test_a_package_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    for version in ("1.2.4", "1.2.5"):
        write_archive(tmp_path / f"iconify-json-noto-v1-{version}.tgz", documents())
    message = refusal(tmp_path)
    assert "2 times" in message
    assert "noto-v1-1.2.4.tgz" in message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"icons_json": None}, "icons.json"),
        ({"info_json": {"author": {"name": "x", "url": "y"}}}, "license"),
        ({"package_json": {}}, "version"),
        ({"icons_json": {"icons": {"dog": {}}}}, "body"),
        ({"icons_json": {"icons": {"dog": {"body": 3}}}}, "dog: body = 3"),
        ({"icons_json": {"icons": {"dog": "<path/>"}}}, "TypeError"),
        ({"icons_json": {"icons": {}, "aliases": {"puppy": {"hFlip": True}}}}, "parent"),
        ({"icons_json": {"icons": {}, "aliases": {"puppy": {"parent": "dog", "rotate": "90deg"}}}}, "rotate"),
        ({"icons_json": {"icons": {}, "width": "wide"}}, "wide"),
        ({"icons_json": {"icons": [1]}}, "AttributeError"),
        ({"chars_json": {"../../1f436": "dog"}}, "no sequence of code points"),
        ({"chars_json": {"fe0f": "dog"}}, "no sequence of code points"),
    ],
)
def test_a_package_of_another_layout_is_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    write_folder(tmp_path / "noto-v1", documents(**changes))
    message = refusal(tmp_path)
    assert named in message
    assert "@iconify-json/noto-v1" in message


def test_broken_json_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "noto-v1", documents() | {"icons.json": b'{"icons": '})
    assert "JSONDecodeError" in refusal(tmp_path)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = write_archive(
        tmp_path / "iconify-json-noto-v1-1.2.5.tgz", documents() | {"index.js": bytes(range(256)) * 99}
    )
    path.write_bytes(path.read_bytes()[:-200])
    assert "iconify-json-noto-v1-1.2.5.tgz" in refusal(tmp_path)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(emoji_packages, "MAX_PACKAGE_BYTES", 100_000)
    write_archive(tmp_path / "iconify-json-noto-v1-1.2.5.tgz", {"index.js": b" " * 1_000_000, **documents()})
    assert "100,000" in refusal(tmp_path)


def npm_that(script: str, folder: Path, monkeypatch) -> None:
    """Put a program called npm on the path; `$2` is the package it is asked for and `$4` the folder."""
    npm = folder / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_packages_are_fetched_in_their_fixed_versions(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "fetched").mkdir()
    npm_that('echo "$1 $2" >> "$4/asked"', tmp_path / "bin", monkeypatch)
    fetch_packages(tmp_path / "fetched")
    asked = (tmp_path / "fetched" / "asked").read_text(encoding="utf-8").splitlines()
    assert asked == [f"pack @iconify-json/{style.name}@{style.version}" for style in STYLES]
    assert len(asked) == 8


def test_a_fetch_that_fails_names_the_package_and_what_npm_said(tmp_path: Path, monkeypatch) -> None:
    npm_that("echo no network >&2; exit 1", tmp_path, monkeypatch)
    with pytest.raises(KeMetricError, match=r"@iconify-json/noto@1\.2\.9: no network.*source") as caught:
        fetch_packages(tmp_path)
    assert caught.value.exit_code == ExitCode.DATA


def test_a_fetch_that_hangs_is_given_up(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(emoji_packages, "FETCH_SECONDS", 0.2)
    npm_that("exec sleep 20", tmp_path, monkeypatch)
    with pytest.raises(KeMetricError, match=r"noto@1\.2\.9.*timed out") as caught:
        fetch_packages(tmp_path)
    assert caught.value.exit_code == ExitCode.DATA


def test_without_npm_it_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        KeMetricError, match=r"npm, which is not installed.*@iconify-json/emojione-v1.*source"
    ) as caught:
        fetch_packages(tmp_path)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
