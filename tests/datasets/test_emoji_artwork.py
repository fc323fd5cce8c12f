from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ke_metric.datasets.emoji_artwork import DEFAULT_BOX, DrawingError, IconSet, Style, join_styles, render

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
