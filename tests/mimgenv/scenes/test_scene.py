"""The records of a scene."""

from __future__ import annotations

import numpy as np
import pytest

from mimgenv.scenes.scene import Frame, Kind


@pytest.mark.parametrize(
    ("kind", "label"),
    [(Kind("circle", "red"), "red circle"), (Kind("cube", "blue", "metal"), "blue metal cube")],
)
def test_a_label_is_colour_material_and_shape_as_far_as_there_are_any(kind: Kind, label: str) -> None:
    assert kind.label == label


def test_a_frame_has_a_visibility_for_every_box() -> None:
    pixels, instances = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.int16)
    assert Frame(pixels, instances, (None,), (0.0,)).boxes == (None,)
    with pytest.raises(ValueError, match="1 boxes, 2 visibilities"):
        Frame(pixels, instances, (None,), (0.0, 1.0))
