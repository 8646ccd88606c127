"""Both masks, read back as text: what is trained on is what the policy wrote, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from agents.oracle import OracleAgent
from agents.qwen_vl import QwenVL
from agents.rollout import run_episodes
from agents.types import History, Trajectory
from mimgenv.env import STOPS
from rl.masking import KEEP_STOPS, action_mask, keeps_trajectory

TINY, ZOOM = "MultiImageTiny-v0", "MultiImageTinyZoom-v0"
END = "<|im_end|>"


class Writing:
    """Plays what another agent says, after a stumble if told so, and keeps the text of every turn by task."""

    def __init__(self, stumble: str = "") -> None:
        self.agent = OracleAgent(zoom=1.0, think="label", grid=7)
        self.stumble = stumble
        self.wrote: dict[str, list[str]] = {}

    def act(self, histories: Sequence[History]) -> list[str]:
        said = [self._turn(history) for history in histories]
        for history, text in zip(histories, said, strict=True):
            self.wrote.setdefault(history.task_id, []).append(text)
        return said

    def _turn(self, history: History) -> str:
        return self.stumble if self.stumble and not history.turns else self.agent.act([history])[0]


def opposite(mask: Sequence[bool]) -> list[bool]:
    return [not on for on in mask]


def test_the_action_mask_of_a_two_turn_episode_covers_what_the_agent_wrote_and_nothing_else(qwen: QwenVL) -> None:
    agent = Writing()
    for trajectory in run_episodes(agent, ZOOM, range(6), codec=qwen.codec):
        assert len(trajectory.turns) == 2
        assert len(trajectory.images) == 3  # the tool has really been called
        record = qwen.chat.record(trajectory)
        mask = action_mask(record, trajectory)
        call, answer = agent.wrote[trajectory.task_id]
        assert "<tool_call>" in call
        assert "<answer>" in answer
        assert qwen.chat.readback(record, mask) == call + END + answer + END
        assert qwen.chat.readback(record, opposite(mask)) == (
            "<|im_start|>user\nImage-1: <|vision_start|><|image_pad|><|vision_end|>\n"
            "Image-2: <|vision_start|><|image_pad|><|vision_end|>\nFind in Image-2 the object of Image-1."
            "<|im_end|>\n<|im_start|>assistant\n"
            "\n<|im_start|>user\nImage-3: <|vision_start|><|image_pad|><|vision_end|>"
            "<|im_end|>\n<|im_start|>assistant\n"
        )


def test_an_error_of_the_environment_is_never_trained_on(qwen: QwenVL) -> None:
    (trajectory,) = run_episodes(Writing("nonsense"), TINY, [0], codec=qwen.codec)
    record = qwen.chat.record(trajectory)
    mask = action_mask(record, trajectory)
    assert "Error (bad_turn)" in qwen.chat.readback(record, opposite(mask))
    assert "Error" not in qwen.chat.readback(record, mask)


def test_a_refused_turn_is_trained_on_unless_invalid_actions_are_masked(qwen: QwenVL) -> None:
    agent = Writing("nonsense")
    (trajectory,) = run_episodes(agent, TINY, [0], codec=qwen.codec)
    assert [turn.error for turn in trajectory.turns] == ["bad_turn", None]
    record = qwen.chat.record(trajectory)
    answer = agent.wrote[trajectory.task_id][1]
    assert qwen.chat.readback(record, action_mask(record, trajectory)) == "nonsense" + END + answer + END
    masked = action_mask(record, trajectory, mask_invalid_actions=True)
    assert qwen.chat.readback(record, masked) == answer + END
    assert "nonsense" in qwen.chat.readback(record, opposite(masked))


def test_masking_invalid_actions_changes_nothing_where_every_turn_was_taken(qwen: QwenVL) -> None:
    (trajectory,) = run_episodes(Writing(), ZOOM, [0], codec=qwen.codec)
    record = qwen.chat.record(trajectory)
    assert action_mask(record, trajectory, True) == action_mask(record, trajectory)


def test_an_episode_of_nothing_but_refused_turns_has_nothing_left(qwen: QwenVL) -> None:
    agent = Writing("nonsense")
    agent.agent.act = lambda histories: ["more nonsense"]  # type: ignore[method-assign]
    (trajectory,) = run_episodes(agent, TINY, [0], codec=qwen.codec)
    record = qwen.chat.record(trajectory)
    assert trajectory.stop == "void"
    assert not any(action_mask(record, trajectory, True))
    assert qwen.chat.readback(record, action_mask(record, trajectory)) == "nonsense" + END + "more nonsense" + END


def stopped(stop: str) -> Trajectory:
    return Trajectory("task", "referring", (), 0.0, {}, stop, False)


@pytest.mark.parametrize(
    ("stop", "kept"),
    [
        ("answered", True),
        ("void", True),
        ("turn_limit", False),
        ("token_limit", False),
        ("image_limit", False),
        ("env_error", False),
    ],
)
def test_a_trajectory_is_kept_or_masked_by_why_it_stopped(stop: str, kept: bool) -> None:
    assert keeps_trajectory(stopped(stop)) == kept
    assert keeps_trajectory(stopped(stop), {stop: not kept}) != kept


def test_the_table_knows_every_stop_reason_of_the_environment_and_no_other() -> None:
    assert tuple(KEEP_STOPS) == STOPS


def test_an_unknown_stop_reason_raises() -> None:
    with pytest.raises(KeyError, match="bored"):
        keeps_trajectory(stopped("bored"))
