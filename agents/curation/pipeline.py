"""The way from sets of images to items worth keeping: who is asked what, and what follows from the answers.

For each candidate: a proposer writes a question with its answer; a candidate like an earlier one is dropped; solvers
who see no images must fail; solvers who see them must be right about as often as the plan wants; a critic must find
the question answerable and its answer unique. Each stage asks only about what the stages before it left.

Answers go through the journal, and everything else is a pure function of them: a run that was stopped goes on, and the
order in which answers come in changes nothing. A bad answer costs its candidate. A server that gives no answer costs
nothing: the candidate waits for the next run.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

import numpy as np

from agents.api_agent import EndpointError
from agents.curation import prompts
from agents.curation.answers import BadAnswerError, is_right, read_proposal, read_solution, read_verdict
from agents.curation.journal import Journal
from agents.curation.plan import KEPT, UNANSWERED, Candidate, Cast, Fate, Named, Plan, Result
from agents.curation.roles import Job, Request, answer_text
from agents.curation.sets import ImageSets
from mimgenv.datasets.curated import Item
from mimgenv.errors import MimgenvError
from mimgenv.types import Grounding, Image

MAX_FAILURES: Final = 5
"""So many requests in a row without an answer stop the run."""

_T = TypeVar("_T", int, Candidate)
_R = TypeVar("_R")


def image_name(pixels: Image) -> str:
    """The file of an image in a curated set: equal images share one."""
    return f"images/{hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:24]}.png"


def curate(
    cast: Cast, sets: ImageSets, plan: Plan, journal: Journal, on_answer: Callable[[], None] = lambda: None
) -> Result:
    """Makes items until there are enough, or no candidate is left; more only where earlier runs have made them.

    Args:
        cast: Who takes part.
        sets: The images to ask about; candidate n is about set n.
        plan: What is wanted.
        journal: Holds the answers so far, and gets the others.
        on_answer: Called after each new answer.

    Raises:
        EndpointError: If a server refuses all requests, or gives no answer to several in a row. What was answered is in
            the journal.
    """
    run = _Run(cast, sets, plan, journal, on_answer)
    most = min(plan.candidates, len(sets))
    count = min(plan.items, most)
    while len(kept := run.go(count)) < plan.items and count < most:
        count = min(most, count + plan.items - len(kept))
    if count < journal.candidates:  # an earlier run had to go further, and what it found good stays
        kept = run.go(min(most, journal.candidates))
    return Result(tuple(kept), run.fates | {candidate.number: KEPT for candidate in kept})


class _LostError(MimgenvError):
    """A candidate that goes no further; the message is the reason."""


class _Run:
    """One run: asks what is not in the journal, and tells each candidate's fate."""

    def __init__(
        self, cast: Cast, sets: ImageSets, plan: Plan, journal: Journal, on_answer: Callable[[], None]
    ) -> None:
        self.cast, self.sets, self.plan, self.journal = cast, sets, plan, journal
        self.fates: dict[int, Fate] = {}
        self._on_answer = on_answer
        self._proposed: dict[int, Candidate] = {}
        self._put_off: set[tuple[int, str]] = set()
        self._failures, self._stopped, self._lock = 0, False, threading.Lock()

    def go(self, count: int) -> list[Candidate]:
        """Those of the first `count` candidates that pass all stages."""
        self.fates = {}
        candidates = self._propose(count)
        first = {duplicate_key(candidate.item): candidate for candidate in reversed(candidates)}
        candidates = self._passing("deduplicate", candidates, lambda candidate: _check_first(candidate, first))
        candidates = self._solve(candidates, False)
        candidates = self._solve(candidates, True)
        return self._judge(candidates)

    def _propose(self, count: int) -> list[Candidate]:
        numbers = [number for number in range(count) if number not in self._proposed]
        self._ask_all((number, "propose", self.cast.proposer, self._proposal_request) for number in numbers)
        return self._passing("propose", range(count), self._proposal)

    def _proposal(self, number: int) -> Candidate:
        if number not in self._proposed:
            text, shown = self._answer(number, "propose"), self.sets(number)
            names = [image_name(image) for image in shown.images]
            item = _read(lambda: read_proposal(text, f"{number:06d}", names, shown.images), "bad_proposal")
            origin = {"proposer": self.cast.proposer[0], "seed": self.plan.seed, "sources": list(shown.names)}
            self._proposed[number] = Candidate(number, replace(item, provenance=origin))
        return self._proposed[number]

    def _solve(self, candidates: Sequence[Candidate], shown: bool) -> list[Candidate]:
        stage = "solve/shown" if shown else "solve/hidden"
        solvers = self.cast.solvers if shown else self.cast.hidden_solvers
        count = self.plan.attempts if shown else self.plan.hidden_attempts
        attempts = [(f"{stage}/{attempt}", solvers[attempt % len(solvers)]) for attempt in range(count)]
        items = {candidate.number: candidate.item for candidate in candidates}

        def request(number: int, step: str) -> Request:
            wants_box = isinstance(items[number].truth, Grounding)
            asked = self._request("solve", prompts.solve(shown, wants_box), number, step, items[number].full_question)
            return replace(asked, shown=shown, grounding=wants_box)

        self._ask_all((number, step, solver, request) for number in items for step, solver in attempts)
        return self._passing(stage, candidates, lambda candidate: self._solved(candidate, attempts, shown))

    def _solved(self, candidate: Candidate, attempts: Sequence[tuple[str, Named]], shown: bool) -> Candidate:
        truth, notes = candidate.item.truth, []
        for attempt, (step, (name, _)) in enumerate(attempts):
            text = self._answer(candidate.number, step)
            answer = _read(partial(read_solution, text, isinstance(truth, Grounding)), "bad_solution")
            right, written = is_right(candidate.item, answer), answer_text(answer)
            notes += [{"solver": name, "images": shown, "attempt": attempt, "answer": written, "right": right}]
        share = sum(note["right"] is True for note in notes) / len(notes)
        low, high = self.plan.share if shown else (0.0, self.plan.hidden_share)
        if not low <= share <= high:
            raise _LostError(("too_hard" if share < low else "too_easy") if shown else "solved_without_images")
        return candidate.noted("solvers", notes)

    def _judge(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        items = {candidate.number: candidate.item for candidate in candidates}

        def request(number: int, step: str) -> Request:
            asked = self._request("judge", prompts.JUDGE, number, step, items[number].full_question)
            return replace(asked, proposal=answer_text(items[number].truth))

        self._ask_all((number, "judge", self.cast.critic, request) for number in items)
        return self._passing("judge", candidates, self._judged)

    def _judged(self, candidate: Candidate) -> Candidate:
        text = self._answer(candidate.number, "judge")
        verdict = _read(lambda: read_verdict(text), "bad_verdict")
        if not verdict.answerable or not verdict.unique:
            raise _LostError("not_unique" if verdict.answerable else "not_answerable")
        note = {"critic": self.cast.critic[0], "answerable": True, "unique": True, "reason": verdict.reason}
        return candidate.noted("critic", [note])

    def _passing(self, stage: str, those: Iterable[_T], look: Callable[[_T], Candidate]) -> list[Candidate]:
        """What `look` returns for those that it does not lose; the fate of the others is kept."""
        passing = []
        for each in those:
            try:
                passing.append(look(each))
            except _LostError as lost:
                self.fates[each if isinstance(each, int) else each.number] = (stage, str(lost))
        return passing

    def _answer(self, number: int, step: str) -> str:
        text = self.journal.get(number, step)
        if text is None:
            raise _LostError(UNANSWERED)
        return text

    def _proposal_request(self, number: int, step: str) -> Request:
        return self._request("propose", prompts.PROPOSE, number, step, "")

    def _request(self, job: Job, instructions: str, number: int, step: str, question: str) -> Request:
        shown = self.sets(number)
        rng = np.random.default_rng([self.plan.seed, number, zlib.crc32(step.encode())])
        seed = int(rng.integers(2**31))
        return Request(job, instructions, question, shown.images, True, seed, task_id=shown.task_id)

    def _ask_all(self, steps: Iterable[tuple[int, str, Named, Callable[[int, str], Request]]]) -> None:
        open_steps = [s for s in steps if self.journal.get(*s[:2]) is None and s[:2] not in self._put_off]
        pool = ThreadPoolExecutor(self.plan.parallel)
        try:
            for done in as_completed([pool.submit(self._ask, *step) for step in open_steps]):
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _ask(self, number: int, step: str, role: Named, request: Callable[[int, str], Request]) -> None:
        name, answer = role
        if self._stopped:
            return
        try:
            text = answer(request(number, step))
        except EndpointError as error:
            with self._lock:
                self._put_off.add((number, step))
                self._failures += 1
                self._stopped |= error.hopeless or self._failures >= MAX_FAILURES
                if self._stopped:
                    raise
            return
        self.journal.add(number, step, name, text)
        with self._lock:
            self._failures = 0
            self._on_answer()


def _read(read: Callable[[], _R], otherwise: str) -> _R:
    try:
        return read()
    except BadAnswerError as error:
        raise _LostError(otherwise) from error


def _check_first(candidate: Candidate, first: Mapping[object, Candidate]) -> Candidate:
    if first[duplicate_key(candidate.item)] is not candidate:
        raise _LostError("duplicate")
    return candidate


def duplicate_key(item: Item) -> object:
    """Equal for two items that ask the same about the same images.

    The same: equal letters and digits, whatever their case and what stands between; images in any order.
    """
    words = "".join(character if character.isalnum() else " " for character in item.full_question.casefold())
    return " ".join(words.split()), frozenset(item.images)
