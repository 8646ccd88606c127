"""What every environment promises, each promise a rule that is checked from outside, by playing.

Every message of every episode is held to the rules of `Episode`; each function of `RULES` plays for one more. Knows
the public names of an environment, and nothing of how a task is made.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import gymnasium as gym
from gymnasium.error import ResetNeeded

from mimgenv.errors import TURN_ERRORS
from mimgenv.prompts import instructions_text
from mimgenv.testing.episode import Env, Episode
from mimgenv.testing.hostile import HOSTILE_TURNS, call, huge_turns
from mimgenv.testing.leaks import leaks

Make: TypeAlias = Callable[[], Env]

NONSENSE: Final = "nonsense"


def check_env_contract(env: str | Make, seeds: Sequence[int] = (0, 1, 2)) -> None:
    """Plays an environment and asserts that it keeps its contract.

    Args:
        env: A registered id, or a function that makes the environment: a `MultiImageEnv`, wrapped at most by what
            keeps its observations.
        seeds: Episodes to play; each rule plays a few of each.

    Raises:
        AssertionError: If a rule is broken; the message states it.
    """
    make: Make = partial(gym.make, env) if isinstance(env, str) else env
    for seed in seeds:
        for rule in RULES:
            rule(make, seed)


def _script(episode: Episode) -> list[str]:
    """A bad turn, a tool call where there is a tool, a call of none, and the right answer."""
    tool = episode.call()
    return [NONSENSE, *([tool] if tool else []), call("no_such_tool"), episode.right()]


def _takes_its_own_actions(make: Make, seed: int) -> None:
    episode = Episode(make(), seed)
    space = episode.env.action_space
    for turn in _script(episode):
        assert space.contains(episode.form(turn)), f"the action space contains a turn: {turn!r} is not in {space}"
    space.seed(seed)
    for _ in range(5):
        Episode(episode.env, seed).step(space.sample())


def _wants_a_reset(make: Make, seed: int) -> None:
    env = make()
    action = Episode(make(), seed).form(NONSENSE)
    _assert_reset_needed(env, action, "before the first reset")
    episode = Episode(env, seed)
    episode.play(episode.right())
    _assert_reset_needed(env, action, "after the end of an episode")
    Episode(env, seed).play(NONSENSE)


def _assert_reset_needed(env: Env, action: Any, when: str) -> None:
    try:
        env.step(action)
    except ResetNeeded:
        return
    raise AssertionError(f"a step {when} raises gymnasium's ResetNeeded")


def _repeats_itself(make: Make, seed: int) -> None:
    first, used = Episode(make(), seed), Episode(make(), seed + 1)
    used.play(NONSENSE)
    again = Episode(used.env, seed)
    for turn in _script(first):
        first.play(turn)
        Episode(make(), seed + 2).play(NONSENSE)
        again.play(turn)
    assert first.transcript == again.transcript, f"seed {seed} gives the same bytes and text in every instance"


def _goes_on_from_its_seed(make: Make, seed: int) -> None:
    orders = []
    for env in (make(), make()):
        env.reset(seed=seed)
        orders.append([env.reset()[1]["task_id"] for _ in range(3)])
    assert orders[0] == orders[1], f"resets without a seed follow from the last seed: {orders[0]}, then {orders[1]}"


def _keeps_no_image_it_handed_out(make: Make, seed: int) -> None:
    left, overwritten = Episode(make(), seed), Episode(make(), seed, scribble=True)
    for episode in (left, overwritten):
        episode.play(*[turn for turn in (left.call(), left.call()) if turn])
    again = Episode(overwritten.env, seed).play(*[turn for turn in (left.call(), left.call()) if turn])
    same = left.transcript == overwritten.transcript == again.transcript
    assert same, "an image handed out may be overwritten: nothing shown later changes"


def _tells_no_truth(make: Make, seed: int) -> None:
    episode = Episode(make(), seed)
    task, inner = episode.task, episode.inner
    own = [instructions_text(task, inner.instructions, inner.tools, inner.box_frame), *TURN_ERRORS.values()]
    episode.play(*_script(episode)[:-1], NONSENSE)
    found = leaks(task, [(observation, info) for observation, *_, info in episode.said], own)
    assert not found, f"the truth of {task.task_id} is in neither observation nor info: {found}"


def _pays_the_truth(make: Make, seed: int) -> None:
    right, wrong = Episode(make(), seed), Episode(make(), seed)
    right.play(right.right())
    wrong.play(wrong.wrong())
    for episode, success in ((right, True), (wrong, False)):
        assert episode.info["stop"] == "answered", f"a whole answer fits and ends the episode: {episode.info}"
        assert episode.info["success"] is success, f"the true answer succeeds, another does not: {episode.info}"
    paid, less = right.said[-1][1], wrong.said[-1][1]
    assert paid >= less, f"a right answer earns no less than a wrong one of the same form: {paid}, {less}"


def _survives_hostile_turns(make: Make, seed: int) -> None:
    episode = Episode(make(), seed)
    for name, turn in (HOSTILE_TURNS | huge_turns(10_000)).items():
        for action in (turn, episode.form(turn)):
            episode.step(action)
            assert episode.info["error"] is not None, f"a hostile turn is refused: {name}"
            if episode.info["stop"] is not None:
                episode = Episode(episode.env, seed)


def _stops_for_the_first_reason(make: Make, seed: int) -> None:
    for stop, kind, spent in ENDINGS:
        ready = Episode(make(), seed)
        turn = {"right": ready.right, "call": ready.call}[kind]() if kind != NONSENSE else NONSENSE
        if turn is None:  # no tools to call
            continue
        enough = {_TURNS: 2, _TOKENS: ready.cost(turn) + 1, _IMAGES: ready.started + 1}
        limits = {name: value - (name in spent) for name, value in enough.items()}
        info = Episode(ready.env, seed, limits).play(turn).info
        assert info["stop"] == stop, f"{kind} with {limits} stops as {stop!r}, not {info['stop']!r} ({info['error']})"


_TURNS, _TOKENS, _IMAGES = "max_turns", "max_tokens", "max_images"

ENDINGS: Final = (
    ("answered", "right", ()),
    ("answered", "right", (_TURNS, _TOKENS, _IMAGES)),
    (None, NONSENSE, (_IMAGES,)),
    ("void", NONSENSE, (_TURNS,)),
    ("void", NONSENSE, (_TOKENS,)),
    ("turn_limit", "call", (_TURNS, _TOKENS, _IMAGES)),
    ("token_limit", "call", (_TOKENS, _IMAGES)),
    ("image_limit", "call", (_IMAGES,)),
)
"""Why an episode stops after a turn of a kind, where these budgets are used up by it."""


def _travels(make: Make, seed: int) -> None:
    here = Episode(make(), seed)
    script = _script(here)
    here.play(script[0])
    try:
        there: Episode = pickle.loads(pickle.dumps(here))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise AssertionError(f"an environment can be pickled in the middle of an episode: {error!r}") from error
    for episode in (here, there):
        episode.play(*script[1:])
    assert here.transcript == there.transcript, "a pickled environment goes on as the one it was made from"


RULES: Final[tuple[Callable[[Make, int], None], ...]] = (
    _pays_the_truth,
    _takes_its_own_actions,
    _wants_a_reset,
    _repeats_itself,
    _goes_on_from_its_seed,
    _keeps_no_image_it_handed_out,
    _tells_no_truth,
    _survives_hostile_turns,
    _stops_for_the_first_reason,
    _travels,
)
