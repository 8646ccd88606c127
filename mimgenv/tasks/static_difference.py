"""Static difference: the same view twice, one object replaced; find it (MIG-Bench `diff`).

Difficulty: number, size and overlap of things (the world's). Where the world has look-alikes, from difficulty 3 on the
new object differs from the old one in one attribute only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from mimgenv.scenes.scene import Kind, Scene, World
from mimgenv.tasks.draft import Draft, Wording, alike, draw_count, draw_kinds
from mimgenv.tasks.program import Found, Query, things_of

QUESTION: Final = Wording(
    (
        "Find in Image-2 what changed since Image-1.",
        "Compare Image-1 and Image-2. Where in Image-2 is the difference?",
        "One object of Image-2 is not the one that stood there in Image-1. Find it.",
    ),
    (
        "Image-1 was taken before, Image-2 after. Box what is new in Image-2.",
        "Spot the one thing in Image-2 that differs from Image-1.",
    ),
)
RATIONALE: Final = "Image-2 shows a {label} where Image-1 shows something else."


@dataclass(frozen=True, slots=True)
class Changed(Query):
    """All things of image `after` that stand in image `before` neither as they are nor where they are."""

    before: int
    after: int

    def find(self, scenes: Sequence[Scene]) -> tuple[Found, ...]:
        """See `Query`."""
        unchanged = {(thing.kind, thing.position, thing.size) for thing in scenes[self.before - 1].things}
        things = things_of(scenes, (self.after,))
        return tuple(w for w, thing in things if (thing.kind, thing.position, thing.size) not in unchanged)


def static_difference(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """Two images of one scene; in the second, one thing is of another kind, at the same place and size."""
    before, after = draw_change(world, rng, difficulty)
    return Draft((before, after), QUESTION, Changed(1, 2), RATIONALE, named_image=2)


def draw_change(world: World, rng: np.random.Generator, difficulty: int | None) -> tuple[Scene, Scene]:
    """A scene, and the same with one thing replaced by one of a kind that the scene does not hold."""
    *kinds, new = draw_kinds(rng, world.kinds, draw_count(world, rng, difficulty) + 1)
    before = world.arrange(rng, tuple(kinds), difficulty)
    changed = int(rng.integers(len(kinds)))
    if world.look_alikes(difficulty)[0]:
        near = [kind for kind in world.kinds if alike(kind, kinds[changed]) and kind not in kinds]
        new = near[rng.integers(len(near))]
    return before, with_kind(before, changed, new)


def with_kind(scene: Scene, index: int, kind: Kind) -> Scene:
    """The scene with another thing, of the given kind, in the place of one."""
    things = list(scene.things)
    things[index] = replace(things[index], kind=kind, identity=1 + max(thing.identity for thing in things))
    return replace(scene, things=tuple(things))
