"""The page in a browser: drawn without an error, without a request, for every reader, on a phone and on paper."""

import re
from contextlib import contextmanager

import pytest
from browser import serious_problems

BEYOND = """[...document.querySelectorAll("main *")]
    .filter((each) => each.getBoundingClientRect().right > 376 && !each.closest(".scroller, pre"))
    .map((each) => each.outerHTML.slice(0, 99))"""


@contextmanager
def opened(browser, page, folder, **options):
    """Open a page from a file; gives it with all that it said and asked for."""
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    context = browser.new_context(**options)
    context.set_default_timeout(20_000)
    shown, events = context.new_page(), []
    shown.on("console", lambda message: events.append(f"{message.type}: {message.text}"))
    shown.on("pageerror", lambda error: events.append(f"error: {error}"))
    shown.on("dialog", lambda dialog: (events.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    address = path.as_uri()
    shown.on(
        "request",
        lambda request: request.url.startswith((address, "data:")) or events.append(f"request: {request.url}"),
    )
    shown.goto(address)
    if options.get("java_script_enabled", True):
        shown.wait_for_selector("html[data-drawn]", state="attached")
    try:
        yield shown, events
    finally:
        context.close()


def until(shown, condition):
    """Wait until something is true; Playwright's own waiting compiles a text, which the page's policy forbids."""
    for _ in range(100):
        if shown.evaluate(condition):
            return
        shown.wait_for_timeout(50)
    pytest.fail(f"never true: {condition}")


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [("retrieval", "light"), ("retrieval", "dark"), ("classification", "light"), ("hostile", "dark")],
)
def test_nothing_goes_wrong_and_axe_finds_nothing_grave(browser, kind, scheme, request, tmp_path):
    grown = request.getfixturevalue(kind)
    with opened(browser, grown.page, tmp_path, color_scheme=scheme) as (shown, events):
        assert shown.locator("html.with-figures").count() == 1
        assert shown.evaluate("[...document.images].every((each) => each.complete && each.naturalWidth > 0)")
        assert shown.locator("[data-figure] svg").count() == len(grown.gathered.report.charts)
        for folded in shown.locator("summary").all():
            folded.click()
        assert serious_problems(shown) == []
        assert events == []


def test_axe_would_find_something(browser, retrieval, tmp_path):
    pale = re.sub(r"--muted:#\w+", "--muted:#eeeeee", retrieval.page)
    with opened(browser, pale, tmp_path, bypass_csp=True, color_scheme="light") as (shown, _):
        assert any("color-contrast" in problem for problem in serious_problems(shown))


@pytest.mark.parametrize("kind", ["retrieval", "classification", "hostile"])
def test_on_a_phone_the_page_does_not_scroll_sideways(browser, kind, request, tmp_path):
    grown = request.getfixturevalue(kind)
    with opened(browser, grown.page, tmp_path, viewport={"width": 375, "height": 700}) as (shown, _):
        for folded in shown.locator("summary").all():
            folded.click()
        assert shown.evaluate("document.documentElement.scrollWidth") <= 375
        assert shown.evaluate(BEYOND) == []
        scroller = shown.locator("#scores .scroller").first
        assert scroller.evaluate("(box) => box.scrollWidth > box.clientWidth"), "a wide table scrolls in its own box"
        scroller.focus()
        shown.keyboard.press("ArrowRight")
        until(shown, "document.activeElement.scrollLeft > 0")


def test_hostile_names_run_nothing(browser, hostile, tmp_path):
    with opened(browser, hostile.page, tmp_path) as (shown, events):
        assert shown.locator("img[src='x']").count() == 0
        assert shown.get_by_text("</script><img src=x onerror=alert(1)>").count() > 0
        assert shown.title() == "<i>lineage<i>: report"
        mark = shown.locator("[data-figure^=map] svg path[d][transform]").first
        mark.hover(force=True)
        shown.wait_for_selector("#vg-tooltip-element.visible")
        assert shown.locator("#vg-tooltip-element img, #vg-tooltip-element b").count() == 0
        assert events == []


def test_figures_follow_the_scheme_without_being_drawn_again(browser, retrieval, tmp_path):
    color = "getComputedStyle(document.querySelector('[data-figure^=scores] .mark-line path')).stroke"
    with opened(browser, retrieval.page, tmp_path, color_scheme="light") as (shown, _):
        assert shown.evaluate(color) == "rgb(29, 95, 196)"
        shown.emulate_media(color_scheme="dark")
        assert shown.evaluate(color) == "rgb(127, 180, 255)"
        shown.emulate_media(color_scheme="dark", media="print")
        assert shown.evaluate(color) == "rgb(29, 95, 196)"


def test_figures_become_narrow_with_the_window(browser, retrieval, tmp_path):
    with opened(browser, retrieval.page, tmp_path, viewport={"width": 1280, "height": 800}) as (shown, events):
        shown.set_viewport_size({"width": 375, "height": 800})
        until(shown, "document.querySelector('[data-figure] svg').getBoundingClientRect().width < 340")
        assert shown.evaluate("document.documentElement.scrollWidth") <= 375
        assert events == []


def test_by_keyboard_the_first_stop_leads_to_the_report(browser, retrieval, tmp_path):
    with opened(browser, retrieval.page, tmp_path) as (shown, _):
        shown.keyboard.press("Tab")
        focused = shown.locator(":focus")
        assert focused.inner_text() == "Skip to the report"
        assert focused.bounding_box()["x"] >= 0
        assert focused.evaluate("(link) => getComputedStyle(link).outlineStyle") == "solid"
        shown.keyboard.press("Enter")
        assert shown.evaluate("document.activeElement.id") == "content"
        summary = shown.locator("summary").first
        summary.focus()
        shown.keyboard.press("Enter")
        assert shown.locator("details[open]").count() == 1


def test_on_paper_the_numbers_are_unfolded_and_nothing_is_left_to_click(browser, retrieval, tmp_path):
    with opened(browser, retrieval.page, tmp_path) as (shown, events):
        shown.evaluate(
            "addEventListener('beforeprint', () => { window.unfolded ="
            " document.querySelectorAll('details.printed[open]').length; })"
        )
        assert shown.pdf(format="A4").startswith(b"%PDF")
        assert shown.evaluate("window.unfolded") == shown.locator("details.printed").count() > 0
        assert shown.locator("details[open]").count() == 0
        shown.emulate_media(media="print")
        assert not shown.locator("nav").is_visible()
        assert events == []


def test_without_javascript_words_stand_for_the_figures(browser, retrieval, tmp_path):
    with opened(browser, retrieval.page, tmp_path, java_script_enabled=False) as (shown, events):
        described = retrieval.gathered.report.charts[0].description
        assert shown.get_by_text(described).is_visible()
        assert shown.locator("noscript").first.is_visible()
        assert not shown.locator(".drawing").first.is_visible()
        assert [event for event in events if "request" in event] == []
