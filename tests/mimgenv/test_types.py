"""The records: what does not fit together cannot be made."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from mimgenv.types import Grounding, Task, TextAnswer

PIXELS = np.zeros((28, 28, 3), np.uint8)


def made(**fields: Any) -> Task:
    defaults: dict[str, Any] = {"images": (PIXELS, PIXELS), "truth": TextAnswer("1"), "objects": ((), ())}
    texts = {"task_id": "made:1", "task_type": "made", "question": "?", "rationale": "why"}
    return Task(**(texts | defaults | fields))


def test_a_task_has_one_list_of_objects_per_image() -> None:
    assert len(made().objects) == 2
    with pytest.raises(ValueError, match="2 images, 1 object lists"):
        made(objects=((),))


@pytest.mark.parametrize("image", [0, 3, -1])
def test_the_truth_lies_in_one_of_the_images(image: int) -> None:
    assert made(truth=Grounding(2, "a", (0.0, 0.0, 1.0, 1.0))).truth
    with pytest.raises(ValueError, match=f"truth in image {image} of 2"):
        made(truth=Grounding(image, "a", (0.0, 0.0, 1.0, 1.0)))


def test_records_are_frozen_so_that_a_task_can_be_shared() -> None:
    with pytest.raises(FrozenInstanceError):
        made().question = "another"  # type: ignore[misc]
