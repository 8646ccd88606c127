"""The review page in a real browser: keys, boxes that are dragged, hostile texts, two tabs, and a server that goes.

Needs `playwright` and a Chromium; where one is missing the tests are skipped, or fail if MIMGENV_BROWSER is `required`.
"""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import PIL.Image
import pytest

from mimgenv.datasets.curated import Item, Review
from mimgenv.datasets.curated_files import read_items, read_lines, write_items
from mimgenv.types import Box, Grounding, TextAnswer

WIDTH, HIGH = 160, 120
BOX = (20.0, 30.0, 60.0, 90.0)
MARKUP = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'>\" onload=\"window.hacked=3\" '"
MARKUP += "\x1b\u202eturned\u202c"
SPOILT = f"{MARKUP} & " + "W" * 300
ITEMS = (
    Item("mug", ("a.png", "b.png", "c.png"), "Where is the red mug?", "referring", Grounding(2, "red mug", BOX)),
    Item("choice", ("a.png",), "Which?", "odd_one_out", TextAnswer("B"), ("one", "two", "three")),
    Item(
        "spoilt",
        ("a.png", "b.png"),
        SPOILT,
        "referring",
        Grounding(1, MARKUP, BOX),
        provenance={
            MARKUP: [{MARKUP: MARKUP, "right": True}, {MARKUP: "\ud800"}],
            "critic": {"reason": MARKUP},
            "long": "W" * 1_000_000,
        },
        review=Review("rejected", MARKUP, MARKUP),
    ),
    Item("count", ("b.png", "c.png"), "How many?", "counting", TextAnswer("3")),
)


# The server and the browser


@pytest.fixture(scope="module", autouse=True)
def server(lacking: Callable[[str], NoReturn]) -> None:
    """What the page is served with."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        lacking(str(error))


class Served:
    """A server in a thread; what ends it ends it as a stopped command does."""

    def __init__(self, path: Path, port: int = 0, reviewer: str = "Ann") -> None:
        import uvicorn

        from agents.curation.review import make_app
        from agents.curation.review_journal import ReviewedSet

        self.reviewed = ReviewedSet(path, reviewer)
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]
        config = uvicorn.Config(make_app(self.reviewed, self.port), log_level="warning", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self.port}/"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    for name, size in (("a.png", (WIDTH, HIGH)), ("b.png", (WIDTH, HIGH)), ("c.png", (300, 500))):
        PIL.Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(tmp_path / name)
    write_items(tmp_path / "set.jsonl", ITEMS)
    return tmp_path / "set.jsonl"


@pytest.fixture
def served(path: Path) -> Iterator[Served]:
    server = Served(path)
    yield server
    server.stop()


class Tab:
    """A page in a window of its own; it remembers what went wrong and what was asked for."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1400, "height": 900}} | options))
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("console", lambda said: self.troubles.append(said.text))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        self.page.locator("h2").wait_for()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def judge(self, key: str) -> None:
        """Presses the key of a verdict, and waits for the answer."""
        with self.page.expect_response("**/api/verdicts"), self.page.expect_response("**/api/items/*"):
            self.press(key)
        self.page.wait_for_function("() => !busy")

    def on(self, name: str) -> None:
        """Waits until an item is shown."""
        self.page.locator(".top .id").get_by_text(name, exact=True).wait_for()

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).text_content())

    def place(self, image: int) -> Callable[[float, float], tuple[float, float]]:
        """From pixels of an image to the place on the screen."""
        box = self.page.locator(f"#item .stack[data-image='{image}'] img").bounding_box()
        width, high = self.page.evaluate("(number) => shown.sizes[number - 1]", image)
        return lambda x, y: (box["x"] + x * box["width"] / width, box["y"] + y * box["height"] / high)

    def drag(self, image: int, start: tuple[float, float], end: tuple[float, float]) -> None:
        place = self.place(image)
        self.page.mouse.move(*place(*start))
        self.page.mouse.down()
        self.page.mouse.move(*place((start[0] + end[0]) / 2, (start[1] + end[1]) / 2))
        self.page.mouse.move(*place(*end))
        self.page.mouse.up()

    def numbers(self) -> tuple[float, ...]:
        """The box in the form."""
        return tuple(float(self.page.locator(f"#{name}").input_value()) for name in ("x1", "y1", "x2", "y2"))

    def close(self, *expected: str) -> None:
        """Every test ends here: no script failed, and nobody but the server was asked."""
        self.context.close()
        assert [said for said in self.troubles if not any(part in said for part in expected)] == []
        assert {url.split("/")[2].split(":")[0] for url in self.requests if not url.startswith("data:")} == {
            "127.0.0.1"
        }


@pytest.fixture
def tab(browser: Any, served: Served) -> Iterator[Tab]:
    opened = Tab(browser, served.url)
    yield opened
    opened.close()


def verdicts(path: Path) -> list[tuple[str, str]]:
    journal = path.with_name(path.name + ".review.jsonl")
    return [(row["after"]["id"], row["act"]) for _, row in read_lines(journal)]


# Looking

_CORNERS = """node => {
  const [matrix, box] = [node.getScreenCTM(), node.getBBox()];
  const at = (x, y) => new DOMPoint(x, y).matrixTransform(matrix);
  const [a, b] = [at(box.x, box.y), at(box.x + box.width, box.y + box.height)];
  return [a.x, a.y, b.x, b.y];
}"""


def assert_drawn(tab: Tab, image: int, box: Box) -> None:
    """The box lies where it should on the screen, to half a pixel, and in no other image."""
    assert tab.page.locator("#item rect.box").count() == 1
    drawn = tab.page.locator(f"#item .stack[data-image='{image}'] rect.box").evaluate(_CORNERS)
    place = tab.place(image)
    assert drawn == pytest.approx([*place(*box[:2]), *place(*box[2:])], abs=0.5)


@pytest.mark.parametrize("width", [1400, 600])
def test_the_true_box_lies_over_its_image_and_images_stand_side_by_side(
    browser: Any, served: Served, width: int
) -> None:
    tab = Tab(browser, served.url, viewport={"width": width, "height": 900})
    assert_drawn(tab, 2, BOX)
    assert tab.text("#item .stack[data-image='2'] .tag") == "red mug"
    tops = [tab.page.locator("#item img").nth(index).bounding_box()["y"] for index in range(3)]
    assert max(tops) - min(tops) < 1
    sizes = tab.page.evaluate("() => [...document.querySelectorAll('#item img')].map(i => i.naturalWidth)")
    assert sizes == [WIDTH, WIDTH, 300]
    tab.close()


def test_the_pixels_of_a_turned_photograph_are_shown_as_the_box_means_them(
    browser: Any, served: Served, path: Path
) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees when shown
    PIL.Image.fromarray(np.full((HIGH, WIDTH, 3), 90, np.uint8)).save(path.parent / "b.png", exif=exif)
    tab = Tab(browser, served.url)
    image = tab.page.locator("#item .stack[data-image='2'] img")
    assert image.evaluate("node => getComputedStyle(node).imageOrientation") == "none"
    assert image.bounding_box()["width"] > image.bounding_box()["height"]
    assert_drawn(tab, 2, BOX)
    tab.close()


def test_an_image_is_enlarged_with_its_box_by_its_number_and_by_a_click(tab: Tab) -> None:
    before = tab.page.locator("#item .stack[data-image='2'] img").bounding_box()["width"]
    tab.press("2")
    assert tab.page.locator("#zoom img").bounding_box()["width"] > 2 * before
    assert tab.page.locator("#zoom rect.box").count() == 1
    tab.press("a")  # no verdict on what cannot be seen
    tab.press("Escape")
    assert not tab.page.locator("#zoom").is_visible()
    tab.page.locator("#item .stack[data-image='1']").click()
    assert tab.page.locator("#zoom").is_visible()
    assert tab.page.evaluate("() => page.rows.filter(row => row.verdict).length") == 1


def test_what_comes_from_a_model_is_shown_and_never_run(tab: Tab) -> None:
    tab.page.locator(".row[data-index='2']").click()
    tab.on("spoilt")
    shown = SPOILT.replace("\x1b", "‹U+001B›").replace("\u202e", "‹U+202E›").replace("\u202c", "‹U+202C›")
    assert tab.text("h2") == shown
    assert "‹U+D800›" in tab.text(".side") and "<script>window.hacked=1" in tab.text(".side")
    assert tab.text("#item .tag").startswith("</script><script>window.hacked=1")
    assert len(tab.text("dl")) < 50_000
    tab.press("e")
    assert tab.page.locator("#label").input_value() == MARKUP
    assert tab.page.locator("#question").input_value() == SPOILT
    assert tab.page.evaluate("() => window.hacked") is None
    assert tab.page.locator("script").count() == 1
    assert tab.page.locator("#item img").count() == 2
    assert tab.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_the_policy_stops_a_script_that_got_into_the_page_all_the_same(browser: Any, served: Served) -> None:
    tab = Tab(browser, served.url)
    tab.page.evaluate("""() => {
      const script = document.createElement("script");
      script.textContent = "window.hacked = 1";
      document.body.append(script);
      document.body.insertAdjacentHTML("beforeend", "<img src=/none onerror='window.hacked = 2'>");
    }""")
    tab.page.wait_for_timeout(300)
    assert tab.page.evaluate("() => window.hacked") is None
    tab.close("Content Security Policy", "404")


def test_the_light_and_the_dark_page_differ(browser: Any, served: Served) -> None:
    colours = []
    for scheme in ("light", "dark"):
        tab = Tab(browser, served.url, color_scheme=scheme)
        colours.append(tab.page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
        tab.close()
    assert colours == ["rgb(246, 245, 242)", "rgb(20, 22, 25)"]


# Judging


def test_a_set_is_reviewed_with_the_keyboard(tab: Tab, served: Served, path: Path) -> None:
    assert tab.text("#count") == "1 of 4 done · 3 left · 1 rejected"
    tab.judge("a")
    tab.on("choice")  # the next that is left
    tab.judge("r")
    tab.on("count")  # over the one that had its verdict
    assert tab.text("#count") == "3 of 4 done · 1 left · 2 rejected"
    tab.press("k")
    tab.on("spoilt")
    tab.press("ArrowLeft")
    tab.on("choice")
    tab.press("j")
    tab.on("spoilt")
    tab.press("n")
    tab.on("count")
    tab.judge("u")
    tab.on("choice")
    assert tab.text(".badge:first-child") == "to do"
    tab.press("w")
    tab.page.keyboard.type("are good")
    tab.press("Enter")
    tab.judge("a")
    tab.on("count")
    assert verdicts(path) == [("mug", "accepted"), ("choice", "rejected"), ("choice", "undone"), ("choice", "accepted")]
    assert served.reviewed.items["choice"].review == Review("accepted", "Ann", "are good")
    assert [tab.page.locator(".row .mark").nth(row).text_content() for row in range(4)] == ["✓", "✓", "✕", "·"]


def test_buttons_do_what_keys_do_and_the_last_item_stays(tab: Tab) -> None:
    for button in ("#accept", "#reject", "#accept"):
        with tab.page.expect_response("**/api/verdicts"):
            tab.page.locator(button).click()
        tab.page.wait_for_function("() => !busy")
    tab.on("count")
    assert tab.text("#count") == "4 of 4 done · 0 left · 2 rejected"
    with tab.page.expect_response("**/api/verdicts"):
        tab.page.locator("#undo").click()
    tab.page.locator(".badge").get_by_text("to do").wait_for()


def test_keys_pressed_while_a_verdict_is_under_way_or_held_down_are_no_more_verdicts(tab: Tab, path: Path) -> None:
    press = "(key, repeat) => document.body.dispatchEvent(new KeyboardEvent('keydown', {key, repeat, bubbles: true}))"
    tab.page.evaluate(f"() => {{ const press = {press}; press('a', false); press('a', false); press('r', false); }}")
    tab.on("choice")
    tab.page.evaluate(f"() => ({press})('a', true)")
    tab.page.wait_for_timeout(200)
    assert verdicts(path) == [("mug", "accepted")]


def test_filters_list_the_items_of_a_kind(tab: Tab) -> None:
    tab.page.locator("#filters button", has_text="Rejected").click()
    assert tab.page.locator(".row").count() == 1
    tab.page.locator("#filters button", has_text="Left").click()
    assert [tab.page.locator(".row .sub").nth(row).text_content().split(" ")[0] for row in range(3)] == [
        "referring",
        "odd_one_out",
        "counting",
    ]
    tab.press("j", "j")
    tab.page.locator("#filters button", has_text="Edited").click()
    assert tab.text("#list") == "There is none."


def test_the_keys_are_shown_on_the_page_and_all_of_them_on_asking(tab: Tab) -> None:
    assert "a accept" in tab.text("#legend") and "? help" in tab.text("#legend")
    tab.press("?")
    assert tab.page.locator("#help").is_visible()
    assert "undo the last verdict" in tab.text("#help")
    tab.press("Escape")
    assert not tab.page.locator("#help").is_visible()


def test_a_reload_stays_on_the_item_and_a_new_visit_starts_with_the_first_that_is_left(
    browser: Any, tab: Tab, served: Served
) -> None:
    tab.judge("a")
    tab.press("k")
    tab.on("mug")
    tab.page.reload()
    tab.on("mug")
    fresh = Tab(browser, served.url)
    fresh.on("choice")
    fresh.close()


# Editing


def edited_box(tab: Tab, served: Served) -> Grounding:
    """Saves the form, and returns the truth that was saved."""
    with tab.page.expect_response("**/api/verdicts"):
        tab.press("Control+Enter")
    tab.on("choice")
    truth = served.reviewed.items["mug"].truth
    assert isinstance(truth, Grounding)
    assert served.reviewed.items["mug"].review == Review("edited", "Ann")
    return truth


DRAGS: tuple[tuple[tuple[int, int], tuple[int, int], Box], ...] = (
    ((60, 90), (100, 110), (20, 30, 100, 110)),  # a corner
    ((5, 70), (5, 70), BOX),  # nothing
    ((20, 60), (5, 70), (5, 30, 60, 90)),  # an edge
    ((40, 60), (50, 70), (30, 40, 70, 100)),  # the whole
    ((40, 60), (200, -200), (120, 0, 160, 60)),  # the whole, against the border
    ((20, 30), (100, 100), (60, 90, 100, 100)),  # a corner past its opposite
    ((100, 100), (130, 40), (100, 40, 130, 100)),  # a new one
    ((100, 100), (400, 400), (100, 100, 160, 120)),  # a new one, out over the border
)


def test_a_box_is_edited_by_dragging(tab: Tab, served: Served) -> None:
    tab.press("e")
    for start, end, box in DRAGS:
        tab.page.get_by_text("start over").click()
        tab.drag(2, start, end)
        assert tab.numbers() == pytest.approx(box, abs=1), (start, end)
        assert_drawn(tab, 2, tab.numbers())  # type: ignore[arg-type]
    numbers = tab.numbers()
    assert edited_box(tab, served) == Grounding(2, "red mug", numbers)  # type: ignore[arg-type]


def test_a_box_drawn_in_another_image_is_in_that_image(tab: Tab, served: Served) -> None:
    tab.press("e")
    tab.drag(3, (30, 50), (150, 400))
    assert tab.page.locator("#image").input_value() == "3"
    assert_drawn(tab, 3, tab.numbers())  # type: ignore[arg-type]
    truth = edited_box(tab, served)
    assert truth.image == 3
    assert truth.box == pytest.approx((30, 50, 150, 400), abs=1.5)


def test_a_click_on_another_image_leaves_the_box_as_it_was(tab: Tab) -> None:
    tab.press("e")
    tab.drag(1, (100, 100), (100, 100))
    assert tab.numbers() == BOX
    assert tab.page.locator("#image").input_value() == "2"


def test_question_label_and_numbers_are_edited_by_typing(tab: Tab, served: Served) -> None:
    tab.press("e")
    tab.page.locator("#question").fill("Where is the <b>cup</b>?")
    tab.page.locator("#label").fill('a "cup"')
    tab.page.locator("#image").select_option("1")
    tab.page.locator("#x2").fill("99.5")
    assert_drawn(tab, 1, (20.0, 30.0, 99.5, 90.0))
    assert edited_box(tab, served) == Grounding(1, 'a "cup"', (20.0, 30.0, 99.5, 90.0))
    assert served.reviewed.items["mug"].question == "Where is the <b>cup</b>?"


def test_options_are_edited_and_the_right_one_stays_the_right_one(tab: Tab, served: Served) -> None:
    tab.press("j")
    tab.on("choice")
    tab.press("e")
    tab.page.get_by_label("Remove option A").click()
    tab.page.get_by_text("add an option").click()
    tab.page.get_by_label("Option C", exact=True).fill("four")
    with tab.page.expect_response("**/api/verdicts"):
        tab.page.locator("#save").click()
    tab.on("count")
    item = served.reviewed.items["choice"]
    assert (item.options, item.truth) == (("two", "three", "four"), TextAnswer("A"))


def test_an_answer_is_edited_and_enter_saves(tab: Tab, served: Served) -> None:
    tab.page.locator(".row[data-index='3']").click()
    tab.on("count")
    tab.press("e")
    tab.page.locator("#answer").fill("4")
    with tab.page.expect_response("**/api/verdicts"):
        tab.press("Enter")
    tab.on("mug")
    assert served.reviewed.items["count"].truth == TextAnswer("4")


def test_an_edit_that_breaks_a_rule_is_explained_and_nothing_of_it_is_lost(
    browser: Any, served: Served, path: Path
) -> None:
    tab = Tab(browser, served.url)
    tab.press("e")
    tab.page.locator("#question").fill("Where now?")
    tab.page.locator("#x1").fill("70")
    tab.press("Control+Enter")
    tab.page.locator(".form .message").wait_for()
    assert "bbox_2d needs finite 0 <= x1 < x2" in tab.text(".form .message")
    assert tab.page.locator(".field.wrong legend").text_content() == "Box in pixels"
    assert tab.page.locator("#question").input_value() == "Where now?"
    assert tab.numbers() == (70, 30, 60, 90)
    assert verdicts(path) == []
    tab.press("Escape")
    tab.page.reload()
    tab.page.get_by_text("an unsaved edit is kept").click()
    assert tab.page.locator("#question").input_value() == "Where now?"
    tab.page.locator("#x1").fill("")
    tab.press("Control+Enter")
    tab.page.get_by_text("bbox_2d must be four numbers").wait_for()
    tab.page.locator("#x1").fill("10")
    assert edited_box(tab, served).box == (10, 30, 60, 90)
    tab.press("k")
    tab.on("mug")
    assert tab.page.get_by_text("an unsaved edit is kept").count() == 0
    tab.close("422")


def test_starting_over_brings_the_item_back(tab: Tab) -> None:
    tab.press("e")
    tab.page.locator("#label").fill("cup")
    tab.page.get_by_text("start over").click()
    assert tab.page.locator("#label").input_value() == "red mug"


def test_keys_are_text_while_editing(tab: Tab, path: Path) -> None:
    tab.press("e")
    tab.page.locator("#label").fill("")
    tab.page.locator("#label").press_sequentially("rajun? ")
    assert tab.page.locator("#label").input_value() == "rajun? "
    tab.press("Escape", "Escape")
    assert verdicts(path) == []


# Two tabs, and a server that goes


def test_a_second_tab_that_is_behind_is_told_and_nothing_is_overwritten(
    browser: Any, served: Served, path: Path
) -> None:
    first, second = Tab(browser, served.url), Tab(browser, served.url)
    first.judge("r")
    second.press("a")
    second.page.get_by_text("changed in another tab").wait_for()
    second.page.wait_for_function("() => !busy")
    assert "It is now rejected" in second.text("#trouble")
    assert second.text(".badge:first-child") == "rejected"
    assert verdicts(path) == [("mug", "rejected")]
    second.judge("a")  # now that it has been seen
    assert verdicts(path) == [("mug", "rejected"), ("mug", "accepted")]
    first.close()
    second.close("409")


def test_an_edit_in_a_tab_that_is_behind_is_kept_and_can_be_saved_again(
    browser: Any, served: Served, path: Path
) -> None:
    first, second = Tab(browser, served.url), Tab(browser, served.url)
    second.press("e")
    second.page.locator("#label").fill("cup")
    first.judge("r")
    second.press("Control+Enter")
    second.page.get_by_text("your edit is kept").wait_for()
    second.page.wait_for_function("() => !busy")
    assert edited_box(second, served).label == "cup"
    assert verdicts(path) == [("mug", "rejected"), ("mug", "edited")]
    first.close()
    second.close("409")


def test_a_server_that_has_gone_is_told_and_the_verdict_is_given_when_it_is_back(browser: Any, path: Path) -> None:
    server = Served(path)
    tab = Tab(browser, server.url)
    tab.judge("a")
    server.stop()
    tab.press("r")
    tab.page.get_by_text("the server does not answer").wait_for()
    tab.on("choice")
    server = Served(path, server.port)
    tab.page.get_by_role("button", name="Try again").click()
    tab.on("count")
    assert tab.text("#count") == "3 of 4 done · 1 left · 2 rejected"
    assert not tab.page.locator("#trouble").is_visible()
    server.stop()
    assert verdicts(path) == [("mug", "accepted"), ("choice", "rejected")]
    assert read_items(path)[0] == dataclasses.replace(ITEMS[0], review=Review("accepted", "Ann"))
    tab.close("ERR_CONNECTION")
