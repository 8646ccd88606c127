"""From episodes to samples: which are left out, what each is worth, and what is logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from agents.chat import Chat
from agents.types import Action, Message, Trajectory, Turn
from mimgenv.codec import default_codec
from rl.advantage import EPSILON
from rl.batch import Sample
from rl.collect import Collected, _attempt, collect, totals, varying
from rl.config import TrainConfig
from rl.distributed import World
from rl.errors import TrainingStopped
from rl.loss import Totals

CODEC = default_codec()
CHAT = Chat(CODEC, lambda messages, ask: "".join(f"[{m['role']}]{_text(m['content'])}" for m in messages) + "[me]")


def config_of(**switches: Any) -> TrainConfig:
    """Switches as said; the others off."""
    off: dict[str, Any] = {"std": "off", "mask_invalid_actions": False, "divide_by_masked": False}
    return TrainConfig(**{**off, "count_masked": True, "keep_stops": ("answered", "void"), **switches})


CONFIG = config_of()
PICTURE = np.zeros((28, 28, 3), np.uint8)
ALL_STOPS = ("answered", "void", "turn_limit", "token_limit", "image_limit", "env_error")


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join("<|image_pad|>" if part["type"] == "image" else part["text"] for part in content)


def turn(length: int, error: str | None = None, images: int = 0) -> Turn:
    """A turn of `length` tokens: 100, 101, … with log-probs -1, -2, …"""
    ids = tuple(range(100, 100 + length))
    message = Message("Where?" + "<image>" * images, (PICTURE,) * images)
    return Turn(message, Action(ids, tuple(-1.0 - k for k in range(length))), error)


def played(
    reward: float,
    stop: str = "answered",
    turns: Sequence[Turn] | None = None,
    parts: Mapping[str, float] | None = None,
    success: bool = False,
) -> Trajectory:
    chosen = tuple(turns) if turns is not None else (turn(3),)
    return Trajectory("task", "referring", chosen, reward, parts or {}, stop, success)


def advantages(collected: Collected) -> list[list[float]]:
    return [[sample.advantage for sample in group.samples] for group in collected.groups]


def test_a_sample_is_its_trajectory_with_the_policys_tokens_marked_and_its_advantage() -> None:
    collected = collect([[played(1.0, turns=[turn(3, images=1)]), played(0.0)]], CHAT, CONFIG)
    first = collected.groups[0].samples[0]
    prompt = CODEC.encode("[user]Where?<|image_pad|>[me]")
    assert first == Sample(
        (*prompt, 100, 101, 102),
        (False,) * len(prompt) + (True,) * 3,
        (0.0,) * len(prompt) + (-1.0, -2.0, -3.0),
        (PICTURE,),
        0.5,
    )
    assert collected.groups[0].samples[1].advantage == -0.5


def test_groups_without_variance_are_dropped() -> None:
    same, other = [played(1.0), played(1.0)], [played(0.0), played(2.0)]
    collected = collect([same, other, same], CHAT, CONFIG)
    assert advantages(collected) == [[-1.0, 1.0]]
    assert collected.metrics["mask/groups_dropped"] == 2.0
    assert collected.metrics["mask/tokens_trained"] == 6.0
    nothing = collect([same], CHAT, CONFIG)
    assert (nothing.groups, totals(nothing.groups, True)) == ([], Totals(0, 0))


def test_groups_keep_their_order() -> None:
    groups = [[played(0.0), played(float(reward))] for reward in (2, 4, 6)]
    assert advantages(collect(groups, CHAT, CONFIG)) == [[-1.0, 1.0], [-2.0, 2.0], [-3.0, 3.0]]


def test_advantages_are_normalised_where_told() -> None:
    group = [played(0.0), played(0.0), played(3.0), played(5.0)]
    assert advantages(collect([group], CHAT, CONFIG)) == [[-2.0, -2.0, 1.0, 3.0]]
    scale = 6**0.5 + EPSILON
    found = advantages(collect([group], CHAT, config_of(std="group")))[0]
    assert found == pytest.approx([-2 / scale, -2 / scale, 1 / scale, 3 / scale])


# ---------------------------------------------------------------- the trajectory mask


def test_masked_trajectories_are_left_out() -> None:
    group = [played(0.0), played(1.0, "turn_limit"), played(2.0)]
    collected = collect([group], CHAT, CONFIG)
    assert advantages(collected) == [[-1.0, 1.0]]
    assert collected.metrics["mask/trajectories_masked"] == 1.0
    assert collected.metrics["mask/tokens_trained"] == 6.0


@pytest.mark.parametrize("stop", ALL_STOPS)
def test_keep_stops_decides_which_are_masked(stop: str) -> None:
    group = [played(0.0), played(1.0, stop), played(2.0)]
    kept = collect([group], CHAT, config_of(keep_stops=("answered", stop)))
    assert len(kept.groups[0].samples) == 3
    only = collect([group], CHAT, config_of(keep_stops=("answered",)))
    assert len(only.groups[0].samples) == (3 if stop == "answered" else 2)
    both = collect([group], CHAT, CONFIG)
    assert len(both.groups[0].samples) == (3 if stop in ("answered", "void") else 2)


def test_a_group_of_which_nothing_is_kept_leaves_no_row() -> None:
    group = [played(0.0, "turn_limit"), played(1.0, "token_limit")]
    collected = collect([group, [played(0.0), played(2.0)]], CHAT, CONFIG)
    assert advantages(collected) == [[-1.0, 1.0]]
    assert collected.metrics["mask/groups_dropped"] == 1.0
    assert collected.metrics["mask/trajectories_masked"] == 2.0


def test_count_masked_decides_whether_masked_rewards_move_the_groups_mean() -> None:
    group = [played(0.0), played(4.0, "turn_limit"), played(2.0)]
    assert advantages(collect([group], CHAT, config_of(count_masked=True))) == [[-2.0, 0.0]]
    assert advantages(collect([group], CHAT, config_of(count_masked=False))) == [[-1.0, 1.0]]


def test_count_masked_decides_whether_a_group_varies() -> None:
    group = [played(1.0), played(0.0, "turn_limit"), played(1.0)]
    assert len(collect([group], CHAT, config_of(count_masked=True)).groups) == 1
    assert len(collect([group], CHAT, config_of(count_masked=False)).groups) == 0


def test_masked_attempts_enter_the_totals_of_the_loss_only_where_told() -> None:
    long = [turn(5), turn(4)]
    group = [played(0.0), played(1.0, "turn_limit", long), played(2.0, turns=[turn(2)])]
    groups = collect([group], CHAT, CONFIG).groups
    assert totals(groups, count_masked=False) == Totals(3 + 2, 2)
    assert totals(groups, count_masked=True) == Totals(3 + 2 + 9, 3)


def test_masked_attempts_of_dropped_groups_are_in_no_totals() -> None:
    dropped = [played(1.0), played(1.0, "turn_limit")]
    groups = collect([dropped, [played(0.0), played(1.0)]], CHAT, CONFIG).groups
    assert totals(groups, count_masked=True) == Totals(6, 2)


# ---------------------------------------------------------------- refill and difficulty


def test_of_more_varying_groups_than_a_step_has_prompts_the_first_are_taken() -> None:
    groups = [[played(1.0)] * 2, *([played(0.0), played(reward)] for reward in (2.0, 4.0, 6.0))]
    config = config_of(prompts_per_step=2)
    assert varying(groups, config).tolist() == [False, True, True, True]
    assert advantages(collect(groups, CHAT, config)) == [[-1.0, 1.0], [-2.0, 2.0]]


def test_a_group_varies_as_its_counted_rewards_do_and_only_if_one_is_trained_on() -> None:
    groups = [
        [played(1.0), played(0.0, "turn_limit"), played(1.0)],
        [played(1.0, "turn_limit"), played(0.0, "turn_limit"), played(1.0, "turn_limit")],
        [played(1.0), played(0.0), played(1.0)],
    ]
    assert varying(groups, config_of(count_masked=True)).tolist() == [True, False, True]
    assert varying(groups, config_of(count_masked=False)).tolist() == [False, False, True]


def test_advantages_of_hard_groups_weigh_more_by_the_reward_part_that_is_named() -> None:
    hard, easy = ([played(r, parts={"iou": iou}) for r in (0.0, 2.0)] for iou in (0.0, 1.0))
    other = [played(0.0, parts={"answer": 0.0}), played(2.0, parts={"answer": 0.0})]
    found = advantages(collect([hard, easy, other], CHAT, config_of(difficulty_part="iou")))
    assert [row[1] for row in found] == pytest.approx([np.e, 1.0, 1.0])
    assert advantages(collect([hard], CHAT, CONFIG))[0][1] == 1.0


# ---------------------------------------------------------------- the action mask


def test_mask_invalid_actions_decides_whether_refused_turns_are_trained_on() -> None:
    group = [played(0.0, turns=[turn(5, "bad_json"), turn(2)]), played(1.0)]
    plain = collect([group], CHAT, config_of(mask_invalid_actions=False))
    masked = collect([group], CHAT, config_of(mask_invalid_actions=True))
    assert [sum(sample.mask) for sample in plain.groups[0].samples] == [7, 3]
    assert [sum(sample.mask) for sample in masked.groups[0].samples] == [2, 3]
    assert [totals(found.groups, True).tokens for found in (plain, masked)] == [10, 5]
    assert (plain.metrics["mask/tokens_trained"], masked.metrics["mask/tokens_trained"]) == (10, 5)


def test_the_actions_of_masked_trajectories_are_masked_alike_in_the_denominator() -> None:
    group = [played(0.0, "turn_limit", [turn(5, "bad_json"), turn(2)]), played(1.0)]
    groups = collect([group], CHAT, config_of(mask_invalid_actions=True)).groups
    assert totals(groups, count_masked=True) == Totals(2 + 3, 2)


# ---------------------------------------------------------------- metrics


def test_metrics_by_hand() -> None:
    groups = [
        [
            played(1.5, "answered", [turn(3, images=2), turn(4, images=1)], {"iou": 1.0, "format": 1.0}, True),
            played(0.0, "void", [turn(5, "bad_json", images=2), turn(2, "bad_box")], {"iou": 0.0, "format": 0.0}),
        ],
        [
            played(0.5, "answered", [turn(1)], {"answer": 0.0, "format": 1.0}),
            played(1.0, "turn_limit", [turn(1)], {"answer": 1.0, "format": 0.0}),
        ],
    ]
    metrics = collect(groups, CHAT, CONFIG).metrics
    assert metrics == pytest.approx(
        {
            "reward/total": 0.75,
            "reward/iou": 0.5,
            "reward/answer": 0.5,
            "reward/format": 0.5,
            "reward/deviation": (0.75 + 0.25) / 2,
            "episode/turns": 1.5,
            "episode/success": 0.25,
            "episode/errors": 0.5,
            "episode/tokens": (7 + 7 + 1 + 1) / 4,
            "episode/longest": 7.0,
            "episode/images": 5 / 4,
            "stop/answered": 0.5,
            "stop/void": 0.25,
            "stop/turn_limit": 0.25,
            "mask/tokens_trained": 7 + 7 + 1,
            "mask/tokens_masked": 1,
            "mask/trajectories_masked": 1.0,
            "mask/groups_dropped": 0.0,
        }
    )


def test_metrics_cover_dropped_and_masked_episodes_too() -> None:
    metrics = collect([[played(1.0), played(1.0, "env_error")]], CHAT, CONFIG).metrics
    assert (metrics["reward/total"], metrics["stop/env_error"], metrics["mask/tokens_trained"]) == (1.0, 0.5, 0.0)


def said(text: str, error: str | None = None) -> Turn:
    """A turn that reads so."""
    ids = tuple(CODEC.encode_turn(text))
    return Turn(Message("Where?", ()), Action(ids, (-1.0,) * len(ids)), error)


def call(tool: str, error: str | None = None) -> Turn:
    return said(f'<think>t</think><tool_call>{{"name": "{tool}", "arguments": {{"image": 1}}}}</tool_call>', error)


ANSWER = said("<think>t</think><answer>2</answer>")


def tool_use(groups: Sequence[Sequence[Trajectory]]) -> dict[str, float]:
    metrics = collect(groups, CHAT, CONFIG).metrics
    return {name: value for name, value in metrics.items() if name.startswith("tool/")}


def test_calls_of_each_tool_are_counted_per_episode() -> None:
    groups = [
        [played(1.0, turns=[call("zoom"), call("zoom"), call("mark"), ANSWER]), played(0.0, turns=[ANSWER])],
        [played(1.0, turns=[call("zoom"), ANSWER]), played(0.0, "turn_limit", [ANSWER, call("zoom")])],
    ]
    assert tool_use(groups) == {"tool/zoom": 1.0, "tool/mark": 0.25}


def test_a_call_that_was_refused_is_none() -> None:
    reserved = Turn(Message("Where?", ()), Action((CODEC.vocab_size,), (-1.0,)), "bad_token")
    refused = [call("zoom", "bad_box"), reserved, ANSWER]
    assert tool_use([[played(1.0, turns=refused), played(0.0)]]) == {}


def test_a_turn_that_an_environment_let_pass_though_it_does_not_parse_is_no_call() -> None:
    assert tool_use([[played(1.0, turns=[turn(3), call("zoom"), turn(3)]), played(0.0)]]) == {"tool/zoom": 0.5}


# ---------------------------------------------------------------- over ranks


class Ranks(World):
    """Several ranks, of which this one is asked; the others' groups are given beforehand."""

    others: list[Any]

    def gather(self, own: Any) -> list[Any]:
        return [own if rank == self.rank else self.others[rank] for rank in range(self.size)]

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        return dict(values)


def shared(groups: Sequence[Sequence[Any]], rank: int, config: TrainConfig) -> Collected:
    """What one rank collects where each has played its groups."""
    world = Ranks(rank, len(groups))
    others = [[[_attempt(trajectory, config) for trajectory in group] for group in own] for own in groups]
    object.__setattr__(world, "others", others)
    return collect(groups[rank], CHAT, config, world)


class Sums(Ranks):
    """Ranks of which each other one called `mark` three times in two episodes."""

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        if "episodes" not in values:
            return dict(values)
        return {**values, "episodes": values["episodes"] + 2 * (self.size - 1), "tool/mark": 3.0 * (self.size - 1)}


def test_calls_of_tools_are_per_episode_of_all_ranks() -> None:
    own = [[played(1.0, turns=[call("zoom"), ANSWER]), played(0.0)]]
    world = Sums(0, 2)
    object.__setattr__(world, "others", [[], []])
    metrics = collect(own, CHAT, CONFIG, world).metrics
    assert (metrics["tool/zoom"], metrics["tool/mark"]) == (1 / 4, 3 / 4)


def test_groups_of_an_earlier_round_come_first_whoever_played_them() -> None:
    first, second, third, fourth = ([played(0.0), played(reward)] for reward in (2.0, 4.0, 6.0, 8.0))
    config = config_of(prompts_per_step=2)  # two ranks, two rounds of two groups
    ranks = [[first, third], [second, fourth]]
    assert [advantages(shared(ranks, rank, config)) for rank in (0, 1)] == [[[-1.0, 1.0]], [[-2.0, 2.0]]]
    assert [group.number for rank in (0, 1) for group in shared(ranks, rank, config).groups] == [0, 1]


def test_deviations_are_over_the_groups_of_all_ranks() -> None:
    ranks = [[[played(0.0), played(1.0)]], [[played(0.0), played(9.0)]]]
    config = config_of(std="batch", prompts_per_step=2)
    whole = advantages(collect([group for own in ranks for group in own], CHAT, config))
    assert [*advantages(shared(ranks, 0, config)), *advantages(shared(ranks, 1, config))] == whole
    assert advantages(collect(ranks[0], CHAT, config)) != whole[:1]


def test_a_group_of_which_no_token_is_trained_on_leaves_no_number_free() -> None:
    refused = [played(0.0, turns=[turn(2, "bad_json")]), played(1.0, turns=[turn(3, "bad_json")])]
    groups = [[played(0.0), played(2.0)], refused, [played(0.0), played(4.0)]]
    found = collect(groups, CHAT, config_of(mask_invalid_actions=True)).groups
    assert [group.number for group in found] == [0, 1]


def test_a_difficulty_part_that_nothing_is_paid_in_is_refused_by_name() -> None:
    group = [played(0.0, parts={"iou": 0.0}), played(2.0, parts={"iou": 1.0})]
    with pytest.raises(TrainingStopped, match="such as reward/iuo; found parts .'reward/iou', 'reward/total'"):
        collect([group], CHAT, config_of(difficulty_part="iuo"))
