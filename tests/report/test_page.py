"""The page: every number is the scorecard's, nothing of a lineage is markup, nothing leads out of the file."""

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from reported import HOSTILE, Page

from ke_metric.lineage.report import shown_names
from ke_metric.report.page import NAMES_AT_MOST, write_page
from ke_metric.report.page_parts import ShownQueries
from ke_metric.report.places import without_places

LARGEST = 1_000_000


def without_pictures(page):
    return re.sub(r'src="data:image/[^"]*"', "", page)


def unpacked(page, name):
    text = re.search(rf'<script type="text/plain" id="{name}">([^<]*)</script>', page)[1]
    return gzip.decompress(base64.b64decode(text)).decode()


def score_of(lineage, key):
    number, network, name = key.split("/")
    card = lineage.scorecard(int(number)) if number != "0" else lineage.untrained
    return card.networks[network][name]


@pytest.mark.parametrize("kind", ["retrieval", "classification"])
def test_every_number_is_that_of_the_scorecard(kind, request):
    grown = request.getfixturevalue(kind)
    numbers = [each for each in Page(grown.page).numbers if each[0]]
    for key, value, shown in numbers:
        expected = score_of(grown.lineage, key)
        # Means over queries are summed in another order in the table of changes.
        assert value == pytest.approx(expected, abs=1e-9), key
        factor = 1 if key.rpartition("/")[2] in ("nmi", "ami") else 100
        assert float(shown.removesuffix(" %").replace("−", "-")) / factor == pytest.approx(expected, abs=5.001e-4)
    cards = {number: grown.lineage.scorecard(number) for number in grown.lineage.numbers}
    expected = {
        f"{number}/{network}/{name}"
        for number, card in cards.items()
        for network, scores in card.networks.items()
        for name in shown_names([scores])
    }
    assert {key for key, _, _ in numbers} >= expected
    assert len(expected) > 5


@pytest.mark.parametrize("kind", ["retrieval", "classification"])
def test_all_sections_are_there_and_nothing_is_missing(kind, request):
    grown = request.getfixturevalue(kind)
    found = Page(grown.page)
    anchors = {attributes.get("id") for tag, attributes in found.tags if tag == "section"}
    links = [attributes["href"][1:] for tag, attributes in found.tags if tag == "a" and "href" in attributes]
    assert set(links) - {"content"} <= anchors
    assert len(grown.gathered.report.sections) == 11
    assert not [section.missing for section in grown.gathered.report.sections if section.missing]


def test_headline_tells_the_gain_over_generation_1(retrieval):
    report, lineage = retrieval.gathered.report, retrieval.lineage
    first, last = (lineage.scorecard(number).dense["recall@1"] for number in (1, 2))
    gain = next(each for each in report.headline if each.title == "Gain over generation 1")
    assert gain.number.value == last - first
    assert gain.number.text == f"{100 * (last - first):+.1f} points".replace("-", "−")
    assert gain.is_loss == (last < first)
    assert f"{100 * first:.1f}" in gain.note


def test_mended_and_broken_are_those_of_a_recomputation(retrieval):
    from ke_metric.report.vectors import LineageVectors

    vectors = LineageVectors.open(retrieval.lineage)
    keys = vectors.benchmark.query.keys
    titles = set()
    for change in retrieval.gathered.changes:
        before, after = (
            vectors.outcomes(change[side]["generation"], change[side]["network"]).scores["recall@1"]
            for side in ("before", "after")
        )
        assert change["mended"] == [key for key, one, other in zip(keys, before, after, strict=True) if other > one]
        assert change["broken"] == [key for key, one, other in zip(keys, before, after, strict=True) if other < one]
        titles.add((change["before"]["network"], change["after"]["network"]))
    assert titles >= {("dense", "dense"), ("slim", "slim"), ("dense", "slim")}
    galleries = [part for part in retrieval.section("mended-and-broken").parts if isinstance(part, ShownQueries)]
    first = retrieval.gathered.changes[0]
    assert [list(gallery.names) for gallery in galleries] == [first["mended"], first["broken"]]
    shown = "".join(Page(retrieval.page).text)
    assert all(name in shown for gallery in galleries for name in gallery.names[:NAMES_AT_MOST])
    assert sum(len(gallery.examples) for gallery in galleries) > 0


def test_shown_pictures_are_marked_in_words(retrieval):
    galleries = [
        part
        for section in retrieval.gathered.report.sections
        for part in section.parts
        if isinstance(part, ShownQueries)
    ]
    pictures = [
        picture
        for gallery in galleries
        for example in gallery.examples
        for answer in example.answers
        for picture in answer.neighbors
    ]
    for gallery in galleries:
        for example in gallery.examples:
            for answer in example.answers:
                assert all(picture.right == (picture.label == example.query.label) for picture in answer.neighbors)
                assert all(picture.name != example.query.name for picture in answer.neighbors)
    words = re.findall(
        r'<figcaption><span class="mark"><span aria-hidden="true">[✓✗]</span> (right|wrong)</span>', retrieval.page
    )
    assert words.count("right") == sum(bool(picture.right) for picture in pictures)
    assert words.count("wrong") == sum(not picture.right for picture in pictures)


def test_the_page_is_small_without_its_pictures(retrieval, classification):
    for grown in (retrieval, classification):
        assert len(without_pictures(grown.page).encode()) < LARGEST


def test_the_policy_allows_exactly_what_is_inside(retrieval):
    page = retrieval.page
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in policy
    assert "http" not in policy

    def allowed(text):
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    style, starter = (re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1] for tag in ("style", "script"))
    assert rules["style-src"] == allowed(style)
    assert set(rules["script-src"].split()) == {allowed(starter), allowed(unpacked(page, "library"))}
    assert not re.search(r'<[^>]+ style="|<[^>]+ on\w+=', page), "the policy would stop it"


def test_every_figure_has_words_and_a_specification(retrieval):
    charts = retrieval.gathered.report.charts
    figures = json.loads(unpacked(retrieval.page, "figures"))
    assert list(figures) == [chart.name for chart in charts]
    assert len(charts) >= 8
    for chart in charts:
        assert re.search(r"\d", chart.description)
        assert '"@' not in json.dumps({**figures[chart.name], "data": None}), "a colour without its variable"
    drawings = [attributes for tag, attributes in Page(retrieval.page).tags if attributes.get("role") == "img"]
    assert all(attributes.get("aria-label") for attributes in drawings)


def test_headings_never_leave_a_level_out(retrieval):
    levels = [int(tag[1]) for tag, _ in Page(retrieval.page).tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_a_place_on_this_machine_is_never_told(retrieval, tmp_path):
    for page in (retrieval.page, without_pictures(retrieval.page), unpacked(retrieval.page, "figures")):
        assert str(Path.home()) not in page
        assert str(retrieval.lineage.folder.parent) not in page
    assert retrieval.lineage.folder.name in retrieval.page


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"/{'home'}/me/lineages/demo/generation-001: gone", "generation-001: gone"),
        ("data.root = '/data/my birds'", "data.root = 'my birds'"),
        ("see ~/pictures/a.png, please", "see a.png, please"),
        (r"C:\people\me\lineage: busy", "lineage: busy"),
        ("half of 1/2, and/or, U+0024/DejaVu", "half of 1/2, and/or, U+0024/DejaVu"),
        ("https://example.org/a/b stays", "https://example.org/a/b stays"),
        ("/mnt/my disk/pics/a.png: damaged", "a.png: damaged"),
        (
            "no pictures in '/mnt/my disk/all pics', nor in \"C:\\my pics\"",
            "no pictures in 'all pics', nor in \"my pics\"",
        ),
        ("see file:///mnt/pics/a.png, please", "see a.png, please"),
        (r"\\server\share\a.png: gone", "a.png: gone"),
        (r"of \\server\share\a.png", "of a.png"),
        ("a b/c d", "a b/c d"),
        ("/", "/"),
    ],
)
def test_of_a_path_the_last_name_is_left(text, told):
    assert without_places(text) == told


@pytest.mark.parametrize("place", ["/srv/John Doe/pics", "/srv/John Doe/pics/", "/srv/a, b: (c)"])
def test_a_place_that_is_known_is_cut_whatever_its_name_holds(place):
    root = place.rstrip("/")
    told = without_places(f"see {root}/x.png, {root}, and {root}/a/y.png; not {root}2", place)
    last = root.rpartition("/")[2]
    assert told.startswith(f"see x.png, {last}, and y.png; not ")
    assert "y.png" in told


def test_the_folder_of_the_user_is_known(monkeypatch, tmp_path):
    home = tmp_path / "John Doe"
    monkeypatch.setenv("HOME", str(home))
    assert without_places(f"of {home}/pics/a.png") == "of a.png"
    assert "John" not in without_places(f"in {home}")
    monkeypatch.chdir(tmp_path)
    assert without_places(f"of {tmp_path}/pics/a.png") == "of a.png"


def test_names_are_text_whatever_they_hold(hostile):
    page, tags = hostile.page, Page(hostile.page).tags
    assert not [section.missing for section in hostile.gathered.report.sections if section.missing]
    assert {tag for tag, _ in tags} & {"b", "i", "svg"} <= {"svg"}
    assert all(attributes["src"].startswith("data:image/") for tag, attributes in tags if tag == "img")
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert "<i>lineage<i>" in "".join(Page(page).text)
    assert str(hostile.lineage.folder.parent) not in page
    assert "49" not in re.findall(r"<bdi[^>]*>([^<]*)</bdi>", page)


def test_hostile_names_reach_the_figures_as_data(hostile):
    figures = json.loads(unpacked(hostile.page, "figures"))
    maps = [each for name, each in figures.items() if name.startswith("map")]
    labels = {row["label"] for each in maps for row in each["data"]["values"]}
    assert labels
    assert labels <= set(HOSTILE)


def test_a_name_that_is_no_text_is_written(retrieval, tmp_path):
    report = replace(retrieval.gathered.report, title="bad\udcff name")
    assert write_page(report, tmp_path / "page.html") == (tmp_path / "page.html").stat().st_size
    assert "bad? name" in (tmp_path / "page.html").read_text(encoding="utf-8")
