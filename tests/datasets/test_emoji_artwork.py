"""Emoji artwork: packages read, styles joined, drawings rendered."""

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ke_metric.datasets import emoji_artwork as emoji_packages
from ke_metric.datasets.emoji_artwork import (
    DEFAULT_BOX,
    STYLES,
    DrawingError,
    IconSet,
    Style,
    fetch_packages,
    join_styles,
    read_icon_set,
    render,
)
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


RED_LEFT_TOP = '<path fill="#f00" d="M0 0h8v4H0z"/>'


def icon_set(
    name: str,
    icons: Mapping[str, str],
    characters: Mapping[str, str] | None = None,
    aliases: Mapping[str, Any] | None = None,
    names_from: str | None = None,
) -> IconSet:
    return IconSet(
        style=Style(name, "1.0.0", names_from),
        version="1.0.0",
        author={},
        licence={},
        icons={icon: {"body": body} for icon, body in icons.items()},
        aliases=aliases or {},
        defaults=DEFAULT_BOX,
        characters=characters or {},
    )


def named(style: str, *names: str, **more: Any) -> IconSet:
    return icon_set(style, dict.fromkeys(names, RED_LEFT_TOP), **more)


def test_sets_with_code_points_are_joined_by_them_whatever_their_names() -> None:
    one = named("one", "dog", characters={"1f436": "dog"})
    other = named("other", "puppy", characters={"1f436": "puppy"})
    assert join_styles([one, other]) == {"1f436": {"one": "dog", "other": "puppy"}}


def test_a_set_without_code_points_is_joined_by_name() -> None:
    listing = named("listing", "dog", "cat", characters={"1f436": "dog", "1f431": "cat"})
    silent = named("silent", "cat", "unheard-of")
    assert join_styles([listing, silent]) == {
        "1f431": {"listing": "cat", "silent": "cat"},
        "1f436": {"listing": "dog"},
    }


def test_the_declared_source_of_names_comes_first() -> None:
    # Fluent calls U+1F199 what the others call U+1F53C.
    others = named("others", "up-button", characters={"1f53c": "up-button"})
    kin = named("kin", "up-button", characters={"1f199": "up-button"})
    assert (
        join_styles([others, kin, named("silent", "up-button", names_from="kin")])["1f199"]["silent"] == "up-button"
    )
    assert join_styles([others, kin, named("silent", "up-button")])["1f53c"]["silent"] == "up-button"


def test_a_present_name_counts_more_than_an_alias_elsewhere() -> None:
    # Twemoji's Clipperton was once called France.
    renamed = named(
        "renamed", "clipperton", characters={"1f1e8": "clipperton"}, aliases={"france": {"parent": "clipperton"}}
    )
    plain = named("plain", "france", characters={"1f1eb": "france"})
    joined = join_styles([renamed, plain, named("silent", "france", names_from="renamed")])
    assert joined["1f1eb"]["silent"] == "france"
    assert "silent" not in joined["1f1e8"]


def test_aliases_on_either_side_lead_to_the_emoji() -> None:
    listing = named("listing", "bear", characters={"1f43b": "bear"}, aliases={"bear-face": {"parent": "bear"}})
    old_name = named("old", "bear-face")
    own_alias = named("new", "teddy", aliases={"bear": {"parent": "teddy"}})
    assert join_styles([listing, old_name, own_alias])["1f43b"] == {
        "listing": "bear",
        "old": "bear-face",
        "new": "bear",
    }


def test_a_drawing_joins_one_emoji_only() -> None:
    listing = named("listing", "dog", "wolf", characters={"1f436": "dog", "1f43a": "wolf"})
    silent = named("silent", "dog", aliases={"wolf": {"parent": "dog"}})
    joined = join_styles([listing, silent])
    assert joined["1f436"]["silent"] == "dog"
    assert "silent" not in joined["1f43a"]


def test_a_turned_alias_is_an_emoji_of_its_own() -> None:
    listing = named("listing", "left", "right", characters={"1f448": "left", "1f449": "right"})
    silent = named("silent", "left", aliases={"right": {"parent": "left", "hFlip": True}})
    joined = join_styles([listing, silent])
    assert joined["1f448"]["silent"] == "left"
    assert joined["1f449"]["silent"] == "right"


@pytest.mark.parametrize("spelling", ["flag-japan", "flag-for-japan", "flag-for-flag-japan"])
def test_old_spellings_of_flags_are_understood(spelling: str) -> None:
    listing = named("listing", "flag-japan", characters={"1f1ef-1f1f5": "flag-japan"})
    assert join_styles([listing, named("silent", spelling)])["1f1ef-1f1f5"]["silent"] == spelling


@pytest.mark.parametrize("code_points", ["1f44b-1f3fb", "1f44b-1f3ff", "1f3fd", "e000", "f8ff"])
def test_skin_tones_and_private_code_points_are_left_out(code_points: str) -> None:
    toned = named("toned", "wave", "wave-dark", characters={"1f44b": "wave", code_points: "wave-dark"})
    assert list(join_styles([toned, named("silent", "wave-dark")])) == ["1f44b"]


def test_a_name_given_to_several_code_points_is_left_out() -> None:
    # Openmoji's drawing `scroll` shows a mouse wheel, not U+1F4DC.
    ambiguous = named("ambiguous", "scroll", "dog", characters={"1f4dc": "scroll", "e104": "scroll", "1f436": "dog"})
    assert list(join_styles([ambiguous])) == ["1f436"]


def test_emojis_come_in_the_order_of_their_code_points() -> None:
    codes = {"1f436": "a", "a9": "b", "1f1e6-1f1e8": "c", "1f1e6": "d"}
    assert list(join_styles([named("one", *"abcd", characters=codes)])) == ["a9", "1f1e6", "1f1e6-1f1e8", "1f436"]


def reds(picture: Image.Image) -> np.ndarray:
    """Where the picture is red, as 4 x 4 cells."""
    pixels = np.asarray(picture)
    return (pixels[8::16, 8::16] == (255, 0, 0)).all(axis=2)


def test_a_drawing_fills_its_box_on_white() -> None:
    picture = render(icon_set("one", {"flag": RED_LEFT_TOP}), "flag", 64)
    assert (picture.mode, picture.size) == ("RGB", (64, 64))
    assert reds(picture).tolist() == [[True, True, False, False], *[[False] * 4] * 3]
    assert picture.getpixel((63, 63)) == (255, 255, 255)


@pytest.mark.parametrize("h_flip", [False, True])
@pytest.mark.parametrize("v_flip", [False, True])
@pytest.mark.parametrize("rotate", [0, 1, 2, 3, 5])
def test_aliases_flip_and_turn_as_svg_does(h_flip: bool, v_flip: bool, rotate: int) -> None:
    alias = {"parent": "flag", "hFlip": h_flip, "vFlip": v_flip, "rotate": rotate}
    turned = icon_set("one", {"flag": RED_LEFT_TOP}, aliases={"turned": alias})
    # The twin says it in SVG; the innermost transformation is applied first.
    flips = f"translate({16 * h_flip} {16 * v_flip}) scale({1 - 2 * h_flip} {1 - 2 * v_flip})"
    twin = f'<g transform="rotate({90 * rotate} 8 8) {flips}">{RED_LEFT_TOP}</g>'
    assert reds(render(turned, "turned", 64)).tolist() == reds(render(icon_set("one", {"x": twin}), "x", 64)).tolist()


def test_aliases_of_aliases_cancel_and_add_up() -> None:
    aliases = {
        "mirrored": {"parent": "flag", "hFlip": True, "rotate": 3},
        "back": {"parent": "mirrored", "hFlip": True, "rotate": 1},
    }
    drawn = icon_set("one", {"flag": RED_LEFT_TOP}, aliases=aliases)
    assert render(drawn, "back", 64).tobytes() == render(drawn, "flag", 64).tobytes()
    assert render(drawn, "mirrored", 64).tobytes() != render(drawn, "flag", 64).tobytes()


def test_a_drawing_with_a_box_of_its_own_is_centred_and_not_stretched() -> None:
    body = '<path fill="#f00" d="M0 0h32v8H0z"/>'
    wide = icon_set("one", {}, aliases={"wide": {"parent": "flag"}})
    wide = replace(wide, icons={"flag": {"body": body, "width": 32, "height": 8}})
    red = (np.asarray(render(wide, "wide", 64)) == (255, 0, 0)).all(axis=2)
    assert red[24:40].all()
    assert not red[:24].any()
    assert not red[40:].any()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("<path d='M0 0'", "."),
        ("", "blank"),
        ('<path fill="#fff" d="M0 0h8v4H0z"/>', "blank"),
        ('<image href="file:///etc/passwd" width="9" height="9"/>', "outside"),
        ('<image xlink:href = "https://example.org/x.png" width="9" height="9"/>', "outside"),
        ('<!DOCTYPE svg [<!ENTITY a "b">]><path d="M0 0h8v4H0z"/>', "outside"),
    ],
)
def test_a_broken_blank_or_reaching_out_drawing_gives_no_picture(body: str, reason: str) -> None:
    with pytest.raises(DrawingError, match=reason):
        render(icon_set("one", {"bad": body}), "bad", 64)


def test_references_inside_the_drawing_are_fine() -> None:
    body = f'<defs><g id="a">{RED_LEFT_TOP}</g></defs><use href="#a"/>'
    assert reds(render(icon_set("one", {"used": body}), "used", 64)).sum() == 2


def test_a_name_without_drawing_and_aliases_in_a_circle_are_errors() -> None:
    circle = icon_set("one", {}, aliases={"a": {"parent": "b"}, "b": {"parent": "a"}, "c": {"parent": "gone"}})
    with pytest.raises(DrawingError, match="aliases in a row"):
        render(circle, "a", 64)
    with pytest.raises(DrawingError, match="no drawing named 'gone'"):
        render(circle, "c", 64)
