"""Reasoning: find the object that a rule across images asks for (MIG-Bench `reasoning`).

Three rules take turns. Sequence: the objects of the images before follow a cycle of colours and shapes; which object of
the last image goes on with it? Count: which object of the last image has the colour that occurs most often, or so many
times, in the images before? Use: which image shows what serves a purpose (where the things of a world have one)?

Difficulty: how colours and shapes cycle and how much of it is shown, how colours are to be counted and in how many
images, how many look-alikes the target has, and number, size and overlap of things (the world's).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from mimgenv.errors import TaskError
from mimgenv.scenes.scene import Kind, Scene, World
from mimgenv.scenes.sprites.world import USES
from mimgenv.tasks.draft import Draft, TaskType, Wording, draw_count, draw_kinds, draw_lead, draw_others
from mimgenv.tasks.program import Found, Query, only, things_of

# Sequence

GOES_ON: Final = Wording(
    (
        "The objects of the images before Image-{last} follow a rule. Find in Image-{last} the one that comes next.",
        "Image after image shows one object. Which object of Image-{last} goes on with this series?",
        "Look how the objects repeat from image to image. Locate the next object in Image-{last}.",
    ),
    (
        "A pattern runs through the images. Box what continues it in Image-{last}.",
        "Had the series one more image, what would it show? Give its bounding box in Image-{last}.",
    ),
)
LONGEST: Final = 3
"""Nothing is thought to repeat after more images than these."""
TRIES: Final = 300
"""Cycles tried for one sequence."""


@dataclass(frozen=True, slots=True)
class Cycles:
    """What makes a sequence hard.

    Attributes:
        lengths: After how many images colours and shapes may repeat; 1 is always the same.
        more: Least and most images shown beyond one round of the longer cycle.
    """

    lengths: tuple[tuple[int, int], ...]
    more: tuple[int, int]


CYCLES: Final[dict[int | None, Cycles]] = {
    1: Cycles(((2, 1),), (2, 2)),
    2: Cycles(((2, 1), (1, 2)), (1, 2)),
    3: Cycles(((3, 1), (1, 3), (2, 2)), (1, 2)),
    4: Cycles(((3, 1), (2, 2), (3, 3)), (1, 2)),
    5: Cycles(((2, 3), (3, 2), (3, 3)), (1, 1)),
    None: Cycles(((2, 1), (1, 2), (3, 1), (2, 2), (2, 3), (3, 3)), (1, 2)),
}


@dataclass(frozen=True, slots=True)
class Next(Query):
    """All things of the last image that go on with the sequence of the only things of the images before."""

    def find(self, scenes: Sequence[Scene]) -> tuple[Found, ...]:
        """See `Query`.

        Raises:
            TaskError: If an attribute follows no cycle, or cycles that go on in different ways.
        """
        shown = [only(scene.things).kind for scene in scenes[:-1]]
        wanted = Kind(*(only(continuations(values)) for values in zip(*map(_parts, shown), strict=True)))
        return tuple(where for where, thing in things_of(scenes, (len(scenes),)) if thing.kind == wanted)


def continuations(values: Sequence[str]) -> tuple[str, ...]:
    """What may come next, by each cycle of up to `LONGEST` values that fits and is shown for more than a round."""
    lengths = range(1, min(LONGEST, len(values) - 1) + 1)
    fitting = [length for length in lengths if all(a == b for a, b in zip(values, values[length:], strict=False))]
    return tuple(dict.fromkeys(values[-length] for length in fitting))


def sequence(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """One object per image in a cycle; the last image shows candidates."""
    *before, target = _draw_cycle(world, rng, CYCLES[difficulty])
    last = len(before) + 1
    scenes = [world.arrange(rng, (kind,), difficulty, number) for number, kind in enumerate(before)]
    count = max(1, draw_count(world, rng, difficulty) - 1)
    rivals = [kind for kind in dict.fromkeys(before) if kind != target][:count]
    others = draw_others(world, rng, target, before, count - len(rivals), difficulty)
    kinds = _shuffled(rng, (target, *rivals, *others))
    scenes.append(world.arrange(rng, kinds, difficulty, len(before)))
    rationale = "The {label} comes next."
    return Draft(tuple(scenes), GOES_ON, Next(), rationale, named_image=last, fields={"last": last})


def _draw_cycle(world: World, rng: np.random.Generator, knobs: Cycles) -> list[Kind]:
    """Kinds of one material whose colours and shapes repeat as the knobs say: those shown, and the next.

    Raises:
        TaskError: If none were found: a world need not have every shape in every colour.
    """
    shapes, colours, materials = (sorted(set(part)) for part in zip(*map(_parts, world.kinds), strict=True))
    for _ in range(TRIES):
        lengths = knobs.lengths[rng.integers(len(knobs.lengths))]
        shown = max(lengths) + int(rng.integers(knobs.more[0], knobs.more[1] + 1))
        hues, forms = rng.permutation(colours)[: lengths[0]], rng.permutation(shapes)[: lengths[1]]
        material = materials[rng.integers(len(materials))]
        pairs = [(forms[place % lengths[1]], hues[place % lengths[0]]) for place in range(shown + 1)]
        kinds = [Kind(str(form), str(hue), material) for form, hue in pairs]
        if set(kinds) <= set(world.kinds):
            return kinds
    raise TaskError("no kinds were found that follow a cycle")


def _parts(kind: Kind) -> tuple[str, str, str]:
    return kind.shape, kind.colour, kind.material


# Count

COUNTED: Final = Wording(
    (
        "Find in Image-{last} the object whose colour occurs {often} in the images before it.",
        "Count the colours of all objects before Image-{last}. Which object of Image-{last} has the one shown {often}?",
        "One colour is shown {often} in the other images. Locate the object of that colour in Image-{last}.",
    ),
    (
        "Tally the colours in all images but the last. Box in Image-{last} the object with the one seen {often}.",
        "Among the objects of the other images, a colour turns up {often}. Which object of Image-{last} has it?",
    ),
)
OFTEN: Final = {None: "most often", 1: "exactly once", 2: "exactly twice", 3: "exactly three times"}
MOST: Final = 3
"""No colour is shown more often."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What makes counting hard.

    Attributes:
        images: Least and most images in which to count.
        lead: By how many objects the most frequent colour leads, least and most.
        exact: How likely it is that a number is asked for, not the most frequent colour.
    """

    images: tuple[int, int]
    lead: tuple[int, int]
    exact: float


COUNTS: Final[dict[int | None, Counts]] = {
    1: Counts((2, 2), (2, 2), 0),
    2: Counts((2, 3), (1, 2), 0),
    3: Counts((3, 3), (1, 2), 0.5),
    4: Counts((3, 4), (1, 1), 0.5),
    5: Counts((4, 4), (1, 1), 1),
    None: Counts((2, 4), (1, 2), 0.5),
}


@dataclass(frozen=True, slots=True)
class Tallied(Query):
    """All things of the last image whose colour occurs `times` in the images before; None is as often as any does."""

    times: int | None

    def find(self, scenes: Sequence[Scene]) -> tuple[Found, ...]:
        """See `Query`."""
        tally = Counter(thing.kind.colour for scene in scenes[:-1] for thing in scene.things)
        times = max(tally.values(), default=0) if self.times is None else self.times
        things = things_of(scenes, (len(scenes),))
        return tuple(where for where, thing in things if tally[thing.kind.colour] == times)


def count(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """Images of objects in the colours of the candidates; the last image shows these, each in a colour of its own."""
    knobs = COUNTS[difficulty]
    colours = len({kind.colour for kind in world.kinds})
    candidates = draw_kinds(rng, world.kinds, min(max(2, draw_count(world, rng, difficulty)), colours))
    counts, times = _draw_counts(rng, len(candidates), knobs)
    shown = [kind.colour for kind, number in zip(candidates, counts, strict=True) for _ in range(number)]
    room = world.counts(difficulty)[1]
    images = max(int(rng.integers(knobs.images[0], knobs.images[1] + 1)), math.ceil(len(shown) / room))
    images = min(images, len(shown))
    scenes: list[Scene] = []
    for part in np.array_split(rng.permutation(len(shown)), images):
        kinds = tuple(_coloured(world, rng, shown[place]) for place in part)
        scenes.append(world.arrange(rng, kinds, difficulty, sum(len(scene.things) for scene in scenes)))
    scenes.append(world.arrange(rng, candidates, difficulty, len(shown)))
    fields = {"last": images + 1, "often": OFTEN[times]}
    rationale = "Before, the colour of the {label} occurs {often}."
    return Draft(tuple(scenes), COUNTED, Tallied(times), rationale, named_image=images + 1, fields=fields)


def _draw_counts(rng: np.random.Generator, candidates: int, knobs: Counts) -> tuple[tuple[int, ...], int | None]:
    """How often the colour of each candidate is shown, and the number asked for; None for the greatest."""
    if rng.random() >= knobs.exact:
        return draw_lead(rng, candidates, knobs.lead, 1, MOST), None
    times = int(rng.integers(1, MOST + 1))
    others = [number for number in range(1, MOST + 1) if number != times]
    numbers = [times, *(others[place] for place in rng.integers(len(others), size=candidates - 1))]
    return tuple(int(number) for number in rng.permutation(numbers)), times


def _coloured(world: World, rng: np.random.Generator, colour: str) -> Kind:
    kinds = [kind for kind in world.kinds if kind.colour == colour]
    return kinds[rng.integers(len(kinds))]


# Use

SERVES: Final = Wording(
    (
        "In which image is something one can {use}? Find it there.",
        "You want something to {use}. Which image has it, and where?",
        "Only one object in these images is something one can {use}. Locate it.",
    ),
    (
        "Search the images for what people {use}, and box it.",
        "Somewhere in these images is a thing one can {use}. Give its image and its bounding box.",
    ),
)


@dataclass(frozen=True, slots=True)
class Serves(Query):
    """All things in `images` that one can use so."""

    images: tuple[int, ...]
    use: str

    def find(self, scenes: Sequence[Scene]) -> tuple[Found, ...]:
        """See `Query`."""
        things = things_of(scenes, self.images)
        return tuple(where for where, thing in things if USES.get(thing.kind.shape) == self.use)


def use(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """A group of images; what serves the purpose is in one of them, in any colour."""
    knobs = COUNTS[difficulty]
    images = int(rng.integers(knobs.images[0], knobs.images[1] + 1))
    target = world.kinds[rng.integers(len(world.kinds))]
    others = [kind for kind in world.kinds if kind.shape != target.shape]
    holder = int(rng.integers(images))
    scenes: list[Scene] = []
    for image in range(images):
        kinds = list(draw_kinds(rng, others, draw_count(world, rng, difficulty)))
        if image == holder:
            kinds[0] = target
        identity = sum(len(scene.things) for scene in scenes)
        scenes.append(world.arrange(rng, tuple(kinds), difficulty, identity))
    purpose = USES[target.shape]
    program = Serves(tuple(range(1, images + 1)), purpose)
    return Draft(tuple(scenes), SERVES, program, "The {label} is something one can {use}.", fields={"use": purpose})


def reasoning(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """A task by one of the rules."""
    useful = all(kind.shape in USES for kind in world.kinds)
    rules: tuple[TaskType, ...] = (sequence, count, use) if useful else (sequence, count)
    return rules[rng.integers(len(rules))](world, rng, difficulty)


def _shuffled(rng: np.random.Generator, kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    return tuple(kinds[place] for place in rng.permutation(len(kinds)))
