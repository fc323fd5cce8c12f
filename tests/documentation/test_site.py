"""The site builds without a warning, every link in it leads somewhere, and it loads nothing from elsewhere."""

import shutil
from urllib.parse import unquote, urlsplit

import pytest
from built_site import ROOT, Page, addresses_in_styles, build, from_elsewhere


@pytest.fixture(scope="module")
def pages(site):
    """Every page by its path in the site."""
    return {
        path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")
    }


def test_it_builds_without_a_warning(built):
    _, said, code = built
    assert said == ""
    assert code == 0


WRONG = {
    "named": ("Read `docs/nowhere.md`.", "unknown document: '/nowhere'"),
    "linked": ("Read [this](nowhere.md).", "'myst' cross-reference target not found: 'nowhere.md'"),
    "heading": ("Read [this](#no-such-heading).", "'myst' cross-reference target not found: 'no-such-heading'"),
    "picture": ("![A picture](nowhere.png)", "image file not readable"),
    "arrow": ("```mermaid\nflowchart TD\n    a -.-> b\n```", "no way to draw 'a -.-> b'"),
    "circle": ("```mermaid\nflowchart TD\n    a --> b\n    b --> a\n```", "lead in a circle"),
    "forgotten": ("Nothing leads here.", "document isn't included in any toctree"),
}
"""What a page says, and what is said of it."""


@pytest.fixture(scope="module")
def wrong(built, tmp_path_factory):
    """What Sphinx says of pages with something wrong in each, and its exit status."""
    folder = tmp_path_factory.mktemp("wrong")
    docs = folder / "docs"
    shutil.copytree(ROOT / "docs" / "_static", docs / "_static")
    for name in ("conf.py", "rooms_picture.py"):
        shutil.copy(ROOT / "docs" / name, docs)
    for name, (text, _) in WRONG.items():
        (docs / f"{name}.md").write_text(f"# A page\n\n{text}\n")
    listed = "\n".join(name for name in WRONG if name != "forgotten")
    (docs / "index.md").write_text(f"# Pages\n\n```{{toctree}}\n{listed}\n```\n")
    return build(docs, folder)


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_page_is_an_error(name, wrong):
    code, said = wrong
    assert code == 1
    (line,) = [line for line in said.splitlines() if f"/{name}.md" in line]
    assert WRONG[name][1] in line


def test_every_page_is_in_it(pages):
    sources = {
        path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")
    }
    assert sources == set(pages) - {"genindex.html", "search.html"}


def test_nothing_comes_from_elsewhere(site, pages):
    found = {name: from_elsewhere(page.fetched) for name, page in pages.items()}
    for path in site.rglob("*.css"):
        found[path.name] = from_elsewhere(addresses_in_styles(path.read_text(encoding="utf-8")))
    assert not {name: addresses for name, addresses in found.items() if addresses}
    assert all(page.fetched for page in pages.values())


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://example.org/a.js"></script>',
        '<link rel="stylesheet" href="//example.org/a.css">',
        '<img alt="" src="http://example.org/a.png">',
        '<img alt="" src="a.png" srcset="https://example.org/a.png 2x">',
        '<iframe src="https://example.org"></iframe>',
        "<style>@import 'https://example.org/a.css';</style>",
        "<style>p { background: url(https://example.org/a.png) }</style>",
        '<svg><use href="https://example.org/a.svg#b"/></svg>',
    ],
)
def test_what_comes_from_elsewhere_would_be_seen(text):
    assert from_elsewhere(Page(text).fetched)


def test_what_a_reader_may_follow_is_allowed():
    page = Page('<a href="https://example.org">there</a><img src="a.png" alt="">')
    assert page.fetched == ["a.png"]
    assert page.links == ["https://example.org"]


def test_every_link_leads_to_a_place_in_the_site(site, pages):
    broken = []
    for name, page in pages.items():
        for link in page.links + page.fetched:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (site / name).parent / unquote(parts.path) if parts.path else site / name
            path = target.resolve()
            if not path.is_file():
                broken.append((name, link))
            elif parts.fragment and path.suffix == ".html":
                anchors = pages[path.relative_to(site.resolve()).as_posix()].anchors
                broken += [(name, link)] * (unquote(parts.fragment) not in anchors)
    assert not broken


def test_pages_named_in_a_text_are_links(pages):
    links = pages["architecture.html"].links
    assert {"decisions.html", "start.html", "stores.html"} <= {link.partition("#")[0] for link in links}


def test_the_rooms_are_drawn_with_every_arrow(site):
    from_text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = from_text[from_text.index("flowchart TD") : from_text.index("subgraph")]
    arrows = sum(
        len(tails.split("&")) * len(heads.split("&"))
        for tails, _, heads in (line.partition("-->") for line in block.splitlines())
        if heads
    )
    page = (site / "architecture.html").read_text(encoding="utf-8")
    assert arrows > 20
    assert page.count('class="arrow"') == arrows
