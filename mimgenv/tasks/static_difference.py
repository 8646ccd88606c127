"""Static difference: the same view twice, one object replaced; find it (MIG-Bench `diff`)."""

from dataclasses import replace

import numpy as np

from mimgenv.scenes.scene import World
from mimgenv.tasks.draft import Draft, draw_count, draw_kinds
from mimgenv.tasks.program import Changed

RATIONALE = "Image-2 shows a {label} where Image-1 shows something else."


def static_difference(world: World, rng: np.random.Generator, difficulty: int | None) -> Draft:
    """Two images of one scene; in the second, one thing is of another kind, at the same place and size."""
    *kinds, new = draw_kinds(rng, world.kinds, draw_count(world, rng, difficulty) + 1)
    before = world.arrange(rng, tuple(kinds), difficulty)
    changed = int(rng.integers(len(kinds)))
    things = list(before.things)
    things[changed] = replace(things[changed], kind=new, identity=len(things))
    after = replace(before, things=tuple(things))
    question = "Find in Image-2 what changed since Image-1."
    return Draft((before, after), question, Changed(1, 2), RATIONALE, named_image=2)
