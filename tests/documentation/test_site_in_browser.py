"""The site as readers meet it: at a desk and on a phone, by day and by night, without the network."""

import pytest
from browser import serious_problems

PAGES = ("index", "architecture", "commands", "faq", "recipe-fields")
VIEWS = {"desk, light": (1280, "light"), "phone, dark": (375, "dark")}


@pytest.fixture
def visit(browser, site):
    """Open a page of the site; gives it, with what its console said and what it asked of the network."""
    opened = []

    def open_page(name, view, query=""):
        width, scheme = VIEWS[view]
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        opened.append(page)
        complaints = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if "file:" not in request.url[:5] else None)
        page.goto(f"{(site / name).as_uri()}.html{query}")
        return page, complaints

    yield open_page
    for page in opened:
        page.close()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_and_fits(name, view, visit):
    page, complaints = visit(name, view)
    assert page.locator("h1").count() == 1
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["architecture", "index", "retrieval"])
def test_nothing_serious_stands_in_the_way_of_anybody(name, view, visit):
    page, _ = visit(name, view)
    assert serious_problems(page) == []


def test_the_search_finds_a_field_without_a_server(visit):
    page, complaints = visit("search", "desk, light", "?q=keep_whole")
    page.locator("#search-results li a").first.wait_for()
    assert "recipe-fields.html" in " ".join(
        link.get_attribute("href") for link in page.locator("#search-results li a").all()
    )
    assert complaints == []
