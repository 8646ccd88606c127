"""The page in a real browser: clicked, typed into, looked at in the dark, on a narrow window and without a network.

Needs `playwright` and a Chromium; where one is missing the tests are skipped, or fail if MIMGENV_BROWSER is `required`.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image as PillowImage

from mimgenv.geometry import View
from mimgenv.preview import OpenEpisode, ShownEpisode, view_image
from mimgenv.records import EpisodeRecord, EpisodeTurn, ViewRecord
from mimgenv.types import Answer, Box, Grounding, Image, ObjectAnnotation, Task, TextAnswer
from mimgenv.viewer import write_page

# What is on the page

SIDE, HIGH = 160, 120
TRUTH = Grounding(2, "red mug", (20.0, 30.0, 60.0, 90.0))
NEAR = Grounding(2, "red mug", (24.0, 30.0, 60.0, 90.0))
MARKUP = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'><b>bold</b>\x1b\u202e\ud800"
MARKUP += "W" * 200  # a word that no window is wide enough for
FIRST = "Rules.\n" * 8 + "Image-1: <image> Image-2: <image> Where is it?"
CALL = '{"name": "zoom", "arguments": {"image": 2, "bbox_2d": [10, 20, 50, 60]}}'
ZOOM = f"<think>Small.</think><tool_call>{CALL}</tool_call>"
ANSWER = '<think>There.</think><answer>{"image": 2, "label": "red mug"}</answer>'
ZOOMED = ViewRecord(2, (10.0, 20.0, 50.0, 60.0), 112, 112)
OBJECTS = (
    (ObjectAnnotation("blue cup", (100.0, 0.0, 150.0, 40.0)),),
    (ObjectAnnotation("red mug", TRUTH.box, 3), ObjectAnnotation("large dinner plate", (125.0, 60.0, 158.0, 118.0), 4)),
)


def flat(shade: int) -> Image:
    return np.full((HIGH, SIDE, 3), shade, np.uint8)


ORIGINALS = (flat(40), flat(70))
TASK = Task("made:referring:7", "referring", ORIGINALS, "Where is the red mug?", TRUTH, "It alone is red.", OBJECTS)
WHOLE = tuple(ViewRecord(number, (0.0, 0.0, float(SIDE), float(HIGH)), SIDE, HIGH) for number in (1, 2))


def played(section: str = "before", **fields: Any) -> ShownEpisode:
    """A right answer after a slip and a zoom, but for `fields`."""
    record = EpisodeRecord(
        task_id=TASK.task_id,
        task_type="referring",
        agent="oracle",
        question=TASK.question,
        turns=(
            EpisodeTurn(FIRST, "no tags", "bad_turn", 2),
            EpisodeTurn("Error (bad_turn)", ZOOM, None, 0),
            EpisodeTurn("Image-3: <image>", ANSWER, None, 1),
        ),
        reward=0.9,
        reward_parts={"iou": 0.9, "format": 0.0},
        stop="answered",
        success=True,
        tool_calls=("zoom",),
        truth=TRUTH,
        prediction=NEAR,
        views=(*WHOLE, ZOOMED),
    )
    record = dataclasses.replace(record, **fields)
    return ShownEpisode(record, tuple(view_image(ORIGINALS, view) for view in record.views), section, TASK)


def brief(section: str, reward: float, stop: str, prediction: Answer | None, **fields: Any) -> ShownEpisode:
    """An episode of one turn."""
    turns = (EpisodeTurn("<image><image>", fields.pop("action", ANSWER), None, 2),)
    fields = {"success": False, "turns": turns, "views": WHOLE, "tool_calls": ()} | fields
    return played(section, reward=reward, stop=stop, prediction=prediction, **fields)


VIEWS = tuple(View(pixels, number, (0.0, 0.0, float(SIDE), float(HIGH))) for number, pixels in enumerate(ORIGINALS, 1))
EPISODES = (
    played(),
    brief("before", 0.25, "answered", Grounding(1, "blue cup", (100.0, 0.0, 150.0, 40.0))),
    brief("before", 0.0, "void", None, action="I give up, said the walrus."),
    brief("after", 0.0, "turn_limit", None),
    brief("after", 1.5, "answered", TextAnswer("4"), truth=TextAnswer("4"), success=True, task_type="counting"),
    brief("after", -0.5, "answered", Grounding(1, MARKUP, (1.0, 2.0, 9.0, 9.0)), question=MARKUP, action=MARKUP),
    OpenEpisode(TASK, VIEWS, FIRST, section="tasks", revealed=True),
    OpenEpisode(TASK, VIEWS, FIRST, (), "under way"),
)


# The browser


def test_a_required_browser_that_is_missing_fails_and_is_not_skipped(
    lacking: Callable[[str], NoReturn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIMGENV_BROWSER", "required")
    with pytest.raises(pytest.fail.Exception, match="no chromium"):
        lacking("no chromium")
    monkeypatch.delenv("MIMGENV_BROWSER")
    with pytest.raises(pytest.skip.Exception, match="no chromium"):
        lacking("no chromium")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(path, EPISODES, f"Title {MARKUP}")
    return path


class Tab:
    """A page in a window of its own, without a network; it remembers what went wrong and what was asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1300, "height": 900}} | options), offline=True)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.troubles: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("console", lambda said: self.troubles.append(said.text))
        self.page.goto(path.as_uri())

    def close(self) -> None:
        """Every test ends here: nothing was said on the console, and nothing was asked of anybody."""
        asked = [url for url in self.requests if not url.startswith(("data:", "file:"))]
        files = [url for url in self.requests if url.startswith("file:")]
        self.context.close()
        assert self.troubles == []
        assert asked == []
        assert len(set(files)) == 1

    def listed(self) -> list[int]:
        """The numbers of the episodes in the list, from 1."""
        return [int(text[1:].split(" ")[0]) for text in self.page.locator("#list .sub").all_text_contents()]

    def shown(self) -> int:
        """The number of the episode that is shown."""
        return int(self.page.locator(".row[aria-current=true]").get_attribute("data-number")) + 1

    def open(self, number: int) -> None:
        self.page.locator(f".row[data-number='{number - 1}']").click()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)


@pytest.fixture
def tab(browser: Any, file: Path) -> Iterator[Tab]:
    opened = Tab(browser, file)
    yield opened
    opened.close()


# Boxes

_CORNERS = """node => {
  const [matrix, box] = [node.getScreenCTM(), node.getBBox()];
  const at = (x, y) => new DOMPoint(x, y).matrixTransform(matrix);
  const [a, b] = [at(box.x, box.y), at(box.x + box.width, box.y + box.height)];
  return [a.x, a.y, b.x, b.y];
}"""


def assert_drawn_at(stack: Any, kind: str, box: Box, size: tuple[int, int]) -> None:
    """The box of an image of `size` lies where it should on the screen, to half a pixel."""
    image = stack.locator("img").bounding_box()
    across, down = image["width"] / size[0], image["height"] / size[1]
    wanted = [image["x"] + box[0] * across, image["y"] + box[1] * down]
    wanted += [image["x"] + box[2] * across, image["y"] + box[3] * down]
    drawn = stack.locator(f"rect.{kind}").evaluate(_CORNERS)
    assert drawn == pytest.approx(wanted, abs=0.5)


@pytest.mark.parametrize("width", [1300, 400])
def test_boxes_lie_over_the_images_where_they_should(browser: Any, file: Path, width: int) -> None:
    tab = Tab(browser, file, viewport={"width": width, "height": 900})
    stacks = tab.page.locator(".gallery .stack")
    assert_drawn_at(stacks.nth(1), "truth", TRUTH.box, (SIDE, HIGH))
    assert_drawn_at(stacks.nth(1), "prediction", NEAR.box, (SIDE, HIGH))
    enlarged = 112 / 40
    seen = tuple((side - start) * enlarged for side, start in zip(TRUTH.box, (10, 20, 10, 20), strict=True))
    assert_drawn_at(stacks.nth(2), "truth", seen, (112, 112))  # type: ignore[arg-type]
    assert stacks.nth(0).locator("rect.truth, rect.prediction").count() == 0
    tab.press("2")
    assert_drawn_at(tab.page.locator("#zoom .stack"), "truth", TRUTH.box, (SIDE, HIGH))
    tab.close()


def test_the_pixels_of_a_box_are_where_its_edges_are(tab: Tab) -> None:
    tab.press("p")
    stack = tab.page.locator(".gallery .stack").nth(1)
    seen = np.array(PillowImage.open(io.BytesIO(stack.screenshot())).convert("RGB")).astype(int)
    scale = seen.shape[1] / SIDE
    rows, columns = np.nonzero((seen[..., 1] > 150) & (seen[..., 0] < 90))
    outline = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    stroke = 1.5  # half of it lies outside the edge
    wanted = [edge * scale + side * stroke for edge, side in zip(TRUTH.box, (-1, -1, 1, 1), strict=True)]
    assert outline == pytest.approx(wanted, abs=1.5)


@pytest.mark.parametrize(("kind", "key"), [("truth", "t"), ("prediction", "p")])
def test_a_toggle_hides_and_shows_its_boxes_alone(tab: Tab, kind: str, key: str) -> None:
    def seen() -> dict[str, bool]:
        stack = tab.page.locator(".gallery .stack").nth(1)
        return {name: stack.locator(f"rect.{name}").is_visible() for name in ("truth", "prediction")}

    both = {"truth": True, "prediction": True}
    assert seen() == both
    tab.page.locator(f"#show-{kind}").click()
    assert seen() == both | {kind: False}
    tab.open(2)
    tab.open(1)
    assert seen() == both | {kind: False}
    assert not tab.page.locator(f"#show-{kind}").is_checked()
    tab.press(key)
    assert seen() == both
    assert tab.page.locator(f"#show-{kind}").is_checked()


def test_all_objects_are_drawn_with_their_labels_when_asked_for(tab: Tab) -> None:
    tab.open(7)
    tags = tab.page.locator(".gallery .tag")
    assert tags.all_text_contents() == ["blue cup", "red mug ·3", "large dinner plate ·4"]
    assert not any(tag.is_visible() for tag in tags.all())
    tab.page.locator("#show-objects").click()
    assert all(tag.is_visible() for tag in tags.all())
    first, second = tab.page.locator(".gallery .stack").all()
    assert_drawn_at(first, "objects", OBJECTS[0][0].box, (SIDE, HIGH))
    for stack in (first, second):
        image = stack.locator("img").bounding_box()
        for tag in stack.locator(".tag").all():
            place = tag.bounding_box()
            assert place["x"] >= image["x"] - 1
            assert place["x"] + place["width"] <= image["x"] + image["width"] + 1
            assert image["y"] - 1 <= place["y"] <= image["y"] + image["height"]
    tab.press("o")
    assert not any(tag.is_visible() for tag in tags.all())


# Enlarging


def enlarged(tab: Tab) -> str | None:
    """The image that is enlarged, if one is."""
    zoom = tab.page.locator("#zoom")
    return zoom.locator("figcaption b").text_content() if zoom.is_visible() else None


def test_a_click_enlarges_an_image_and_escape_closes_it(tab: Tab) -> None:
    figure = tab.page.locator(".gallery figure").nth(1)
    before = figure.locator("img").bounding_box()["width"]
    figure.locator(".frame").click()
    assert enlarged(tab) == "Image-2"
    assert tab.page.locator("#zoom img").bounding_box()["width"] > 2 * before
    tab.press("Escape")
    assert enlarged(tab) is None
    assert tab.shown() == 1


def test_an_enlarged_image_closes_on_a_click_on_it_or_beside_it(tab: Tab) -> None:
    tab.page.locator(".strip button").nth(1).click()
    assert enlarged(tab) == "Image-2"
    tab.page.locator("#zoom .frame").click()
    assert enlarged(tab) is None
    tab.press("3")
    assert enlarged(tab) == "Image-3"
    tab.page.mouse.click(5, 5)
    assert enlarged(tab) is None


def test_arrows_move_over_the_images_while_one_is_enlarged(tab: Tab) -> None:
    tab.press("2")
    tab.press("ArrowRight")
    assert enlarged(tab) == "Image-3"
    tab.press("ArrowRight")
    assert enlarged(tab) == "Image-3"
    tab.press("ArrowLeft", "ArrowLeft")
    assert enlarged(tab) == "Image-1"
    tab.press("t")
    tab.press("ArrowRight")
    assert not tab.page.locator("#zoom rect.truth").is_visible()
    assert tab.shown() == 1


def test_a_digit_without_an_image_does_nothing(tab: Tab) -> None:
    tab.press("9")
    assert enlarged(tab) is None


# Moving


def test_arrows_and_buttons_move_through_the_list_and_stop_at_its_ends(tab: Tab) -> None:
    assert tab.page.locator("#previous").is_disabled()
    tab.press("ArrowLeft")
    assert tab.shown() == 1
    tab.press("ArrowRight", "ArrowRight")
    assert (tab.shown(), tab.page.locator("#place").text_content()) == (3, "3 of 8")
    tab.page.locator("#previous").click()
    assert tab.shown() == 2
    tab.page.locator("#next").click(click_count=2)
    assert tab.shown() == 4
    tab.press(*["ArrowRight"] * 9)
    assert tab.shown() == 8
    assert tab.page.locator("#next").is_disabled()


def test_the_address_names_the_episode(browser: Any, file: Path, tab: Tab) -> None:
    tab.open(4)
    assert tab.page.url.endswith("#4")
    linked = Tab(browser, file)
    linked.page.goto(tab.page.url)
    assert linked.shown() == 4
    linked.close()


def test_arrows_move_among_the_episodes_that_pass_the_filters(tab: Tab) -> None:
    tab.page.locator("#outcome").select_option("no answer")
    assert (tab.shown(), tab.page.locator("#place").text_content()) == (3, "1 of 2")
    tab.page.locator("#main").click(position={"x": 5, "y": 300})
    tab.press("ArrowRight", "ArrowRight")
    assert tab.shown() == 4


# Filters


def test_the_outcome_filter_leaves_exactly_its_episodes(tab: Tab) -> None:
    wanted = {
        "right": [1, 5],
        "wrong": [2, 6],
        "no answer": [3, 4],
        "not played": [7, 8],
        "stop:answered": [1, 2, 5, 6],
        "stop:void": [3],
        "stop:turn_limit": [4],
        "": [1, 2, 3, 4, 5, 6, 7, 8],
    }
    for outcome, numbers in wanted.items():
        tab.page.locator("#outcome").select_option(outcome)
        assert tab.listed() == numbers, outcome


def test_every_outcome_and_stop_that_occurs_can_be_chosen_and_says_how_often(tab: Tab) -> None:
    options = tab.page.locator("#outcome option").all_text_contents()
    outcomes = ["no answer (2)", "not played (2)", "right (2)", "wrong (2)"]
    assert options == ["any", *outcomes, "answered (4)", "turn limit (1)", "void (1)"]
    assert tab.page.locator("#type option").all_text_contents() == ["all", "counting (1)", "referring (7)"]


def test_the_type_and_section_filters_leave_exactly_their_episodes(tab: Tab) -> None:
    tab.page.locator("#type").select_option("counting")
    assert tab.listed() == [5]
    tab.page.locator("#type").select_option("")
    tab.page.locator("#sections button", has_text="after").click()
    assert tab.listed() == [4, 5, 6]
    tab.page.locator("#outcome").select_option("right")
    assert tab.listed() == [5]
    tab.page.locator("#sections button", has_text="all").click()
    assert tab.listed() == [1, 5]


def test_the_reward_filter_has_two_ends(tab: Tab) -> None:
    for least, most, numbers, text in (
        ("0.25", "1.5", [1, 2, 5], "0.25 to 1.50"),
        ("-0.5", "0", [3, 4, 6], "−0.50 to 0.00"),
        ("0", "0.25", [2, 3, 4], "0.00 to 0.25"),
        ("-0.5", "1.5", [1, 2, 3, 4, 5, 6, 7, 8], "any"),
    ):
        tab.page.locator("#least").fill("-0.5")
        tab.page.locator("#most").fill(most)
        tab.page.locator("#least").fill(least)
        assert (tab.listed(), tab.page.locator("#reward-value").text_content()) == (numbers, text)


def test_the_ends_of_the_reward_filter_do_not_pass_each_other(tab: Tab) -> None:
    tab.page.locator("#most").fill("0.25")
    tab.page.locator("#least").fill("1")
    assert tab.page.locator("#reward-value").text_content() == "0.25 to 0.25"
    assert tab.listed() == [2]


def test_the_search_finds_what_was_asked_and_said_by_the_agent(tab: Tab) -> None:
    wanted = {
        "walrus": [3],
        "WALRUS  up": [3],
        "blue": [2],
        "zoom": [1],
        "bad_turn": [1, 3, 6],
        "rules": [],
        "alone": [1, 2, 3, 4, 5, 6, 7],
        "onerror='window": [6],
        "walrus mug 4": [],
    }
    for text, numbers in wanted.items():
        tab.page.locator("#search").fill(text)
        assert tab.listed() == numbers, text
    assert tab.page.locator("#list").text_content() == "No episode passes these filters."
    assert tab.page.locator("#episode").text_content() == ""


def test_keys_typed_into_the_search_do_nothing_else_and_escape_leaves_it(tab: Tab) -> None:
    tab.press("/")
    tab.page.keyboard.type("t o/3d")
    assert tab.page.locator("#search").input_value() == "t o/3d"
    assert enlarged(tab) is None
    tab.press("Escape")
    assert (tab.page.locator("#search").input_value(), tab.listed()) == ("", [1, 2, 3, 4, 5, 6, 7, 8])
    tab.press("ArrowDown")
    assert tab.shown() == 2
    tab.press("Escape", "t")
    assert tab.page.locator("#search").input_value() == ""
    assert not tab.page.locator("#show-truth").is_checked()


def test_filters_join_and_are_cleared_together(tab: Tab) -> None:
    assert not tab.page.locator("#clear").is_visible()
    tab.page.locator("#outcome").select_option("stop:answered")
    tab.page.locator("#least").fill("0")
    tab.page.locator("#search").fill("mug")
    assert tab.listed() == [1, 2, 5]
    assert tab.page.locator("#found").text_content() == "3 of 8 episodes"
    tab.page.locator("#clear").click()
    assert tab.listed() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert tab.page.locator("#search").input_value() == tab.page.locator("#outcome").input_value() == ""
    assert tab.page.locator("#reward-value").text_content() == "any"


def test_the_table_counts_and_averages_the_episodes_that_were_played(tab: Tab) -> None:
    rows = [row.locator("td").all_text_contents() for row in tab.page.locator("#sections tr").all()]
    assert rows == [
        ["all", "8", "33 %", "0.36"],
        ["before", "3", "33 %", "0.38"],
        ["after", "3", "33 %", "0.33"],
        ["tasks", "1", "–", "–"],
        ["under way", "1", "–", "–"],
    ]


# What is said of an episode


def test_the_timeline_names_the_tools_and_a_click_leads_to_the_turn(tab: Tab) -> None:
    chips = tab.page.locator(".acts button")
    assert chips.all_text_contents() == ["1bad_turn", "2zoom→ Image-3", "3answer", "answered"]
    turn = tab.page.locator("#turn-3")
    tab.page.set_viewport_size({"width": 1300, "height": 500})
    assert turn.bounding_box()["y"] > 500
    chips.nth(2).click()
    assert 0 <= turn.bounding_box()["y"] < 500


def test_the_caption_says_which_tool_made_an_image(tab: Tab) -> None:
    captions = tab.page.locator(".gallery .origin").all_text_contents()
    assert captions == ["160×120", "160×120", "zoom of Image-2, 2.8×"]


def test_pointing_at_a_part_marks_it_in_the_whole(tab: Tab) -> None:
    figures = tab.page.locator(".gallery figure")
    figures.nth(2).hover()
    assert_drawn_at(figures.nth(1).locator(".stack"), "cut", ZOOMED.region, (SIDE, HIGH))
    figures.nth(0).hover()
    assert figures.nth(1).locator("rect.cut").count() == 0


def test_the_raw_turn_is_shown_when_asked_for(tab: Tab) -> None:
    assert tab.page.locator("pre").count() == 0
    tab.page.locator("#turn-2 summary").click()
    assert tab.page.locator("#turn-2 pre").text_content() == ZOOM


def test_reward_parts_and_answers_are_shown(tab: Tab) -> None:
    facts = tab.page.locator(".facts").inner_text()
    for text in (
        "0.900",
        "iou",
        "format",
        "0.000",
        "It alone is red.",
        "Image-2 · 24, 30, 60, 90",
        "overlap (IoU) 0.900",
    ):
        assert text in facts
    tab.open(2)
    assert "another image: 1, not 2" in tab.page.locator(".facts").inner_text()
    tab.open(3)
    assert "no answer that could be read" in tab.page.locator(".facts").inner_text()


def test_a_task_that_nobody_played_shows_question_and_truth_but_no_result(tab: Tab) -> None:
    tab.open(7)
    text = tab.page.locator("#episode").inner_text()
    assert "Rules." in text
    assert "Image-2 · 20, 30, 60, 90" in text
    assert "predicted" not in text
    assert tab.page.locator(".gallery rect.truth").count() == 1
    assert tab.page.locator(".total").count() == 0


def test_an_episode_under_way_shows_no_truth(tab: Tab) -> None:
    tab.open(8)
    assert tab.page.locator(".gallery rect").count() == 0
    assert "It alone is red." not in tab.page.locator("#episode").inner_text()
    assert tab.page.locator(".facts").inner_text() == ""


# Safe, dark, narrow, large


def test_hostile_text_is_shown_as_text(tab: Tab) -> None:
    tab.open(6)
    tab.page.locator("#turn-1 summary").click()
    told = MARKUP.replace("\x1b", "␛").replace("\u202e", "⟨202e⟩").replace("\ud800", "⟨d800⟩")
    for place in ("h2", "#turn-1 pre", ".prediction-answer .what"):
        assert tab.page.locator(f"#episode {place}").first.text_content() == told
    assert tab.page.locator("#title").text_content() == f"Title {told}"
    assert tab.page.evaluate("window.hacked") is None
    assert tab.page.locator("b", has_text="bold").count() == 0
    assert tab.page.locator("script").count() == 2


def test_the_policy_stops_a_script_that_gets_in_all_the_same(browser: Any, file: Path) -> None:
    tab = Tab(browser, file)
    tab.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked = 1'}))"
    )
    assert tab.page.evaluate("window.hacked") is None
    assert "Content Security Policy" in tab.troubles[0]
    tab.troubles.clear()
    tab.close()


def colours(tab: Tab) -> list[float]:
    """How light ground and text are, from 0 to 255."""
    texts = tab.page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    return [float(np.mean([int(part) for part in text[4:-1].split(",")])) for text in texts]


def test_the_page_is_light_or_dark_as_the_reader_likes(browser: Any, file: Path) -> None:
    tab = Tab(browser, file, color_scheme="light")
    ground, ink = colours(tab)
    assert ground > 200 > 60 > ink
    tab.page.emulate_media(color_scheme="dark")
    ground, ink = colours(tab)
    assert ground < 60 < 200 < ink
    tab.press("d")
    assert colours(tab)[0] > 200
    tab.page.locator("#theme").click()
    assert colours(tab)[0] < 60
    tab.close()


@pytest.mark.parametrize("width", [320, 700, 1000])
def test_no_window_is_so_narrow_that_one_must_scroll_sideways(browser: Any, file: Path, width: int) -> None:
    tab = Tab(browser, file, viewport={"width": width, "height": 800})
    for _ in EPISODES:
        for part in ("html", "aside", "#list", "main", "h2"):
            sideways = tab.page.locator(part).evaluate("node => node.scrollWidth - node.clientWidth")
            assert sideways <= 0, part
        assert tab.page.locator("#next").bounding_box()["x"] < width
        tab.press("ArrowRight")
    tab.close()


def test_on_a_narrow_window_the_list_opens_and_closes(browser: Any, file: Path) -> None:
    tab = Tab(browser, file, viewport={"width": 400, "height": 800})
    assert not tab.page.locator("#list").is_visible()
    tab.page.locator("#menu").click()
    assert tab.page.locator("#list").is_visible()
    tab.open(5)
    assert not tab.page.locator("#list").is_visible()
    assert tab.shown() == 5
    tab.page.locator("#menu").click()
    tab.press("Escape")
    assert not tab.page.locator("#list").is_visible()
    tab.page.locator("#menu").click()
    tab.page.locator("#close").click()
    assert not tab.page.locator("#list").is_visible()
    tab.close()


def test_hundreds_of_episodes_are_listed_and_their_images_made_only_when_seen(browser: Any, tmp_path: Path) -> None:
    write_page(tmp_path / "large.html", EPISODES[:6] * 100, "Large")
    tab = Tab(browser, tmp_path / "large.html")
    assert len(tab.listed()) == 600
    assert tab.page.evaluate("document.images.length") < 80
    last = tab.page.locator(".row").last
    assert last.locator("img").count() == 0
    last.scroll_into_view_if_needed()
    last.locator("img").first.wait_for()
    last.click()
    assert tab.shown() == 600
    tab.close()


def test_a_turn_of_a_megabyte_is_cut_for_reading_and_whole_in_the_raw_turn(browser: Any, tmp_path: Path) -> None:
    long, many = "x" * 1_000_000, "<think>a" * 100_000
    turns = (EpisodeTurn("<image><image>", long, "bad_turn", 2), EpisodeTurn("", many, "bad_turn", 0))
    write_page(tmp_path / "long.html", [brief("", 0.0, "void", None, turns=turns)], "Long")
    tab = Tab(browser, tmp_path / "long.html")
    assert "… and 980000 more characters" in tab.page.locator("#turn-1").inner_text()
    assert "… and 99960 more parts" in tab.page.locator("#turn-2").inner_text()
    tab.page.locator("#turn-2 summary").click()
    assert tab.page.locator("#turn-2 pre").text_content() == many
    tab.close()


def test_a_page_of_one_episode_has_no_list(browser: Any, tmp_path: Path) -> None:
    write_page(tmp_path / "one.html", EPISODES[:1], "One")
    tab = Tab(browser, tmp_path / "one.html")
    assert not tab.page.locator("aside").is_visible()
    assert tab.page.locator("#episode h2").bounding_box()["x"] < 100
    tab.press("1")
    assert enlarged(tab) == "Image-1"
    tab.close()


def test_an_empty_page_says_so(browser: Any, tmp_path: Path) -> None:
    write_page(tmp_path / "empty.html", [], "Empty")
    tab = Tab(browser, tmp_path / "empty.html")
    assert tab.page.locator("#list").text_content() == "There are no episodes."
    tab.press("ArrowRight", "1", "t")
    tab.close()
