"""What a trained model is worth: held-out episodes of every type on the ordinary and on the held-out split.

The last stage of every arm of a recipe. Writes `evaluation.json`: by split a row per task type, and one of all; and
`attention.json`: the share of attention that image tokens get over the length of the model's own text.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mimgenv.records import EpisodeRecord
from rl.config import EnvSettings, check_least

if TYPE_CHECKING:
    from agents.report import Row

EVALUATION: Final = "evaluation.json"
ATTENTION: Final = "attention.json"
SPLITS: Final = ("test", "test_ood")


@dataclass(frozen=True, slots=True)
class EvaluateConfig(EnvSettings):
    """How a model is evaluated.

    Attributes:
        start: The model, a directory or a hub name.
        output: Folder to write to.
        seed: Of sampling.
        episodes: Of each split.
        temperature: Of sampling; 0 for greedy.
        max_turn_tokens: Longest turn.
        constrain_actions: Sample under the turn grammar.
        attention_episodes: Episodes whose attention to images is measured; 0 for none.
        parallel: Most episodes under way at a time.
        device, dtype: Of the model.
    """

    start: str = "tiny"
    output: str = "runs/evaluation"
    seed: int = 0
    episodes: int = 560
    temperature: float = 0.0
    max_turn_tokens: int = 24
    constrain_actions: bool = False
    attention_episodes: int = 60
    parallel: int = 128
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_least(self, {"episodes": 1, "attention_episodes": 0, "max_turn_tokens": 1, "parallel": 1})


def evaluate(config: EvaluateConfig) -> Mapping[str, Any]:
    """Plays the held-out episodes, writes both files, and returns what `evaluation.json` holds."""
    from agents.by_name import agent_by_name
    from agents.evaluate import evaluate_agent
    from agents.gaze import attention_by_position, image_attention
    from agents.rollout import open_env

    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    arguments = config.env_arguments(evaluation=True)
    agent: Any = agent_by_name(
        f"vlm:{config.start}",
        open_env(config.env, arguments),
        seed=config.seed,
        temperature=config.temperature,
        max_tokens=config.max_turn_tokens,
        device=config.device,
        dtype=config.dtype,
        constrain=config.constrain_actions,
    )
    found: dict[str, Any] = {}
    for split in SPLITS if "source" not in arguments else SPLITS[:1]:
        given = {"split": split, "parallel": config.parallel, "blind_episodes": 0, **arguments}
        report = evaluate_agent(agent, config.env, config.episodes, **given)
        found[split] = {"rows": {row.name: _figures(row, report.tools) for row in report.rows}}
        found[split]["all"] = _figures(report.all, report.tools) | _with_and_without(report.records)
        if split == SPLITS[0] and config.attention_episodes:
            measured = image_attention(agent.sampler.qwen, report.trajectories[: config.attention_episodes])
            (folder / ATTENTION).write_text(json.dumps(asdict(attention_by_position(measured))))
    (folder / EVALUATION).write_text(json.dumps(found, indent=1))
    return found


def _with_and_without(records: Sequence[EpisodeRecord]) -> dict[str, float]:
    """Shares of right answers among episodes with a tool call and without; left out where there is no such episode."""
    parted = {
        "success_with_call": [record.success for record in records if record.tool_calls],
        "success_without_call": [record.success for record in records if not record.tool_calls],
    }
    return {name: statistics.fmean(right) for name, right in parted.items() if right}


def _figures(row: Row, tools: Sequence[str]) -> dict[str, Any]:
    return {
        "episodes": row.episodes,
        "score": row.score.mean,
        "success": row.success,
        "reward": row.reward.mean,
        "reward_parts": dict(row.reward_parts),
        "tool_calls": {tool: row.tool_calls.get(tool, 0.0) for tool in tools},
        "turns": row.turns,
    }
