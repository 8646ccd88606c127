"""The episode loop: order, reuse of environments, and that what an agent emitted is kept as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from agents.oracle import OracleAgent
from agents.rollout import make_envs, run_episodes
from agents.types import Action, Budget, History, Message, Trajectory
from mimgenv import default_codec
from mimgenv.codec import Codec

TINY = "MultiImageTiny-v0"


class Scripted:
    """Plays what `turn` says for each history, and keeps the histories it was shown, call by call."""

    def __init__(self, turn: Callable[[History], Action | str]) -> None:
        self.turn = turn
        self.seen: list[tuple[History, ...]] = []

    def act(self, histories: Sequence[History]) -> list[Action | str]:
        self.seen.append(tuple(histories))
        return [self.turn(history) for history in histories]


class CountingCodec(Codec):
    """Counts the turns that it encodes."""

    def __init__(self) -> None:
        super().__init__(default_codec().tokenizer)
        self.encoded: list[str] = []

    def encode_turn(self, text: str) -> tuple[int, ...]:
        self.encoded.append(text)
        return super().encode_turn(text)


class Resets(gym.Wrapper[Any, Any, Any, Any]):
    """Counts the episodes played in an environment."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.count = 0

    def reset(self, **options: Any) -> Any:
        self.count += 1
        return super().reset(**options)


def truth(history: History) -> str:
    return OracleAgent().act([history])[0]


def late_truth(history: History) -> str:
    """Stumbles first in every other task, so that episodes end out of order."""
    stumbles = int(history.task_id[-1]) % 2 == 0 and not history.turns
    return "nonsense" if stumbles else truth(history)


def test_trajectories_come_in_the_order_of_the_starts_though_episodes_end_in_another() -> None:
    ended: list[int] = []
    played = run_episodes(
        Scripted(late_truth), TINY, range(6), parallel=3, on_finish=lambda index, env, trajectory: ended.append(index)
    )
    assert ended != sorted(ended)
    assert [trajectory.task_id.rsplit("/")[-1] for trajectory in played] == list("012345")
    assert [len(trajectory.turns) for trajectory in played] == [2, 1, 2, 1, 2, 1]


def test_no_more_episodes_than_parallel_are_under_way_at_a_time() -> None:
    agent = Scripted(truth)
    run_episodes(agent, TINY, range(5), parallel=2)
    assert [len(histories) for histories in agent.seen] == [2, 2, 1]


def test_given_environments_are_reused_as_episodes_finish() -> None:
    envs = [Resets(env) for env in make_envs(TINY, 2)]
    run_episodes(Scripted(late_truth), envs, range(7))
    assert sum(env.count for env in envs) == 7
    assert min(env.count for env in envs) >= 3


def test_a_factory_makes_the_environments() -> None:
    made: list[gym.Env[Any, Any]] = []

    def factory() -> gym.Env[Any, Any]:
        made.extend(make_envs(TINY, 1))
        return made[-1]

    assert [t.reward for t in run_episodes(OracleAgent(), factory, range(4), parallel=3)] == [1.5] * 4
    assert len(made) == 3


def test_on_finish_gets_each_episode_once_with_its_environment() -> None:
    finished: dict[int, tuple[object, Trajectory]] = {}

    def note(index: int, env: gym.Env[Any, Any], trajectory: Trajectory) -> None:
        assert index not in finished
        finished[index] = env.unwrapped.prediction, trajectory  # type: ignore[attr-defined]

    played = run_episodes(OracleAgent(), TINY, range(4), parallel=2, on_finish=note)
    assert [finished[index][1] for index in range(4)] == played
    assert all(prediction is not None for prediction, _ in finished.values())


@pytest.mark.parametrize("surplus", [-1, 1])
def test_an_agent_that_returns_the_wrong_number_of_actions_raises(surplus: int) -> None:
    class Miscounting:
        def act(self, histories: Sequence[History]) -> list[str]:
            return ["nonsense"] * (len(histories) + surplus)

    with pytest.raises(ValueError, match=f"3 histories, {3 + surplus} actions"):
        run_episodes(Miscounting(), TINY, range(3))


def test_a_task_id_as_start_plays_the_same_task_again() -> None:
    first = run_episodes(OracleAgent(), TINY, [3, 4], split="val")
    again = run_episodes(OracleAgent(), TINY, [first[1].task_id, first[0].task_id])
    assert [t.task_id for t in again] == [first[1].task_id, first[0].task_id]
    for a, b in zip(first[1].images, again[0].images, strict=True):
        np.testing.assert_array_equal(a, b)
    assert again[0].turns[0].message.text == first[1].turns[0].message.text


def test_arguments_reach_the_environment() -> None:
    (played,) = run_episodes(OracleAgent(), TINY, [0], split="val", tasks=("counting",))
    assert played.task_id == "rendered:tiny/counting/any/val/0"
    assert played.task_type == "counting"


def test_text_is_encoded_once_by_the_environments_codec() -> None:
    codec = CountingCodec()
    played = run_episodes(Scripted(late_truth), TINY, range(2), codec=codec)
    ids = [turn.action.ids for trajectory in played for turn in trajectory.turns]
    assert len(codec.encoded) == len(ids) == 3
    assert sorted(ids) == sorted(default_codec().encode_turn(text) for text in codec.encoded)


def test_ids_are_never_encoded_again_however_oddly_the_policy_tokenized() -> None:
    codec = CountingCodec()
    odd: dict[str, tuple[int, ...]] = {}

    def letter_by_letter(history: History) -> Action:
        text = truth(history)
        odd[history.task_id] = tuple(index for letter in text for index in codec.encode(letter))
        return Action(odd[history.task_id], tuple(-0.5 for _ in odd[history.task_id]), "length")

    played = run_episodes(Scripted(letter_by_letter), TINY, range(3), codec=codec, max_tokens=512)
    for trajectory in played:
        (turn,) = trajectory.turns
        assert turn.action.ids == odd[trajectory.task_id]
        assert turn.action.ids != codec.encode(codec.decode(turn.action.ids))
        assert turn.action.logprobs == (-0.5,) * len(turn.action.ids)
        assert turn.action.finish_reason == "length"
        assert trajectory.reward == 1.5
    assert codec.encoded == []


def test_an_agent_with_a_codec_has_the_environment_built_with_it() -> None:
    class Speaking(Scripted):
        codec = CountingCodec()

    agent = Speaking(truth)
    run_episodes(agent, TINY, range(2))
    assert len(agent.codec.encoded) == 2


def test_a_history_only_grows() -> None:
    agent = Scripted(lambda history: "nonsense" if len(history.turns) < 3 else truth(history))
    (trajectory,) = run_episodes(agent, TINY, [0], max_turns=6)
    histories = [histories[0] for histories in agent.seen]
    assert [len(history.turns) for history in histories] == [0, 1, 2, 3]
    for before, after in pairwise(histories):
        assert all(a is b for a, b in zip(before.turns, after.turns, strict=False))
        assert after.turns[-1].message is before.message
    assert trajectory.turns[:-1] == histories[-1].turns


def test_a_history_says_what_is_left_of_the_budget() -> None:
    nonsense = default_codec().encode_turn("nonsense")
    agent = Scripted(lambda history: truth(history) if history.turns else Action(nonsense))
    (trajectory,) = run_episodes(agent, TINY, [0], max_turns=5, max_tokens=64, max_images=6)
    left = 6 - len(trajectory.images)
    assert [histories[0].budget for histories in agent.seen] == [
        Budget(turns=5, tokens=64, images=left),
        Budget(turns=4, tokens=64 - len(nonsense), images=left),
    ]


def test_a_history_says_what_kind_of_answer_is_wanted_and_holds_all_images() -> None:
    agent = Scripted(lambda history: OracleAgent(zoom=1.0).act([history])[0])
    for tasks, kind in ((("counting",), "text"), (("locate",), "grounding")):
        agent.seen.clear()
        (played,) = run_episodes(agent, "MultiImageTinyZoom-v0", [0], tasks=tasks)
        histories = [histories[0] for histories in agent.seen]
        assert {history.answer_kind for history in histories} == {kind}
        assert all(a is b for a, b in zip(histories[-1].images, played.images, strict=True))
        shown = [len(turn.message.images) for turn in played.turns]
        assert [len(history.images) for history in histories] == np.cumsum(shown).tolist()


def test_the_code_of_what_was_wrong_lands_in_the_turn_and_its_text_in_the_next_message() -> None:
    script = ["nonsense", '<think>t</think><tool_call>{"name": "saw", "arguments": {}}</tool_call>']
    agent = Scripted(lambda history: [*script, truth(history)][len(history.turns)])
    (trajectory,) = run_episodes(agent, TINY, [0], max_turns=3)
    assert [turn.error for turn in trajectory.turns] == ["bad_turn", "unknown_tool", None]
    assert trajectory.turns[1].message.text.startswith("Error (bad_turn)")
    assert trajectory.turns[2].message.text.startswith("Error (unknown_tool)")
    assert trajectory.reward_parts == {"iou": 1.0, "format": 0.0}


def test_an_episode_ends_with_why_it_ended_and_what_it_was_worth() -> None:
    void = run_episodes(Scripted(lambda history: "nonsense"), TINY, [0])[0]
    assert (void.stop, void.success, void.reward, void.reward_parts) == (
        "void",
        False,
        0.0,
        {"iou": 0.0, "format": 0.0},
    )
    answered = run_episodes(OracleAgent(), TINY, [0])[0]
    assert (answered.stop, answered.success, answered.reward) == ("answered", True, 1.5)


def test_the_images_of_a_trajectory_are_all_that_were_shown_first_image_first() -> None:
    (trajectory,) = run_episodes(OracleAgent(zoom=1.0), "MultiImageTinyZoom-v0", [0])
    first, second = (turn.message.images for turn in trajectory.turns)
    assert len(second) == 1
    assert trajectory.images == first + second


def test_no_start_is_no_episode() -> None:
    assert run_episodes(OracleAgent(), TINY, []) == []


def test_a_message_refuses_markers_without_images() -> None:
    with pytest.raises(ValueError, match="2 image markers, 0 images"):
        Message("<image><image>", ())
