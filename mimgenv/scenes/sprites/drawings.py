"""What each thing looks like: a table of drawings that knows neither pixels nor colours.

A drawing is a stack of patches, the lowest first, one a line: a paint, then outlines joined by `and`, or cut out by
`without`. A paint is a share of the thing's own colour and a grey, so that one drawing serves all colours. Numbers
are hundredths, x to the right and y down; the drawing is then moved and scaled so that it just fits the circle of
radius 1, however it is turned. To add a thing, draw it here and say in `USES` (sprites.py) what it is for.

    curve x y x y ...             a smooth closed line through spots
    polygon x y x y ...           a straight one
    line width x y x y ...        a stroke with round ends, smooth
    panel left top right bottom radius
    circle x y radius
    ellipse x y wide high turn    half axes, degrees clockwise
    tilt turn                     in the first line: turns the whole drawing, in degrees clockwise
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mimgenv.scenes.tabletop.camera import sine_cosine

Outline: TypeAlias = npt.NDArray[np.float64]
"""Corners of a closed polygon, (n, 2)."""

TEXTS: Final[dict[str, str]] = {
    "mug": """
        dark   line 19  50 -24  74 -14  83 10  74 34  50 44
        body   panel -74 -20 50 82 20 and polygon -74 -62  50 -62  50 20  -74 20
        dark   polygon 22 -60  50 -62  50 62  47 71  41 78  32 82  10 82
        light  panel -60 -36 -46 52 7
        light  ellipse -12 -62 62 17 0
        deep   ellipse -12 -61 52 12 0
        ink    ellipse -12 -57 44 8 0
    """,
    "car": """
        body   curve -66 0  -40 -46  0 -54  36 -44  68 4  0 10
        glass  polygon -50 -2  -32 -36  -4 -41  -4 -2 and polygon 6 -41  28 -34  50 -2  6 -2
        body   panel -100 -4 100 42 16
        dark   panel -100 20 100 42 10
        light  panel -86 2 50 8 3
        white  ellipse 90 12 8 7 0
        ink    circle -52 42 25 and circle 54 42 25
        steel  circle -52 42 12 and circle 54 42 12
    """,
    "book": """
        tilt   8
        deep   panel -68 -90 68 92 6
        white  panel -50 50 62 84 3
        steel  panel -50 72 62 75 1 and panel -50 79 62 81 1
        body   panel -68 -90 68 66 6
        dark   panel -68 -90 -42 90 6
        white  panel -24 -62 50 -10 6
        ink    panel -10 -50 36 -42 3 and panel -2 -32 28 -24 3
    """,
    "star": """
        body   polygon 0 -100  28 -38  95 -31  45 15  59 81  0 47  -59 81  -45 15  -95 -31  -28 -38
        dark   polygon 0 0  0 -100  28 -38 and polygon 0 0  95 -31  45 15 and polygon 0 0  59 81  0 47
        dark   polygon 0 0  -59 81  -45 15 and polygon 0 0  -95 -31  -28 -38
        light  polygon 0 0  0 -100  -28 -38 and polygon 0 0  -95 -31  -45 15
    """,
    "hammer": """
        tilt   32
        body   panel -15 -70 15 60 2 and panel -19 20 19 118 17
        dark   panel 3 -60 15 60 1 and panel 3 20 19 116 8
        light  panel -13 22 -7 100 3
        iron   panel -60 -86 -35 -38 5 and panel -40 -80 16 -45 2
        iron   curve 10 -80  40 -84  68 -48  42 -59  10 -45
        steel  panel -58 -82 -50 -42 3 and panel -32 -75 12 -70 2
    """,
    "person": """
        deep   line 24  -16 30  -20 90 and line 24  16 30  20 90
        ink    panel -38 86 -6 104 8 and panel 6 86 38 104 8
        dark   line 19  -30 -18  -48 8  -50 36 and line 19  30 -18  48 8  50 36
        body   curve -36 -26  0 -34  36 -26  34 20  32 42  0 45  -32 42  -34 20
        light  panel -3 -28 3 42 3
        pale   circle -50 43 10 and circle 50 43 10 and circle 0 -66 30
        ink    curve -33 -66  -27 -92  0 -101  27 -92  33 -66  18 -80  -8 -79
        ink    circle -11 -63 4 and circle 11 -63 4 and line 4  -10 -51  0 -46  10 -51
    """,
    "house": """
        deep   polygon 36 -90  60 -90  60 -20  36 -20
        body   polygon -70 -20  0 -74  70 -20  70 86  -70 86
        dark   polygon 0 -95  100 -10  88 6  0 -68  -88 6  -100 -10
        white  panel 12 10 54 50 2 and circle 0 -30 15
        iron   panel 30 10 36 50 1 and panel 12 27 54 33 1
        ink    panel -50 3 -8 90 20
        white  circle -16 54 4
        dark   panel -76 80 76 92 3
    """,
    "tree": """
        iron   polygon -12 10  12 10  14 80  26 96  -26 96  -14 80 and line 9  2 55  30 20
        dark   circle 36 6 40 and circle -40 10 36 and circle 0 16 36
        body   circle -40 -6 38 and circle 38 -14 36 and circle 0 -50 44 and circle 0 -10 42
        light  ellipse -14 -66 17 12 -25 and ellipse -52 -20 13 9 -30 and ellipse 30 -28 10 7 -25
    """,
    "fish": """
        dark   curve 50 0  98 -46  88 2  98 46
        dark   curve -30 -30  5 -66  40 -50  30 -20 and curve -5 30  14 60  34 50  25 20
        body   curve -98 4  -60 -33  -10 -44  36 -26  68 0  36 27  -10 44  -60 36
        light  curve -86 16  -50 22  0 24  40 14  10 36  -30 42  -65 34
        deep   line 6  -47 -23  -37 -8  -37 8  -47 23
        dark   line 6  -10 -22  -3 -12  -10 -2 and line 6  18 -20  25 -10  18 0
        dark   line 6  4 -2  11 8  4 18 and line 6  32 -4  39 6  32 16
        white  circle -64 -10 12
        ink    circle -66 -10 7
    """,
    "key": """
        tilt   -38
        body   circle -62 0 40 without circle -66 0 17
        body   panel -30 -13 100 13 8 and panel 48 0 66 40 4 and panel 78 0 97 46 4
        dark   panel -20 2 98 12 4 and panel 59 10 66 38 2 and panel 90 10 97 44 2
        light  line 7  -90 16  -94 -4  -88 -19  -76 -29  -62 -32  -51 -30
    """,
    "umbrella": """
        tilt   12
        iron   line 8  0 -98  0 70
        ink    line 13  0 50  0 74  6 90  20 96  34 90  40 78
        body   polygon 0 -80  -44 -57  -75 -34  -94 -11  -100 12  -84 4  -68 1  -52 4  -36 12  -34 -11  -27 -34  -16 -57
        body   polygon 0 -80  44 -57  75 -34  94 -11  100 12  84 4  68 1  52 4  36 12  34 -11  27 -34  16 -57
        dark   polygon 0 -80  -16 -57  -27 -34  -34 -11  -36 12  -18 4  0 1  18 4  36 12  34 -11  27 -34  16 -57
        light  polygon 0 -80  -44 -57  -75 -34  -94 -11  -100 12  -84 4  -76 2  -72 -11  -58 -34  -34 -57
    """,
    "clock": """
        iron   line 14  -40 60  -58 94 and line 14  40 60  58 94 and panel -6 -95 6 -60 3
        dark   ellipse -52 -66 32 22 -40 and ellipse 52 -66 32 22 40
        body   circle 0 6 80
        dark   circle 0 6 80 without circle -6 0 77
        white  circle 0 6 53
        ink    panel -4 -44 4 -33 1 and panel -4 45 4 56 1 and panel -50 2 -39 10 1 and panel 39 2 50 10 1
        ink    line 9  0 6  0 -28 and line 9  0 6  22 20
    """,
    "chair": """
        deep   panel -46 20 -32 76 3 and panel 32 20 46 76 3
        body   panel -54 -96 54 -66 14 and panel -54 -20 54 10 6
        body   panel -54 -80 -38 0 2 and panel -20 -80 -8 0 2 and panel 8 -80 20 0 2 and panel 38 -80 54 0 2
        light  polygon -50 2  50 2  68 34  -68 34
        dark   panel -66 40 -48 98 4 and panel 48 40 66 98 4
        body   panel -70 30 70 46 5
    """,
    "boat": """
        iron   panel -7 -98 0 50 2
        body   curve 6 -92  42 -50  72 16  40 27  6 28  6 -30
        dark   curve 6 2  40 8  68 8  72 16  40 27  6 28
        light  curve -14 -74  -14 -20  -14 26  -45 26  -76 18  -42 -26
        body   polygon -96 40  100 40  84 62  68 76  50 83  36 84  -42 84  -56 82  -72 72  -84 58
        dark   polygon -83 60  86 60  68 76  50 83  36 84  -42 84  -56 82  -72 72
        white  polygon -93 45  96 45  90 53  -88 53
    """,
    "hat": """
        dark   ellipse 0 42 100 30 0
        body   ellipse 0 36 100 28 0
        body   curve -62 36  -56 -10  -46 -52  -20 -62  0 -52  20 -62  46 -52  56 -10  62 36  0 50
        dark   curve 6 -50  20 -62  46 -52  56 -10  62 36  30 44  34 0
        ink    curve -61 14  -30 22  0 24  30 22  61 14  63 36  30 46  0 48  -30 46  -63 36
        light  ellipse -40 -22 6 20 12
    """,
    "apple": """
        body   curve 0 -46  36 -60  76 -38  82 10  58 66  24 88  0 80  -24 88  -58 66  -82 10  -76 -38  -36 -60
        dark   curve 58 -54  76 -38  82 10  58 66  24 88  6 81  44 54  64 6
        light  ellipse -50 -16 13 25 18
        deep   ellipse 0 -43 20 6 0
        ink    line 10  0 -42  2 -64  10 -88
        deep   curve 10 -62  24 -86  58 -92  42 -68
    """,
}


@dataclass(frozen=True, slots=True)
class Paint:
    """A mixture: `tone` times the colour of the thing, plus `grey` in [0, 255] on each channel."""

    tone: float
    grey: float = 0


PAINTS: Final[dict[str, Paint]] = {
    "body": Paint(1),
    "dark": Paint(0.80),
    "deep": Paint(0.58),
    "light": Paint(0.72, 66),
    "pale": Paint(0.35, 160),
    "ink": Paint(0.06, 40),
    "iron": Paint(0.04, 92),
    "steel": Paint(0.04, 160),
    "glass": Paint(0.10, 205),
    "white": Paint(0.03, 238),
}


@dataclass(frozen=True, slots=True)
class Patch:
    """An area in one paint.

    Attributes:
        paint: Of all of it.
        outlines: What they enclose, clockwise on the screen; what is cut out runs the other way.
    """

    paint: Paint
    outlines: tuple[Outline, ...]


Drawing: TypeAlias = tuple[Patch, ...]


def _polygon(*numbers: float) -> Outline:
    return np.array(numbers, np.float64).reshape(-1, 2)


def _curve(*numbers: float) -> Outline:
    knots = _polygon(*numbers)
    return _splined(np.roll(knots, 1, 0), knots, np.roll(knots, -1, 0), np.roll(knots, -2, 0))


def _splined(before: Outline, start: Outline, end: Outline, after: Outline, steps: int = 6) -> Outline:
    """Spots on Catmull-Rom splines from `start` up to `end`, each `steps` of them."""
    linear, square = end - before, 2 * before - 5 * start + 4 * end - after
    cubic = 3 * start - before - 3 * end + after
    times = [step / steps for step in range(steps)]
    return np.stack([start + 0.5 * t * (linear + t * (square + t * cubic)) for t in times], 1).reshape(-1, 2)


def _line(width: float, *numbers: float) -> Outline:
    knots = _polygon(*numbers)
    longer = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    spots = np.concatenate([_splined(longer[:-3], longer[1:-2], longer[2:-1], longer[3:]), knots[-1:]])
    way = np.gradient(spots, axis=0)
    ahead = way * (width / 2 / np.sqrt((way * way).sum(1, keepdims=True)))
    aside = np.stack([-ahead[:, 1], ahead[:, 0]], 1)
    turns = [sine_cosine(math.radians(angle)) for angle in range(0, 181, 30)]
    front = [spots[-1] + sine * ahead[-1] + cosine * aside[-1] for sine, cosine in turns]
    back = [spots[0] - sine * ahead[0] - cosine * aside[0] for sine, cosine in turns]
    return np.concatenate([spots + aside, front, (spots - aside)[::-1], back])


def _panel(left: float, top: float, right: float, bottom: float, radius: float) -> Outline:
    corner = _ellipse(0, 0, radius, radius, 0)
    left, top, right, bottom = left + radius, top + radius, right - radius, bottom - radius
    middles = ((right, bottom), (left, bottom), (left, top), (right, top))
    return np.concatenate([np.roll(corner, -6 * i, 0)[:7] + middle for i, middle in enumerate(middles)])


def _circle(x: float, y: float, radius: float) -> Outline:
    return _ellipse(x, y, radius, radius, 0)


def _ellipse(x: float, y: float, wide: float, high: float, turn: float) -> Outline:
    angles = [sine_cosine(math.radians(angle)) for angle in range(0, 360, 15)]
    around = np.array([(wide * cosine, high * sine) for sine, cosine in angles])
    placed: Outline = _turned(around, turn) + np.array((x, y))
    return placed


OUTLINES: Final[dict[str, Callable[..., Outline]]] = {
    "polygon": _polygon,
    "curve": _curve,
    "line": _line,
    "panel": _panel,
    "circle": _circle,
    "ellipse": _ellipse,
}


def _turned(outline: Outline, degrees: float) -> Outline:
    sine, cosine = sine_cosine(math.radians(degrees))
    turned: Outline = outline[:, :1] * (cosine, sine) + outline[:, 1:] * (-sine, cosine)
    return turned


def _outline(text: str, hole: bool = False) -> Outline:
    """Reads one outline and lets it run the right way round."""
    name, *numbers = text.split()
    outline = OUTLINES[name](*map(float, numbers))
    x, y = outline.T
    clockwise = bool((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() > 0)
    return outline[::-1] if clockwise == hole else outline


def _patch(line: str) -> Patch:
    """Reads one line."""
    paint, text = line.split(maxsplit=1)
    outlines: list[Outline] = []
    for part in text.split(" and "):
        whole, *holes = part.split(" without ")
        outlines += [_outline(whole), *(_outline(hole, hole=True) for hole in holes)]
    return Patch(PAINTS[paint], tuple(outlines))


def _drawing(text: str) -> Drawing:
    """Reads a drawing, and fits it: its extent around the origin, its farthest corner at distance 1."""
    lines = text.strip().splitlines()
    tilt = float(lines.pop(0).split()[1]) if lines[0].startswith("tilt") else 0.0
    patches = [_patch(line.strip()) for line in lines]
    outlines = [[_turned(outline, tilt) for outline in patch.outlines] for patch in patches]
    corners = np.concatenate([outline for group in outlines for outline in group])
    middle = (corners.min(0) + corners.max(0)) / 2
    radius = float(np.sqrt(((corners - middle) ** 2).sum(1).max()))
    return tuple(
        Patch(patch.paint, tuple((outline - middle) / radius for outline in group))
        for patch, group in zip(patches, outlines, strict=True)
    )


DRAWINGS: Final[dict[str, Drawing]] = {shape: _drawing(text) for shape, text in TEXTS.items()}
"""Each thing, in the circle of radius 1 around the origin."""
