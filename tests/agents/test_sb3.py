"""Policies of single tokens: the agent sees what the policy was trained on, and plays like any other agent."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.evaluate import evaluate_agent
from agents.evaluate import main as evaluate
from agents.rollout import run_episodes
from agents.sb3_agent import LABEL, SB3Agent, Settings, answer_pieces, codec_of_pieces, survey
from agents.types import Budget, History, Message, Trajectory
from mimgenv.errors import ConfigurationError
from mimgenv.parsing import parse_turn

EASY: dict[str, Any] = {"tasks": ("locate",), "difficulty": 1}
PAIRS: dict[str, Any] = {"tasks": ("referring",), "difficulty": 1}


@pytest.fixture(scope="module")
def sb3() -> Any:
    pytest.importorskip("sb3_contrib", reason="pip install 'mimgenv[sb3]'")
    return importlib.import_module("agents.sb3")


class Recorder:
    """A model that chooses at random among what is legal, and keeps what it was shown."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.shown: list[dict[str, np.ndarray]] = []
        self.masks: list[np.ndarray] = []

    def predict(self, batch: dict[str, np.ndarray], deterministic: bool, action_masks: np.ndarray) -> tuple[Any, None]:
        assert deterministic
        for row, mask in enumerate(action_masks):
            self.shown.append({key: array[row] for key, array in batch.items()})
            self.masks.append(mask)
        return np.array([self.rng.choice(np.flatnonzero(mask)) for mask in action_masks]), None


def raw(observation: dict[str, np.ndarray]) -> dict[str, tuple[Any, ...]]:
    return {key: (array.dtype.str, array.shape, array.tobytes()) for key, array in observation.items()}


def play(agent: SB3Agent, seeds: Sequence[int]) -> list[Trajectory]:
    return run_episodes(agent, agent.settings.env, seeds, **agent.settings.arguments)


# Vocabulary and settings


def test_a_codec_of_pieces_has_an_id_for_each_piece_and_none_for_other_text() -> None:
    codec = codec_of_pieces(["red", " cup", "7, "])
    assert codec.vocab_size == 4
    assert codec.decode(codec.encode("a red cup at 7, 8")) == "red cup7, "
    assert codec.encode_turn("red") == (*codec.encode("red"), codec.end_ids[0])


def test_a_box_on_the_lattice_is_written_in_few_pieces() -> None:
    codec = codec_of_pieces(answer_pieces(2, 28, 14))
    for image, box in ((1, [0, 14, 28, 28]), (2, [14, 0, 28, 14])):
        answer = json.dumps({"image": image, "label": LABEL, "bbox_2d": box})
        turn = f"<think></think><answer>{answer}</answer>"
        assert codec.decode_turn(codec.encode_turn(turn)) == turn
        assert len(codec.encode_turn(turn)) == 10


def test_settings_hold_what_the_first_tasks_show() -> None:
    settings = survey("masked", "MultiImageTiny-v0", PAIRS, 7)
    assert (settings.layout.images, settings.layout.height, settings.layout.width) == (2, 84, 84)
    assert settings.layout.vocab_size == len(settings.pieces) + 1
    assert {"Image-1", "Image-2", "84]}</answer>"} <= set(settings.pieces)
    assert {"red", "circle"} <= set(survey("masked", "MultiImageTiny-v0", EASY, 7).pieces)
    assert [piece for piece in settings.pieces if len(piece) == 1] == [LABEL]
    assert settings.arguments == {"max_turns": 1, "tools": (), "max_images": 2, **PAIRS}


def test_settings_are_read_as_they_were_written(tmp_path: Path) -> None:
    settings = survey("plain", "MultiImageTiny-v0", EASY, 14)
    settings.write(tmp_path / "settings.json")
    read = Settings.read(tmp_path / "settings.json")
    assert replace(read, arguments={}) == replace(settings, arguments={})
    assert json.dumps(read.arguments) == json.dumps(settings.arguments)


def test_questions_that_want_a_text_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="counting wants a text answer"):
        survey("masked", "MultiImageTiny-v0", {"tasks": ("counting",)}, 7)
    with pytest.raises(ConfigurationError, match="CartPole-v1 cannot be made"):
        survey("masked", "CartPole-v1", {}, 7)


# What the agent sees


def test_the_agent_sees_exactly_the_arrays_and_masks_of_the_environment_it_was_trained_in(sb3: Any) -> None:
    settings = survey("masked", "MultiImageTiny-v0", PAIRS | {"max_turns": 2}, 7)
    model = Recorder()
    agent = SB3Agent(settings, model)
    env, compared, second = sb3.make_env(settings, agent.codec), 0, 0
    for seed in range(12):
        model.shown.clear()
        model.masks.clear()
        (trajectory,) = play(agent, [seed])
        observation, _ = env.reset(seed=seed)
        shown = zip(model.shown, model.masks, strict=True)
        for turn in trajectory.turns:
            played = len(env.get_wrapper_attr("turns"))
            while len(env.get_wrapper_attr("turns")) == played:
                seen, mask = next(shown)
                assert raw(seen) == raw(observation)
                np.testing.assert_array_equal(mask, env.action_masks())
                observation, _, ended, _, _ = env.step(turn.action.ids[observation["lengths"][2]])
                compared += 1
            assert env.get_wrapper_attr("turns")[-1] == turn.action.ids
        assert ended
        assert next(shown, None) is None
        second += len(trajectory.turns) == 2
    assert compared > 60
    assert second > 2  # inverted boxes: the text of a second turn holds the first, and its error


def test_episodes_side_by_side_are_played_as_they_are_one_by_one() -> None:
    class Largest(Recorder):
        def predict(self, batch: Any, deterministic: bool, action_masks: np.ndarray) -> tuple[Any, None]:
            weights = np.arange(action_masks.shape[1]) * (1 + batch["image_1"].sum((1, 2, 3))[:, None] % 5)
            return np.argmax((weights % 11 + 1) * action_masks, axis=1), None

    agent = SB3Agent(survey("masked", "MultiImageTiny-v0", EASY, 7), Largest())
    together = play(agent, range(8))
    apart = [play(agent, [seed])[0] for seed in range(8)]
    assert [t.turns[0].action for t in together] == [t.turns[0].action for t in apart]
    assert len({t.turns[0].action for t in together}) > 1


def test_every_turn_under_masks_is_carried_out_unless_its_box_is_inverted() -> None:
    agent = SB3Agent(survey("masked", "MultiImageTiny-v0", PAIRS, 7), Recorder())
    errors = {trajectory.turns[0].error for trajectory in play(agent, range(60))}
    assert errors == {None, "bad_box"}


def test_more_images_than_the_policy_was_trained_on_are_refused() -> None:
    agent = SB3Agent(survey("masked", "MultiImageTiny-v0", EASY, 7), Recorder())
    blank = np.zeros((84, 84, 3), np.uint8)
    message = Message("Image-1: <image>\nImage-2: <image>", (blank, blank))
    with pytest.raises(ConfigurationError, match="2 images, the policy was trained on 1"):
        agent.act([History("made:1", (), message, Budget(1, 64, 0))])


def test_a_policy_without_masks_writes_what_it_likes_and_its_turns_end() -> None:
    class Stubborn:
        def predict(self, batch: dict[str, np.ndarray], deterministic: bool) -> tuple[Any, None]:
            return np.full(len(batch["turn"]), 9), None

    agent = SB3Agent(survey("plain", "MultiImageTiny-v0", EASY, 7), Stubborn())
    (trajectory,) = play(agent, [0])
    action = trajectory.turns[0].action
    assert (len(action.ids), action.finish_reason, trajectory.stop) == (16, "length", "void")


# Training


def test_a_trained_policy_is_loaded_as_it_was_and_plays_through_evaluate(
    sb3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, told = survey("masked", "MultiImageTiny-v0", EASY, 7), []
    agent = sb3.train(settings, 1200, 0, tmp_path, lambda step, reward: told.append((step, reward)), n_steps=16)
    assert told
    assert all(step <= 1600 and 0 <= reward <= 1.5 for step, reward in told)
    loaded = SB3Agent.load(tmp_path)
    actions = [[each.turns[0].action for each in play(one, range(10))] for one in (agent, loaded)]
    assert actions[0] == actions[1]
    command = ["--agent", f"sb3:{tmp_path}", "--env", "MultiImageTiny-v0", "--tasks", "locate", "--difficulty", "1"]
    evaluate([*command, "--episodes", "6", "--output", str(tmp_path / "out")])
    assert "locate" in capsys.readouterr().out
    assert len((tmp_path / "out" / "episodes.jsonl").read_text().splitlines()) == 6
    with pytest.raises(SystemExit):
        evaluate([*command, "--episodes", "6", "--box_frame", "unit"])
    assert "writes boxes as pixel, not as unit" in capsys.readouterr().err


def test_the_same_seed_trains_the_same_policy(sb3: Any) -> None:
    settings = survey("masked", "MultiImageTiny-v0", EASY, 7)
    policies = [sb3.train(settings, 600, seed, n_steps=8).model.policy.state_dict() for seed in (0, 0, 1)]
    first, again, other = ({key: value.tolist() for key, value in policy.items()} for policy in policies)
    assert first == again
    assert first != other


@pytest.mark.parametrize("algorithm", ["masked", "plain"])
def test_the_command_trains_either_algorithm(sb3: Any, algorithm: str, tmp_path: Path) -> None:
    sb3.main(
        ["--algorithm", algorithm, "--difficulty", "1", "--steps", "64", "--episodes", "3", "--output", str(tmp_path)]
    )
    agent = SB3Agent.load(tmp_path)
    assert type(agent.model).__name__ == {"masked": "MaskablePPO", "plain": "PPO"}[algorithm]
    report = evaluate_agent(agent, "MultiImageTiny-v0", 10, **EASY)
    assert (report.all.reward_parts["format"] == 0) == (algorithm == "plain")
    assert len((tmp_path / "episodes.jsonl").read_text().splitlines()) == 3


def test_the_command_says_in_a_line_what_is_wrong(sb3: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sb3.main(["--tasks", "counting"])
    assert "counting wants a text answer" in capsys.readouterr().err


def test_what_a_budget_cuts_is_worth_what_was_paid_and_no_more(sb3: Any) -> None:
    settings = survey("masked", "MultiImageTiny-v0", EASY, 7)
    codec = codec_of_pieces(settings.pieces)
    env = sb3.make_env(settings, codec)
    env.reset(seed=0)
    while True:
        _, reward, terminated, truncated, info = env.step(int(np.argmax(env.action_masks())))
        if terminated or truncated:
            break
    assert (info["error"], info["stop"], reward) == ("bad_box", "void", 0.0)  # all zeros: an empty box
    assert (terminated, truncated) == (True, False)


def test_every_image_slot_is_read_by_one_encoder_and_every_array_it_needs_matters(sb3: Any) -> None:
    import torch

    from agents.sb3_network import EpisodeFeatures

    sizes = {}
    for name, arguments in (("one", EASY), ("two", PAIRS)):
        settings = survey("masked", "MultiImageTiny-v0", arguments, 7)
        env = sb3.make_env(settings, codec_of_pieces(settings.pieces))
        space = transposed(env.observation_space)
        torch.manual_seed(0)
        features = EpisodeFeatures(space)
        sizes[name] = sum(weight.numel() for weight in features.image.parameters())
        observation, _ = env.reset(seed=1)
        batch = {key: torch.as_tensor(array)[None] for key, array in observation.items()}
        batch |= {key: array.permute(0, 3, 1, 2) / 255 for key, array in batch.items() if key.startswith("image")}
        plain = features(batch)
        changed = {key: features(batch | {key: batch[key] * 0}) for key in batch}
        moved = {key: bool((plain != features_).any()) for key, features_ in changed.items()}
        assert {key for key, moves in moved.items() if moves} == set(batch) - {"sizes", "lengths"}
    assert sizes["one"] == sizes["two"]


def transposed(space: Any) -> Any:
    """The space as Stable-Baselines3 hands it to a network: channels first."""
    from gymnasium import spaces

    return spaces.Dict(
        {
            key: spaces.Box(0, 255, (3, *box.shape[:2]), np.uint8) if key.startswith("image") else box
            for key, box in space.spaces.items()
        }
    )


@pytest.mark.slow
def test_masked_ppo_learns_to_look(sb3: Any) -> None:
    settings = survey("masked", "MultiImageTiny-v0", EASY, 7)
    agent = sb3.train(settings, 70_000)
    row = evaluate_agent(agent, "MultiImageTiny-v0", 200, **EASY).all
    assert row.reward_parts["format"] > 0.95
    assert row.score.mean - row.score.half_width > 0.15  # what no blind policy reaches
    assert row.sees is not None
    assert row.sees.mean - row.sees.half_width > 0.05


# Imports


def test_the_agent_is_imported_without_torch() -> None:
    code = "import sys, agents.sb3_agent; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "stable_baselines3", "sb3_contrib"} & {name.partition(".")[0] for name in loaded}


@pytest.mark.parametrize("missing", ["stable_baselines3", "sb3_contrib"])
def test_where_a_package_is_missing_the_error_names_the_extra(missing: str) -> None:
    code = f"import sys; sys.modules['{missing}'] = None; import agents.sb3"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode != 0
    assert "pip install 'mimgenv[sb3]'" in result.stderr


def test_a_label_of_one_piece_leaves_nothing_to_decide_but_image_and_box() -> None:
    model = Recorder()
    agent = SB3Agent(survey("masked", "MultiImageTiny-v0", PAIRS, 7), model)
    (trajectory,) = play(agent, [0])
    assert len(model.shown) == 5
    parsed: Any = parse_turn(agent.codec.decode_turn(trajectory.turns[0].action.ids))
    assert f'"label": "{LABEL}"' in parsed.text
