"""The page in a real browser: everything it is for, what is wrong with a file, hostile names, and who can use it."""

import base64
import re
import threading
from contextlib import contextmanager

import pytest
from browser import serious_problems
from drawn_collection import CLASSES, HOSTILE, DrawnCollection, encode, picture_of, running_explorer
from playwright.sync_api import expect
from test_access import TOKEN
from test_uploads import large_png

from ke_metric.serving.exchange import ServiceSettings

# Both are in the rendering of a list that is not styled as one.
MARK = {True: "✓ right", False: "✗ wrong"}


class Visit:
    """A visit to the page, in which nothing may go wrong.

    Attributes:
        page: Of the browser.
    """

    def __init__(self, context, explorer):
        self.page, self.explorer = context.new_page(), explorer
        self.complaints, self.foreign, self.dialogs = [], [], []
        self.page.set_default_timeout(10_000)
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._check)
        self.page.on("dialog", self._refuse)

    def _check(self, request):
        if not request.url.startswith((f"{self.explorer.url}/", "data:", "blob:")):
            self.foreign.append(request.url)

    def _refuse(self, dialog):
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def go(self, query=""):
        self.page.goto(f"{self.explorer.url}/{query}")
        self.settle()
        return self

    def settle(self):
        """Wait until everything that was asked for is shown."""
        expect(self.page.locator("#main")).to_have_attribute("aria-busy", "false")
        expect(self.page.locator("#panels .found li").first).to_be_visible()

    def found(self, side):
        """Return positions and marks of the neighbours that a panel shows."""
        items = self.page.locator(f".panel:has(#{side}-heading) .found li")
        pictures = items.locator("img").evaluate_all("all => all.map(each => each.getAttribute('src'))")
        marks = items.locator(".mark").all_inner_texts()
        return [(int(src.rsplit("/", 1)[1]), mark) for src, mark in zip(pictures, marks, strict=True)]

    def expected(self, generation, name, part, position):
        exploration = self.explorer.exploration
        network = exploration.find(generation, name)
        found = exploration.neighbors(network, part, position)["neighbors"]
        return [(each["position"], MARK[each["right"]]) for each in found]

    def listed(self):
        return [int(each) for each in self.page.locator("#list button").evaluate_all(
            "all => all.map(each => each.dataset.position)"
        )]  # fmt: skip

    def drop(self, files):
        """Drop files onto the page: name to type and content, which is bytes or a number of zeros."""
        self.page.evaluate(
            """files => {
                const moved = new DataTransfer();
                for (const [name, type, text] of files) {
                    const body = typeof text === "number"
                        ? new Uint8Array(text) : Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
                    moved.items.add(new File([body], name, {type}));
                }
                for (const kind of ["dragover", "drop"])
                    document.body.dispatchEvent(
                        new DragEvent(kind, {dataTransfer: moved, bubbles: true, cancelable: true}));
            }""",
            [
                [name, kind, body if isinstance(body, int) else base64.b64encode(body).decode()]
                for name, (kind, body) in files.items()
            ],
        )


@contextmanager
def visiting(browser, explorer, **context):
    with browser.new_context(viewport={"width": 1280, "height": 900}, **context) as opened:
        visit = Visit(opened, explorer)
        yield visit
        assert visit.complaints == []
        assert visit.foreign == []
        assert visit.dialogs == []


@pytest.fixture
def visit(browser, explorer):
    with visiting(browser, explorer) as found:
        yield found


def test_two_networks_stand_side_by_side_with_right_ones_marked(visit):
    visit.go("?query=gallery:9")
    assert visit.found("left") == visit.expected(1, "dense", "gallery", 9)
    assert visit.found("right") == visit.expected(3, "dense", "gallery", 9)
    visit.page.select_option("#left-network", "slim")
    visit.page.select_option("#left-generation", "2")
    visit.settle()
    assert visit.found("left") == visit.expected(2, "slim", "gallery", 9)
    expect(visit.page.locator("#left-heading")).to_have_text("Generation 2, slim")
    # As the collection has it, and as `ke-metric eval` prints it.
    expect(visit.page.locator(".panel .scores").first).to_have_text("All queries: Recall@1 50.0 %")
    right = sum(mark == MARK[True] for _, mark in visit.found("left"))
    expect(visit.page.locator(".panel .own").first).to_contain_text(f"{right} of 10 right")


def test_the_slider_moves_through_the_generations_by_keyboard(visit):
    visit.go("?query=gallery:9")
    slider = visit.page.get_by_role("slider", name="Generation")
    slider.focus()
    for key, generation in (("ArrowLeft", 2), ("Home", 1), ("End", 3), ("ArrowLeft", 2)):
        slider.press(key)
        visit.settle()
        assert visit.found("right") == visit.expected(generation, "dense", "gallery", 9)
        assert f"right={generation}%3Adense" in visit.page.url
        assert slider.get_attribute("aria-valuetext") == f"generation {generation}"
        expect(visit.page.locator("#right-generation")).to_have_value(str(generation))


def test_the_map_moves_with_the_slider_and_does_not_jump(browser, explorer):
    """Half way of the time the dots are between their places; who asked for little motion sees them there at once."""
    for motion, moves in (("no-preference", True), ("reduce", False)):
        with visiting(browser, explorer, reduced_motion=motion) as visit:
            visit.go()
            visit.page.wait_for_timeout(600)
            drawn = "document.getElementById('canvas').toDataURL()"
            before = visit.page.evaluate(drawn)
            frames = visit.page.evaluate(
                """async () => {
                    const [slider, canvas] = [document.getElementById("slider"), document.getElementById("canvas")];
                    slider.value = "0";
                    slider.dispatchEvent(new Event("input"));
                    const seen = new Set();
                    const end = performance.now() + 800;
                    while (performance.now() < end) {
                        await new Promise(requestAnimationFrame);
                        seen.add(canvas.toDataURL());
                    }
                    return seen.size;
                }"""
            )
            assert visit.page.evaluate(drawn) != before
            assert (frames > 2) == moves, frames


def test_a_click_on_a_neighbour_makes_it_the_query_and_back_leads_back(visit):
    visit.go("?query=gallery:9")
    first = visit.found("right")[0][0]
    visit.page.locator(".panel:has(#right-heading) .found button").first.click()
    visit.settle()
    assert f"query=gallery%3A{first}" in visit.page.url
    assert visit.found("right") == visit.expected(3, "dense", "gallery", first)
    visit.page.reload()
    visit.settle()
    assert visit.found("right") == visit.expected(3, "dense", "gallery", first)
    visit.page.go_back()
    visit.settle()
    assert visit.found("right") == visit.expected(3, "dense", "gallery", 9)
    visit.page.go_forward()
    visit.settle()
    assert visit.found("right") == visit.expected(3, "dense", "gallery", first)


def test_a_slide_is_one_step_back(visit):
    visit.go("?query=gallery:9")
    visit.page.locator("#slider").evaluate(
        """slider => {
            for (const value of ["1", "0"]) { slider.value = value; slider.dispatchEvent(new Event("input")); }
            slider.dispatchEvent(new Event("change"));
        }"""
    )
    visit.settle()
    assert "right=1%3Adense" in visit.page.url
    visit.page.go_back()
    visit.settle()
    assert visit.found("right") == visit.expected(3, "dense", "gallery", 9)


def test_the_keyboard_stays_in_the_list_of_neighbours(visit):
    visit.go("?query=gallery:9")
    second = visit.found("right")[1][0]
    visit.page.locator(".panel:has(#right-heading) .found button").nth(1).focus()
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_url(f"**query=gallery%3A{second}&*")
    visit.settle()
    expect(visit.page.locator(".panel:has(#right-heading) .found button").nth(1)).to_be_focused()


def test_filters_list_what_was_mended_and_broken(visit):
    from ke_metric.explorer.exploration import Listing

    visit.go()
    exploration = visit.explorer.exploration
    after = exploration.find(3, "dense")
    for change in ("mended", "broken"):
        visit.page.select_option("#change", change)
        visit.settle()
        expected = exploration.listed(after, Listing(change, 1)).tolist()
        assert visit.listed() == expected
        expect(visit.page.locator("#listed")).to_contain_text(f"{change} from generation 1 to generation 3")
    visit.page.select_option("#since", "2")
    visit.settle()
    assert visit.listed() == exploration.listed(after, Listing("broken", 2)).tolist()
    visit.page.select_option("#change", "all")
    visit.settle()
    visit.page.fill("#text", "cRoW")
    visit.page.wait_for_url("**text=cRoW*")
    visit.settle()
    assert visit.listed() == list(range(8, 16))
    visit.page.fill("#text", "")
    visit.settle()
    assert visit.listed() == list(range(40))


def test_a_class_lists_its_queries_and_shows_the_first(visit):
    visit.go()
    visit.page.select_option("#class", label="crow")
    visit.page.wait_for_url("**query=gallery%3A8*")
    visit.settle()
    assert visit.listed() == list(range(8, 16))
    expect(visit.page.locator("#query-figure strong")).to_have_text("crow")
    visit.page.get_by_role("button", name="Random query").click()
    visit.settle()
    assert re.search(r"query=gallery%3A(8|9|1[0-5])&", visit.page.url)


def test_the_map_shows_a_picture_under_the_pointer_and_a_click_makes_it_the_query(visit):
    visit.go("?query=gallery:9")
    canvas = visit.page.locator("#canvas")
    canvas.scroll_into_view_if_needed()
    visit.page.wait_for_timeout(600)
    box = canvas.bounding_box()
    place = None
    for step in range(900):
        x, y = box["width"] * (0.1 + 0.8 * (step % 30) / 30), box["height"] * (0.1 + 0.8 * (step // 30) / 30)
        visit.page.mouse.move(box["x"] + x, box["y"] + y)
        if visit.page.locator("#tip").is_visible():
            place = int(visit.page.locator("#tip img").get_attribute("src").rsplit("/", 1)[1])
            break
    assert place is not None
    label = CLASSES[visit.explorer.exploration.collection.parts["gallery"].classes[place]]
    expect(visit.page.locator("#tip span")).to_have_text(label)
    visit.page.mouse.down()
    visit.page.mouse.up()
    visit.page.wait_for_url(f"**query=gallery%3A{place}&*")
    visit.settle()
    assert visit.found("right") == visit.expected(3, "dense", "gallery", place)


def test_the_map_is_seen_closer_and_moved(visit):
    visit.go("?query=gallery:9")
    visit.page.wait_for_timeout(500)
    place = "document.getElementById('canvas').toDataURL()"
    whole = visit.page.evaluate(place)
    visit.page.get_by_role("button", name="Closer").click()
    closer = visit.page.evaluate(place)
    box = visit.page.locator("#canvas").bounding_box()
    visit.page.mouse.move(box["x"] + 100, box["y"] + 100)
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + 180, box["y"] + 150, steps=4)
    visit.page.mouse.up()
    visit.page.mouse.move(box["x"] + 2, box["y"] + 2)
    moved = visit.page.evaluate(place)
    assert len({whole, closer, moved}) == 3
    assert "query=gallery%3A9" in visit.page.url, "moving chooses nothing"
    visit.page.get_by_role("button", name="Farther").click()
    assert visit.page.evaluate(place) == whole


def test_the_map_is_walked_by_keyboard(visit):
    visit.go("?query=gallery:9")
    canvas = visit.page.locator("#canvas")
    canvas.focus()
    canvas.press("ArrowRight")
    expect(visit.page.locator("#tip img")).to_have_attribute("src", re.compile("/gallery/9$"))
    for key in ("ArrowUp", "ArrowLeft", "ArrowDown", "ArrowRight", "ArrowLeft"):
        canvas.press(key)
    place = visit.page.locator("#tip img").get_attribute("src").rsplit("/", 1)[1]
    assert visit.page.locator("#status").inner_text()
    canvas.press("Enter")
    visit.page.wait_for_url(f"**query=gallery%3A{place}&*")
    canvas.press("+")
    canvas.press("-")
    canvas.press("Escape")
    expect(visit.page.locator("#tip")).to_be_hidden()


def test_a_file_is_dropped(visit):
    visit.go()
    visit.drop({f"{HOSTILE.replace('/', '')}.png": ("image/png", encode(picture_of(500)))})
    visit.page.wait_for_url("**query=upload*")
    visit.settle()
    expect(visit.page.locator("#query-figure strong")).to_have_text("Your picture")
    assert [mark for _, mark in visit.found("right")] == ["– no class"] * 10
    assert visit.page.locator("#query-figure img").evaluate("image => image.naturalWidth") == 24
    visit.page.get_by_role("slider").press("ArrowLeft")
    visit.settle()
    assert "query=upload" in visit.page.url
    assert len(visit.found("right")) == 10
    visit.page.reload()
    visit.settle()
    expect(visit.page.locator("#query-figure strong")).to_have_text("Your picture")


def test_a_file_is_picked(visit):
    visit.go()
    file = {"name": "x.jpg", "mimeType": "image/jpeg", "buffer": encode(picture_of(501), "JPEG")}
    visit.page.set_input_files("#file", file)
    visit.page.wait_for_url("**query=upload*")
    visit.settle()
    expect(visit.page.locator("#message")).to_be_empty()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"broken.png": ("image/png", encode(picture_of(1, (80, 80)))[:-200])}, "damaged or cut off"),
        ({"other.png": ("image/png", b"GIF89a" + bytes(100))}, "the content is no PNG"),
        ({"large.png": ("image/png", large_png(10_000, 5_000))}, "more than 25,000,000 pixels"),
        ({"heavy.png": ("image/png", 10_000_001)}, "at most 10 MB are taken"),
        ({"page.html": ("text/html", b"<script>alert(1)</script>")}, "no JPEG, PNG or WebP"),
        ({f"{n}.png": ("image/png", encode(picture_of(n))) for n in (1, 2)}, "One picture at a time"),
    ],
    ids=["broken", "another kind", "50 megapixels", "10 megabytes", "a page", "two files"],
)
def test_a_file_that_cannot_be_used_is_told_and_the_explorer_lives_on(visit, files, message):
    visit.go("?query=gallery:9")
    visit.drop(files)
    expect(visit.page.get_by_role("alert").first).to_contain_text(message)
    assert visit.found("right") == visit.expected(3, "dense", "gallery", 9)
    visit.drop({"good.png": ("image/png", encode(picture_of(7)))})
    visit.page.wait_for_url("**query=upload*")
    visit.settle()
    expect(visit.page.locator("#message")).to_be_empty()


def test_hostile_names_are_text(visit):
    visit.go("?query=gallery:0")
    assert visit.page.title().startswith(HOSTILE)
    expect(visit.page.locator("#title")).to_have_text(HOSTILE)
    expect(visit.page.locator("#notes")).to_contain_text(HOSTILE)
    expect(visit.page.locator("#query-figure strong")).to_have_text(HOSTILE)
    expect(visit.page.locator("#query-figure .own-name")).to_have_text(f"gallery/0{HOSTILE}.png")
    assert visit.page.locator("#class option").all_inner_texts()[1] == HOSTILE
    assert visit.page.evaluate("document.querySelectorAll('img[src=x], script:not([src])').length") == 0


@pytest.mark.parametrize(
    "query",
    [
        "?query=gallery:99999",
        "?query=upload:77",
        "?query=<b>&right=9:dense&left=x&change=y&since=z&class=-1",
        "?text=%3Cb%3E",
    ],
)
def test_an_address_of_something_that_is_not_there_shows_what_is(visit, query):
    visit.go(query)
    assert visit.found("right") == visit.expected(3, "dense", "gallery", 0)


def test_two_tabs_do_not_disturb_each_other(visit):
    visit.go("?query=gallery:9")
    other = Visit(visit.page.context, visit.explorer).go("?query=gallery:20&right=1:slim")
    visit.page.get_by_role("slider").press("ArrowLeft")
    visit.settle()
    assert visit.found("right") == visit.expected(2, "dense", "gallery", 9)
    assert other.found("right") == other.expected(1, "slim", "gallery", 20)
    other.page.reload()
    other.settle()
    assert other.found("right") == other.expected(1, "slim", "gallery", 20)
    assert other.complaints == []


def test_play_goes_through_the_generations(visit):
    visit.go("?right=2:dense")
    visit.page.get_by_role("button", name="Play").click()
    visit.page.wait_for_url("**right=3%3Adense*")
    expect(visit.page.get_by_role("button", name="Play")).to_be_visible(timeout=5000)


def test_queries_of_another_part_are_shown_as_they_are(browser):
    with running_explorer(DrawnCollection(apart=True)) as explorer, visiting(browser, explorer) as visit:
        visit.go()
        assert visit.found("right") == visit.expected(3, "dense", "query", 0)
        visit.page.locator(".found button").first.click()
        visit.page.wait_for_url("**query=gallery*")
        visit.settle()
        position = int(re.search(r"gallery%3A(\d+)", visit.page.url)[1])
        assert visit.found("right") == visit.expected(3, "dense", "gallery", position)


def test_a_single_network_stands_alone(browser):
    collection = DrawnCollection(generations=1)
    collection.networks = collection.networks[:1]
    with running_explorer(collection) as explorer, visiting(browser, explorer) as visit:
        visit.go()
        assert visit.page.locator(".panel").count() == 1
        assert not visit.page.locator("#slide").is_visible()
        assert not visit.page.locator("#change").is_visible()


def test_a_picture_that_cannot_be_read_says_so(browser):
    with running_explorer(DrawnCollection(unreadable=0)) as explorer, browser.new_context() as context:
        visit = Visit(context, explorer).go()
        expect(visit.page.locator("#query-figure")).to_contain_text("picture cannot be read")
        assert all("404" in said for said in visit.complaints)


def test_the_token_is_asked_for_once(browser):
    settings = ServiceSettings("0.0.0.0", 0, TOKEN)
    with running_explorer(DrawnCollection(), settings) as explorer, visiting(browser, explorer) as visit:
        visit.page.goto(explorer.url)
        expect(visit.page.get_by_role("textbox", name="Token")).to_be_visible()
        assert serious_problems(visit.page) == []
        visit.page.get_by_role("textbox", name="Token").fill("wrong")
        visit.page.get_by_role("button", name="Enter").click()
        expect(visit.page.locator("#access-message")).to_have_text("This is another token.")
        assert visit.page.locator(".panel").count() == 0
        visit.page.get_by_role("textbox", name="Token").fill(TOKEN)
        visit.page.keyboard.press("Enter")
        visit.settle()
        assert TOKEN not in visit.page.url
        visit.page.reload()
        visit.settle()
        expect(visit.page.locator("#access")).to_be_hidden()


def test_the_query_is_shown_while_its_networks_are_computed(browser):
    collection = DrawnCollection()
    gate, vectors = threading.Event(), collection.vectors
    collection.vectors = lambda network: vectors(network) if gate.wait(20) else None
    with running_explorer(collection) as explorer, visiting(browser, explorer) as visit:
        visit.page.goto(f"{explorer.url}/?query=gallery:9")
        expect(visit.page.locator("#query-figure img")).to_have_attribute("src", re.compile("/gallery/9$"))
        expect(visit.page.locator("#neighbors .computing")).to_be_visible()
        gate.set()
        visit.settle()
        expect(visit.page.locator("#neighbors .computing")).to_be_hidden()
        assert visit.found("right") == visit.expected(3, "dense", "gallery", 9)


@contextmanager
def held_back(page, pattern):
    """Hold back the requests of an address; those that are held are let go when it ends."""
    held = []

    def hold(route):  # a function of ours: Playwright marks it
        held.append(route)

    page.route(pattern, hold)
    yield held
    for route in held:
        route.continue_()
    page.unroute(pattern)


def until(visit, reached):
    for _ in range(250):
        if reached():
            return
        visit.page.wait_for_timeout(20)
    raise AssertionError(visit.page.url)


def test_more_of_a_list_that_is_no_longer_shown_is_left_away(browser):
    with running_explorer(DrawnCollection(per_class=40)) as explorer, visiting(browser, explorer) as visit:
        visit.go()
        assert len(visit.listed()) == 60
        more = visit.page.get_by_role("button", name="Show more")
        late = "**/api/queries*from=60*"
        with visit.page.expect_response(late), held_back(visit.page, late) as held:
            more.click()
            until(visit, lambda: held)
            visit.page.select_option("#class", "1")
            expect(visit.page.locator("#listed")).to_have_text("40 queries")
            visit.settle()
        visit.page.wait_for_timeout(100)
        assert visit.listed() == list(range(40, 80))
        expect(more).to_be_hidden()


def test_more_is_shown_once_however_often_it_is_asked_for(browser):
    with running_explorer(DrawnCollection(per_class=40)) as explorer, visiting(browser, explorer) as visit:
        visit.go()
        more = visit.page.get_by_role("button", name="Show more")
        with held_back(visit.page, "**/api/queries*from=60*") as held:
            more.click()
            more.click()
            until(visit, lambda: held)
            visit.page.locator("#list button").nth(5).click()  # another query of the same list
            visit.page.wait_for_url("**query=gallery%3A5*")
        expect(visit.page.locator("#list button")).to_have_count(120)
        visit.page.wait_for_timeout(100)
        assert visit.listed() == list(range(120))


def test_a_click_while_a_class_is_looked_for_is_not_lost(visit):
    visit.go("?query=gallery:9")
    third = visit.found("right")[2][0]
    with held_back(visit.page, "**/api/queries*class=4*") as held:
        visit.page.select_option("#class", "4")
        until(visit, lambda: held)
        visit.page.locator(".panel:has(#right-heading) .found button").nth(2).click()
        until(visit, lambda: len(held) > 1)
    visit.settle()
    assert f"query=gallery%3A{third}&" in visit.page.url
    assert visit.listed() == list(range(32, 40))


def test_a_list_that_cannot_be_had_chooses_nothing_and_says_why(browser, explorer):
    with browser.new_context() as context:
        visit = Visit(context, explorer).go("?query=gallery:9")
        visit.page.route("**/api/queries*class=4*", lambda route: route.fulfill(status=404, json={"error": "gone"}))
        visit.page.select_option("#class", "4")
        expect(visit.page.locator("#message")).to_have_text("gone")
        visit.settle()
        assert "query=gallery%3A9" in visit.page.url


def test_more_that_cannot_be_had_says_why(browser):
    with running_explorer(DrawnCollection(per_class=40)) as explorer, browser.new_context() as context:
        visit = Visit(context, explorer).go()
        visit.page.route("**/api/queries*from=60*", lambda route: route.fulfill(status=404, json={"error": "gone"}))
        visit.page.get_by_role("button", name="Show more").click()
        expect(visit.page.locator("#message")).to_have_text("gone")
        assert all("404" in said for said in visit.complaints)


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(browser, explorer, width, scheme):
    with visiting(browser, explorer, color_scheme=scheme) as visit:
        visit.page.set_viewport_size({"width": width, "height": 800})
        visit.go("?query=gallery:9&change=broken&since=1")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        assert serious_problems(visit.page) == []
