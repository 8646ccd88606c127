"""Reasoning made from a task's annotations: what is in each image, what is the same in several, what is sought where.

Whole, or only about what is sought, for a model too small to list all it sees. Owns the forms of the sentences and
their check. Knows no task type, world or tool: `Task.objects` and the truth are all it reads, and an image without
annotations is passed over. It reconstructs the trajectories of MIRG-RL (arXiv 2509.21788), which join object-level and
image-level annotations; the paper's own form is not public.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeAlias

from mimgenv.errors import TaskError
from mimgenv.types import Grounding, ObjectAnnotation, Task

Facts: TypeAlias = Mapping[tuple[int, ...], Counter[str]]
"""Numbers of images to labels as they are written: of one image all its objects, of several those that they share."""

_PLAIN: Final = r"[^\W\d]+(?:[ -][^\W\d]+)*"
_LABEL: Final = rf'(?:{_PLAIN}|"(?:[^"\\]|\\.)*")'
_COUNT: Final = r"(?:[2-9]|[1-9][0-9]{1,3})"
_THING: Final = rf"(?:{_COUNT} )?{_LABEL}"
_IMAGE: Final = r"Image-[0-9]{1,4}"
THINGS: Final = re.compile(rf"({_IMAGE}(?: = {_IMAGE})*): ({_THING}(?:, {_THING})*)")
"""`Image-1: red circle, 2 blue square` lists an image; `Image-1 = Image-2: red circle` says what is one object."""
TARGET: Final = re.compile(rf"{_LABEL}: {_LABEL}")
"""`red: red circle` says what is sought: its first word, then all of them."""
PLACES: Final = re.compile(rf"({_LABEL}): ({_IMAGE}(?:, {_IMAGE})*)")
"""`red circle: Image-1, Image-3` says which images show what is sought."""
_COUNTED: Final = re.compile(rf"(?:({_COUNT}) )?({_LABEL})")


def reasoning(task: Task) -> str:
    """One sentence a line: each image's objects from left to right, the objects that images share, the target.

    An object is shared where its identity and its label are. A label of more than words is written in quotes. The
    text is empty where nothing is annotated and nothing is to be found.

    Raises:
        TaskError: If `check_reasoning` finds a fault: the annotations and the truth contradict each other.
    """
    lines = [f"{_name(images)}: {_listed(labels)}" for images, labels in _facts(task).items()]
    return _checked("\n".join([*lines, *_target(task)]), task, check_reasoning)


def places(task: Task) -> str:
    """In which images what is sought is, and what it is: two lines. Empty where nothing is to be found.

    Raises:
        TaskError: If `check_places` finds a fault: the annotations and the truth contradict each other.
    """
    return _checked("\n".join([*_places(task), *_target(task)]), task, check_places)


def _checked(text: str, task: Task, check: Callable[[str, Task], list[str]]) -> str:
    faults = check(text, task)
    if faults:
        raise TaskError(f"{task.task_id}: no reasoning without a fault: {'; '.join(faults)}")
    return text


def check_places(text: str, task: Task) -> list[str]:
    """The faults of what `places` says: every sentence is read back and held against the annotations.

    What is sought must be said to be in exactly those images that are annotated with it, once, and be named.
    """
    faults: list[str] = []
    targets, told = list[str](), Counter[str]()
    for line in text.split("\n") if text else ():
        if sentence := PLACES.fullmatch(line):
            told[sentence[1]] += 1
            faults += _faults_of_place(sentence[1], [int(number) for number in re.findall("[0-9]+", sentence[2])], task)
        else:
            targets.append(line)
    sought = Counter([_written(task.truth.label)] if isinstance(task.truth, Grounding) else [])
    if told != sought:
        faults.append(f"places of {dict(told)} said, {dict(sought)} is sought")
    return [*faults, *_faults_of_target(targets, task)]


def check_reasoning(text: str, task: Task) -> list[str]:
    """The faults of a reasoning: every sentence is read back and held against the annotations. Empty if there is none.

    Each image that is annotated must be listed once with exactly its objects, exactly the shared objects must be said
    to be shared, and the target must be named if there is one. No sentence may be of another form.
    """
    faults, said, targets = [], dict[tuple[int, ...], Counter[str]](), []
    for line in text.split("\n") if text else ():
        if sentence := THINGS.fullmatch(line):
            images = tuple(int(number) for number in re.findall("[0-9]+", sentence[1]))
            said.setdefault(images, Counter()).update(_counts(sentence[2]))
        elif TARGET.fullmatch(line):
            targets.append(line)
        else:
            faults.append(f"{line!r} is a sentence of no known form")
    return [*faults, *_faults_of_things(said, task), *_faults_of_target(targets, task)]


def _facts(task: Task) -> Facts:
    shown = {number: sorted(objects, key=_from_left) for number, objects in enumerate(task.objects, start=1) if objects}
    facts: dict[tuple[int, ...], Counter[str]] = {
        (number,): Counter(_written(thing.label) for thing in things) for number, things in shown.items()
    }
    seen: dict[tuple[int, str], list[int]] = {}
    for number, things in shown.items():
        for identity, label in dict.fromkeys((thing.identity, thing.label) for thing in things):
            if identity is not None:
                seen.setdefault((identity, label), []).append(number)
    for (_, label), numbers in seen.items():
        if len(numbers) > 1:
            facts.setdefault(tuple(numbers), Counter())[_written(label)] += 1
    return facts


def _from_left(thing: ObjectAnnotation) -> tuple[float, float]:
    x1, y1, x2, y2 = thing.box
    return x1 + x2, y1 + y2


def _written(label: str) -> str:
    return label if re.fullmatch(_PLAIN, label) else json.dumps(label, ensure_ascii=False)


def _name(images: tuple[int, ...]) -> str:
    return " = ".join(f"Image-{number}" for number in images)


def _listed(labels: Counter[str]) -> str:
    return ", ".join(label if count == 1 else f"{count} {label}" for label, count in labels.items())


def _target(task: Task) -> list[str]:
    if not isinstance(task.truth, Grounding):
        return []
    label = task.truth.label
    return [f"{_written(label.split()[0])}: {_written(label)}"]


def _places(task: Task) -> list[str]:
    if not isinstance(task.truth, Grounding):
        return []
    label = _written(task.truth.label)
    images = sorted(_annotated(label, task)) or [task.truth.image]
    return [f"{label}: {', '.join(f'Image-{number}' for number in images)}"]


def _annotated(written: str, task: Task) -> set[int]:
    """Numbers of the images with an object of a label, as it is written."""
    return {number for number, things in enumerate(task.objects, 1) if written in {_written(o.label) for o in things}}


def _counts(things: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for count, label in _COUNTED.findall(things):
        counts[label] += int(count or 1)
    return counts


def _faults_of_things(said: Facts, task: Task) -> Iterator[str]:
    facts, none = _facts(task), Counter[str]()
    for images in dict.fromkeys([*facts, *said]):
        outside = [number for number in images if not 1 <= number <= len(task.images)]
        if outside:
            yield f"{_name(images)} is said, there are images 1 to {len(task.images)}"
            continue
        true, claimed = facts.get(images, none), said.get(images, none)
        for label in dict.fromkeys([*true, *claimed]):
            if true[label] != claimed[label]:
                yield f"{_name(images)}: {claimed[label]} {label} said, {true[label]} annotated"


def _faults_of_place(written: str, images: list[int], task: Task) -> Iterator[str]:
    """Images said to show a thing and those annotated with it; where none is, the truth's own is right."""
    true = _annotated(written, task)
    if not true and isinstance(task.truth, Grounding):
        true = {task.truth.image}
    if images != sorted(set(images)):
        yield f"images {images} of {written} are not in order, each once"
    for number in sorted({*images} ^ true):
        yield f"Image-{number}: {written} is {'said' if number in images else 'annotated'} alone"


def _faults_of_target(targets: list[str], task: Task) -> Iterator[str]:
    if targets != _target(task):
        yield f"targets {targets} said, {_target(task)} true"
    if isinstance(task.truth, Grounding):
        things = task.objects[task.truth.image - 1]
        if things and task.truth.label not in {thing.label for thing in things}:
            yield f"the target {task.truth.label!r} is not annotated in Image-{task.truth.image}"
