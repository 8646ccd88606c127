"""mimgenv: the Gymnasium environment for vision agents that must look at several images.

    >>> import gymnasium as gym, mimgenv
    >>> env = gym.make("MultiImageQA-v0")

Importing it registers the ids below. Names are exported lazily, so that the import is light.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import gymnasium as gym

_TINY: Final = {"world": "tiny", "instructions": "none", "max_pixels": 84 * 84, "max_tokens": 64, "max_images": 6}

ENVIRONMENTS: Final[dict[str, dict[str, Any]]] = {
    "MultiImageQA-v0": {},
    "MultiImageGrounding-v0": {"tasks": "grounding"},
    "MultiImageTiny-v0": {**_TINY, "max_turns": 2, "tools": ()},
    "MultiImageTinyZoom-v0": {
        **_TINY,
        "tasks": ("referring",),
        "difficulty": 4,
        "max_turns": 2,
        "max_tokens": 128,
        "tools": ("zoom",),
    },
    **{
        f"mimg/{name}-v0": {"tasks": (task_type,)}
        for name, task_type in {
            "StaticDifference": "static_difference",
            "Referring": "referring",
            "GroupGrounding": "group_grounding",
            "Locate": "locate",
            "OddOneOutGrounding": "odd_one_out",
            "OddOneOut": "odd_one_out_qa",
            "Counting": "counting",
            "CommonObject": "common_object",
            "RegionLocating": "region_locating",
            "Reasoning": "reasoning",
            "Jigsaw": "jigsaw",
            "Similarity": "similarity",
            "Comparison": "comparison",
            "TemporalOrder": "temporal_order",
            "RobustDifference": "robust_difference",
            "RobustDifferenceQA": "robust_difference_qa",
            "ObjectTracking": "object_tracking",
            "MultiView": "multi_view",
            "Correspondence": "correspondence",
            "VisualCorrespondence": "visual_correspondence",
            "Forensic": "forensic",
        }.items()
    },
}
"""Every id, with what it sets; any argument may be given anew to `gym.make`."""

_EXPORTS: Final = {
    "BlankImages": "mimgenv.wrappers",
    "Codec": "mimgenv.codec",
    "Curriculum": "mimgenv.curriculum",
    "default_codec": "mimgenv.codec",
    "FixedArrays": "mimgenv.tokens",
    "Grounding": "mimgenv.types",
    "load_task": "mimgenv.tasks.registry",
    "MultiImageEnv": "mimgenv.env",
    "PrefetchedTasks": "mimgenv.tasks.prefetch",
    "REWARDS": "mimgenv.rewards",
    "ShuffleImages": "mimgenv.wrappers",
    "siblings": "mimgenv.tasks.siblings",
    "SwapImages": "mimgenv.wrappers",
    "Task": "mimgenv.types",
    "TextActions": "mimgenv.wrappers",
    "TextAnswer": "mimgenv.types",
    "TokenActions": "mimgenv.tokens",
    "Tool": "mimgenv.tools",
}

__all__ = ["ENVIRONMENTS", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'mimgenv' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


for _id, _arguments in ENVIRONMENTS.items():
    gym.register(_id, entry_point="mimgenv.env:MultiImageEnv", kwargs=_arguments)
