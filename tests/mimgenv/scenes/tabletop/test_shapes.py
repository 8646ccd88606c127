"""Rules of the solids: their normals, the shadows they cast, and the hulls that hold them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mimgenv.scenes.tabletop.backdrop import backdrop
from mimgenv.scenes.tabletop.shapes import SOLIDS


@pytest.mark.parametrize("shape", SOLIDS)
def test_normals_are_unit_vectors_that_face_the_camera(shape: str) -> None:
    camera, solid = backdrop(5, 112).camera, SOLIDS[shape](1.5, 0.4)
    middle, origin = camera.place(0, 0), (0.0, 0.0, camera.height)
    rays = tuple(np.broadcast_to(axis, (112, 112)) for axis in camera.picture)
    hit = solid.hit((-middle[0], -middle[1], camera.height), (rays[0], rays[1], rays[2]))
    ray, away = np.stack([axis[hit.met] for axis in rays]), hit.distance[hit.met]
    point = np.array(origin, np.float32)[:, None] + ray * away - np.array([[*middle, 0.0]], np.float32).T
    faces = np.broadcast_to(hit.faces, hit.met.shape)[hit.met]
    normal = np.stack(solid.normal((point[0], point[1], point[2]), faces))
    assert np.abs((normal * normal).sum(0) - 1).max() < 1e-3
    assert ((normal * ray).sum(0) < 1e-3).all()


@pytest.mark.parametrize("shape", SOLIDS)
def test_a_shadow_is_where_a_ray_to_the_sun_meets_the_solid(shape: str) -> None:
    solid, slant = SOLIDS[shape](1.0, 0.4), (0.9, -0.5)
    axis = np.linspace(-1.6, 1.6, 81, dtype=np.float32)
    x, y = (plane.ravel() for plane in np.meshgrid(axis, axis))
    far = 50.0  # Followed from the sun's side, one ray per floor point, all from its own far origin.
    inside = solid.shadow(x, y, slant) < 0
    met = np.zeros(x.shape, np.bool_)
    for i, (a, b) in enumerate(zip(x, y, strict=True)):
        origin = float(a) - slant[0] * far, float(b) - slant[1] * far, far
        rays = tuple(np.array([part], np.float32) for part in (slant[0], slant[1], -1.0))
        hit = solid.hit(origin, (rays[0], rays[1], rays[2]))
        met[i] = hit.met[0] and hit.distance[0] < far - 1e-3
    assert np.count_nonzero(inside != met) <= 0.01 * met.size
    assert 100 < met.sum() < met.size / 2


@pytest.mark.parametrize("shape", SOLIDS)
def test_a_hull_touches_its_solid_above_and_aside_and_fits_the_diameter(shape: str) -> None:
    solid = SOLIDS[shape](1.4, math.pi / 4)
    radius, height = solid.hull
    assert radius <= 0.7 + 1e-6 and height <= 1.4 + 1e-6
    axis = np.linspace(-1, 1, 400, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    down = np.full(x.shape, -1, np.float32)
    above = solid.hit((0.0, 0.0, 9.0), (x / 9, y / 9, down))
    assert 9 - above.distance[above.met].min() == pytest.approx(height, abs=0.02)
    footprint = solid.shadow(x, y, (0.0, 0.0)) <= 0
    assert np.hypot(x, y)[footprint].max() == pytest.approx(radius, abs=0.01)
