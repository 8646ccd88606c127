"""The way to an item: each loss for its reason, nothing asked twice, and an order that timing does not change."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.api_agent import EndpointError
from agents.curation.journal import Journal
from agents.curation.pipeline import MAX_FAILURES, curate, duplicate_key, image_name
from agents.curation.plan import LOSSES, Cast, Plan
from agents.curation.roles import Request
from agents.curation.sets import ImageSet
from mimgenv.datasets.curated import Item
from mimgenv.errors import ConfigurationError
from mimgenv.types import TextAnswer


class Sets:
    """Set n holds two images whose pixels are n."""

    fingerprint = ""

    def __len__(self) -> int:
        return 1000

    def __call__(self, number: int) -> ImageSet:
        images = tuple(np.full((8, 9 + k, 3), number % 256, np.uint8) for k in range(2))
        return ImageSet(images, (f"{number}a.jpg", f"{number}b.jpg"))


def number_of(request: Request) -> int:
    return int(request.images[0][0, 0, 0])


class Script:
    """A role for all jobs; keeps what it was asked. Every second seeing answer is right unless a text stands in."""

    def __init__(self, texts: dict[tuple[int, str], str] | None = None) -> None:
        self.texts = texts or {}
        self.requests: list[Request] = []
        self.asked: Counter[tuple[int, str]] = Counter()
        self.before: Callable[[Request], None] = lambda request: None
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> str:
        number = number_of(request)
        kind = "hidden" if request.job == "solve" and not request.shown else request.job
        self.before(request)
        with self._lock:
            self.requests.append(request)
            count = self.asked[number, kind]
            self.asked[number, kind] += 1
        usual = {
            "propose": json.dumps({"question": f"How many {number}?", "task_type": "counting", "answer": "3"}),
            "hidden": '{"answer": "9"}',
            "solve": '{"answer": "3"}' if request.seed % 2 else '{"answer": "4"}',
            "judge": '{"answerable": true, "unique": true, "reason": "seen"}',
        }
        return self.texts.get((number, kind), self.texts.get((number, f"{kind}{count}"), usual[kind]))


def cast_of(script: Any) -> Cast:
    return Cast(("p", script), (("s", script),), (("h", script),), ("c", script))


def run(tmp_path: Path, script: Any, **plan: Any) -> Any:
    settings = {"items": 4, "candidates": 12, "share": (0.0, 1.0), "parallel": 1} | plan
    return curate(cast_of(script), Sets(), Plan(**settings), Journal(tmp_path / "journal.jsonl", {}))


def proposal(question: str, answer: str = "3") -> str:
    return json.dumps({"question": question, "task_type": "counting", "answer": answer})


RIGHT, WRONG = '{"answer": "3"}', '{"answer": "4"}'


# What each stage loses


@pytest.mark.parametrize(
    ("texts", "fate"),
    [
        ({"propose": "I would rather not."}, ("propose", "bad_proposal")),
        ({"propose": proposal("<image>?")}, ("propose", "bad_proposal")),
        ({"hidden": "no idea"}, ("solve/hidden", "bad_solution")),
        ({"hidden1": RIGHT}, ("solve/hidden", "solved_without_images")),
        ({"solve2": "hm"}, ("solve/shown", "bad_solution")),
        ({"solve": WRONG}, ("solve/shown", "too_hard")),
        ({"solve": RIGHT}, ("solve/shown", "too_easy")),
        ({"judge": "looks fine"}, ("judge", "bad_verdict")),
        ({"judge": '{"answerable": false, "unique": true}'}, ("judge", "not_answerable")),
        ({"judge": '{"answerable": true, "unique": false}'}, ("judge", "not_unique")),
    ],
)
def test_a_candidate_is_lost_for_its_reason_and_costs_no_other(
    tmp_path: Path, texts: dict[str, str], fate: tuple[str, str]
) -> None:
    halves = {(n, f"solve{k}"): (RIGHT, WRONG)[k % 2] for n in range(12) for k in range(4)}
    script = Script({**halves, **{(1, kind): text for kind, text in texts.items()}})
    result = run(tmp_path, script, share=(0.25, 0.75))
    assert fate[1] in LOSSES[fate[0]]
    assert result.fates == {0: "kept", 1: fate, 2: "kept", 3: "kept", 4: "kept"}
    order = [*LOSSES]
    later = {"solve/hidden": ["hidden"], "solve/shown": ["solve"], "judge": ["judge"]}
    for stage in order[order.index(fate[0]) + 1 :]:
        assert not any(script.asked[1, kind] for kind in later.get(stage, []))


def test_a_share_on_the_bound_is_kept(tmp_path: Path) -> None:
    script = Script({(n, f"solve{k}"): RIGHT if k < n else WRONG for n in range(5) for k in range(4)})
    result = run(tmp_path, script, items=5, candidates=5, share=(0.25, 0.75))
    assert [result.fates[n] for n in range(5)] == [
        ("solve/shown", "too_hard"),
        "kept",
        "kept",
        "kept",
        ("solve/shown", "too_easy"),
    ]


def test_a_guess_may_be_right_as_often_as_the_plan_allows(tmp_path: Path) -> None:
    script = Script({(0, "hidden1"): RIGHT})
    assert run(tmp_path, script, items=1, candidates=1, hidden_share=0.5).fates == {0: "kept"}


def test_the_same_question_about_the_same_images_is_asked_once(tmp_path: Path) -> None:
    class Same(Sets):
        def __call__(self, number: int) -> ImageSet:
            drawn = super().__call__(7)
            flipped = ImageSet(drawn.images[::-1], drawn.names[::-1])
            return flipped if number == 1 else super().__call__(9) if number == 2 else drawn

    texts = iter(["How many  Mugs?", "how many mugs", "How many mugs?", "How many cups?"])
    script = Script()

    def role(request: Request) -> str:
        return proposal(next(texts)) if request.job == "propose" else script(request)

    plan = Plan(items=4, candidates=4, share=(0.0, 1.0), parallel=1)
    result = curate(cast_of(role), Same(), plan, Journal(tmp_path / "journal.jsonl", {}))
    assert result.fates == {0: "kept", 1: ("deduplicate", "duplicate"), 2: "kept", 3: "kept"}


def test_options_make_another_question() -> None:
    item = Item("a", ("x.png",), "Which?", "t", TextAnswer("A"), ("red", "blue"))
    other = Item("b", ("x.png",), "Which?", "t", TextAnswer("A"), ("red", "green"))
    assert duplicate_key(item) != duplicate_key(other)


def test_an_image_is_named_by_what_it_holds() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert image_name(image) == image_name(image.copy())
    assert image_name(image) != image_name(image.reshape(2, 8, 3))
    assert image_name(image) != image_name(image + 1)


# What is asked


def test_roles_see_what_they_may_see(tmp_path: Path) -> None:
    script = Script()
    run(tmp_path, script, items=1, candidates=1)
    by_job = {(request.job, request.shown): request for request in script.requests}
    assert set(by_job) == {("propose", True), ("solve", False), ("solve", True), ("judge", True)}
    hidden, judge = by_job["solve", False], by_job["judge", True]
    assert "<image>" not in hidden.text and "How many 0?" in hidden.text
    assert by_job["solve", True].text.count("<image>") == 2
    assert '"answer": "3"' in judge.text and '"3"' not in hidden.text
    assert len({request.seed for request in script.requests}) == len(script.requests) == 8


def test_an_item_says_where_it_comes_from(tmp_path: Path) -> None:
    (kept,) = run(tmp_path, Script({(0, "solve0"): RIGHT, (0, "solve1"): WRONG}), items=1, candidates=1).kept
    item = kept.item
    assert (item.id, item.question, item.truth) == ("000000", "How many 0?", TextAnswer("3"))
    assert item.images == tuple(image_name(image) for image in Sets()(0).images)
    origin = item.provenance
    assert (origin["proposer"], origin["seed"], origin["sources"]) == ("p", 0, ["0a.jpg", "0b.jpg"])
    assert [(note["solver"], note["images"], note["attempt"]) for note in origin["solvers"]] == [
        *[("h", False, k) for k in range(2)],
        *[("s", True, k) for k in range(4)],
    ]
    assert [note["right"] for note in origin["solvers"][:4]] == [False, False, True, False]
    assert origin["solvers"][3]["answer"] == '{"answer": "4"}'
    assert origin["critic"] == [{"critic": "c", "answerable": True, "unique": True, "reason": "seen"}]


def test_solvers_take_turns(tmp_path: Path) -> None:
    one, two = Script(), Script()
    cast = Cast(("p", one), (("s", one), ("t", two)), (("h", one),), ("c", one))
    plan = Plan(items=1, candidates=1, attempts=3, share=(0.0, 1.0))
    (kept,) = curate(cast, Sets(), plan, Journal(tmp_path / "journal.jsonl", {})).kept
    assert [note["solver"] for note in kept.item.provenance["solvers"][2:]] == ["s", "t", "s"]
    assert two.asked == {(0, "solve"): 1}


def test_no_more_is_asked_than_candidates_allow(tmp_path: Path) -> None:
    script = Script({(n, "judge"): "no" for n in range(12)})
    result = run(tmp_path, script)
    assert result.kept == () and len(result.fates) == 12
    assert sum(count for (_, kind), count in script.asked.items() if kind == "propose") == 12


# Going on


def test_a_run_stopped_after_any_answer_goes_on_without_asking_again(tmp_path: Path) -> None:
    bad = {(1, "judge"): "no", (2, "hidden0"): "?"}
    whole = run(tmp_path, Script(bad), parallel=1)
    total = len(Journal(tmp_path / "journal.jsonl", {}))
    for stop in range(0, total, 5):
        folder = tmp_path / str(stop)
        folder.mkdir()
        script = Script(bad)

        def power_cut(request: Request, script: Script = script, stop: int = stop) -> None:
            if sum(script.asked.values()) == stop:
                raise KeyboardInterrupt

        script.before = power_cut
        with pytest.raises(KeyboardInterrupt):
            run(folder, script)
        script.before = lambda request: None
        again = run(folder, script)
        assert (again.kept, again.fates) == (whole.kept, whole.fates)
        assert sum(script.asked.values()) == total


def test_the_order_of_answers_changes_nothing(tmp_path: Path) -> None:
    bad = {(1, "judge"): "no", (2, "hidden"): RIGHT, (4, "propose"): "-"}
    results = []
    for parallel in (1, 8):
        (tmp_path / str(parallel)).mkdir()
        script = Script(bad)
        script.before = lambda request: time.sleep(random.random() * 0.004)
        results.append(run(tmp_path / str(parallel), script, parallel=parallel, items=6))
    assert results[0].kept == results[1].kept
    assert results[0].fates == results[1].fates


def test_a_request_without_an_answer_costs_nothing_and_is_asked_in_the_next_run(tmp_path: Path) -> None:
    script = Script()
    tries = []

    def fail(request: Request) -> None:
        if number_of(request) == 1 and request.job == "judge":
            tries.append(request)
            raise EndpointError("busy")

    script.before = fail
    first = run(tmp_path, script)
    assert len(tries) == 1  # also though a fifth candidate was asked for afterwards
    assert first.fates == {0: "kept", 1: ("judge", "unanswered"), 2: "kept", 3: "kept", 4: "kept"}
    asked = script.asked.total()
    script.before = lambda request: None
    second = run(tmp_path, script)
    assert second.fates == dict.fromkeys(range(5), "kept")  # what the first run found good stays
    assert script.asked.total() == asked + 1


@pytest.mark.parametrize(("hopeless", "tries"), [(False, MAX_FAILURES), (True, 1)])
def test_a_server_that_is_gone_stops_the_run(tmp_path: Path, hopeless: bool, tries: int) -> None:
    tried = []

    def gone(request: Request) -> str:
        tried.append(request)
        raise EndpointError("gone", hopeless)

    with pytest.raises(EndpointError, match="gone"):
        run(tmp_path, gone, items=12)
    assert len(tried) == tries


def test_failures_between_answers_do_not_stop_the_run(tmp_path: Path) -> None:
    script = Script()

    def often(request: Request) -> None:
        if request.job == "propose" and number_of(request) % 2:
            raise EndpointError("busy")

    script.before = often
    result = run(tmp_path, script, items=12)
    assert Counter(map(str, result.fates.values())) == {"kept": 6, "('propose', 'unanswered')": 6}


@pytest.mark.parametrize(
    "numbers",
    [
        {"items": 0},
        {"candidates": 3},
        {"attempts": 0},
        {"share": (0.8, 0.2)},
        {"share": (-0.1, 1)},
        {"hidden_share": 1.0},
    ],
)
def test_a_plan_that_cannot_work_is_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Plan(**({"items": 4, "candidates": 8} | numbers))
