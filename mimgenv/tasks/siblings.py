"""More questions about the images of a task: dense supervision for a cold start, at no extra image.

A sibling's id is the id of its base task with `+k`. Its target is unique because its label occurs once where the
question looks; only the annotations of the base task are used, so photographs have siblings too.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from mimgenv.types import Grounding, ObjectAnnotation, Task


def siblings(task: Task) -> tuple[Task, ...]:
    """Questions about other objects of the same images, in an order drawn from the task's id.

    First those that leave something to be found: what the only object of an image is (`locate`), or which image an
    object that occurs once in all of them is in (`group_grounding`). Then those that say which object in which image
    (`locate`), for every object whose label occurs once in its image.
    """
    things = [(image, thing) for image, objects in enumerate(task.objects, 1) for thing in objects]
    here = Counter((image, thing.label) for image, thing in things)
    anywhere = Counter(thing.label for _, thing in things)
    several = len(task.images) > 1
    alone = [_locate(task, *pair, "object") for pair in things if len(task.objects[pair[0] - 1]) == 1]
    grouped = [_group(task, *pair) for pair in things if several and anywhere[pair[1].label] == 1]
    told = [_locate(task, *pair, pair[1].label) for pair in things if here[pair[0], pair[1].label] == 1]
    rng = np.random.default_rng(list(task.task_id.encode()))
    family = [some[index] for some in (alone + grouped, told) for index in rng.permutation(len(some))]
    return tuple(replace(sibling, task_id=f"{task.task_id}+{number}") for number, sibling in enumerate(family))


def _locate(task: Task, image: int, thing: ObjectAnnotation, name: str) -> Task:
    return replace(_about(task, image, thing, f"Find the {name} in Image-{image}."), task_type="locate")


def _group(task: Task, image: int, thing: ObjectAnnotation) -> Task:
    question = f"Find the image with the {thing.label}, and where it is."
    return replace(_about(task, image, thing, question), task_type="group_grounding", named_image=None)


def _about(task: Task, image: int, thing: ObjectAnnotation, question: str) -> Task:
    truth = Grounding(image, thing.label, thing.box)
    return replace(task, question=question, truth=truth, rationale=thing.label, named_image=image)
