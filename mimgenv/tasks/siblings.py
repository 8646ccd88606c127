"""More questions about the images of a task: dense supervision for a cold start, at no extra image.

A sibling's id is the id of its base task with `+k`. Its target is unique because its label occurs once in the named
image; only the annotations of the base task are used, so photographs have siblings too.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from mimgenv.types import Grounding, ObjectAnnotation, Task


def siblings(task: Task) -> tuple[Task, ...]:
    """One `locate` task per object whose label occurs once in its image, in image order."""
    found: list[tuple[int, ObjectAnnotation]] = []
    for image, objects in enumerate(task.objects, 1):
        labels = Counter(thing.label for thing in objects)
        found += [(image, thing) for thing in objects if labels[thing.label] == 1]
    return tuple(
        replace(
            task,
            task_id=f"{task.task_id}+{number}",
            task_type="locate",
            question=f"Find the {thing.label} in Image-{image}.",
            truth=Grounding(image, thing.label, thing.box),
            rationale=thing.label,
            named_image=image,
        )
        for number, (image, thing) in enumerate(found)
    )
