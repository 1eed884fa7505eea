# SPDX-License-Identifier: Apache-2.0
"""Small meshes with normals and texture coordinates: boxes, lathed profiles, bent tubes.

Normals are explicit, so a sharp edge stays sharp: MuJoCo's own smoothing would bleed a rim's
normal into a flat bottom and draw dark spikes there.  Texture coordinates run from the upper left
corner of the image, like its rows and columns.  Lengths are in metres.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math

import numpy as np

Point = tuple[float, float]
Cell = tuple[float, float, float, float]  # left, top, right, bottom of an image part, in [0, 1]
WHOLE: Cell = (0.0, 0.0, 1.0, 1.0)
QUARTER_TURN = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # about z
Z_TO_X = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
Z_TO_Y = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
_SHARP_DEGREES = 40.0  # profile corners beyond this keep two normals


@dataclass(frozen=True)
class Mesh:
    """Triangles with one normal and one texture coordinate per vertex."""

    vertices: np.ndarray  # (N, 3) float64, metres
    normals: np.ndarray  # (N, 3) float64, unit length, outwards
    texcoords: np.ndarray  # (N, 2) float64, from the upper left corner of the image
    faces: np.ndarray  # (M, 3) int64, counter-clockwise seen from outside

    def moved(self, offset: Sequence[float]) -> 'Mesh':
        """Return the mesh shifted by (x, y, z)."""
        return Mesh(self.vertices + np.asarray(offset), self.normals, self.texcoords, self.faces)

    def scaled(self, factors: Sequence[float]) -> 'Mesh':
        """Return the mesh stretched by positive factors along x, y, z."""
        factor = np.asarray(factors)
        normals = self.normals / factor
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        return Mesh(self.vertices * factor, normals, self.texcoords, self.faces)

    def turned(self, rotation: np.ndarray) -> 'Mesh':
        """Return the mesh turned by a (3, 3) rotation matrix."""
        return Mesh(
            self.vertices @ rotation.T, self.normals @ rotation.T, self.texcoords, self.faces)


def merge(*meshes: Mesh) -> Mesh:
    """Return one mesh that holds all triangles; one geom renders faster than several."""
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.normals for mesh in meshes]),
        np.concatenate([mesh.texcoords for mesh in meshes]),
        np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=True)]),
    )


def polygon(corners: Sequence[Sequence[float]], cell: Cell = WHOLE) -> Mesh:
    """
    Return a flat convex polygon, counter-clockwise seen from outside.

    A quadrilateral's corners are lower left, lower right, upper right, upper left of `cell`.
    """
    points = np.asarray(corners, dtype=np.float64)
    normal = np.cross(points[1] - points[0], points[2] - points[0])
    left, top, right, bottom = cell
    if len(points) == 4:
        texcoords = np.array([(left, bottom), (right, bottom), (right, top), (left, top)])
    else:
        texcoords = np.tile([(left + right) / 2, (top + bottom) / 2], (len(points), 1))
    faces = np.array([(0, k, k + 1) for k in range(1, len(points) - 1)])
    return Mesh(points, np.tile(normal / np.linalg.norm(normal), (len(points), 1)), texcoords,
                faces)


# Corners of each box side as signs of the half sizes, lower left first, seen from outside.
_BOX_SIDES = {
    '-y': ((-1, -1, -1), (1, -1, -1), (1, -1, 1), (-1, -1, 1)),
    '+x': ((1, -1, -1), (1, 1, -1), (1, 1, 1), (1, -1, 1)),
    '+y': ((1, 1, -1), (-1, 1, -1), (-1, 1, 1), (1, 1, 1)),
    '-x': ((-1, 1, -1), (-1, -1, -1), (-1, -1, 1), (-1, 1, 1)),
    '+z': ((-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1)),
    '-z': ((-1, 1, -1), (1, 1, -1), (1, -1, -1), (-1, -1, -1)),
}


def box(
    half: Sequence[float], cells: Mapping[str, Cell] | None = None, *, tile: float | None = None,
) -> Mesh:
    """
    Return a box around the origin.

    `cells` gives the image part of each side ('+x' ... '-z'); with `tile` [m] the image repeats at
    that length instead, so that boards of any size show the same grain.
    """
    sides = []
    for side, signs in _BOX_SIDES.items():
        corners = np.asarray(signs) * np.asarray(half)
        cell = (cells or {}).get(side, WHOLE)
        if tile is not None:
            width, height = np.linalg.norm(corners[[1, 2]] - corners[[0, 1]], axis=1) / tile
            cell = (0.0, 0.0, width, height)
        sides.append(polygon(corners, cell))
    return merge(*sides)


def lathe(profile: Sequence[Point], segments: int = 24) -> Mesh:
    """
    Return the surface that a (radius, height) profile sweeps about the z axis.

    The profile runs counter-clockwise around the material: along the bottom from the axis, up the
    outside, and back inside.  The image wraps once around (left edge at +x) and spans the height.
    """
    points = np.asarray(profile, dtype=np.float64)
    steps = np.diff(points, axis=0)
    flat = np.stack([steps[:, 1], -steps[:, 0]], axis=1)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    low, high = points[:, 1].min(), points[:, 1].max()
    around = np.linspace(0.0, 1.0, segments + 1)
    direction = np.stack([np.cos(2 * np.pi * around), np.sin(2 * np.pi * around)], axis=1)
    parts = []
    for k in range(len(steps)):
        rings = []
        for end, neighbour in ((k, k - 1), (k + 1, k + 1)):
            normal = flat[k]
            if 0 <= neighbour < len(flat) and _is_smooth(flat[k], flat[neighbour]):
                normal = flat[k] + flat[neighbour]
                normal = normal / np.linalg.norm(normal)
            radius, height = points[end]
            row = (high - height) / max(high - low, 1e-9)
            rings.append((
                np.column_stack([radius * direction, np.full(segments + 1, height)]),
                np.column_stack([normal[0] * direction, np.full(segments + 1, normal[1])]),
                np.column_stack([around, np.full(segments + 1, row)]),
            ))
        parts.append(_strip(rings, points[k][0] > 0, points[k + 1][0] > 0))
    return merge(*parts)


def rod(radius: float, half: float, sides: int = 12) -> Mesh:
    """
    Return a cylinder around z of height 2 * half.

    MuJoCo's own cylinder has 900 triangles whatever its size, this one has 4 * sides.
    """
    return lathe([(0, -half), (radius, -half), (radius, half), (0, half)], sides)


def tube(path: Sequence[Sequence[float]], radius: float, sides: int = 8) -> Mesh:
    """Return a round tube along a polyline in a plane that holds the z axis (handles)."""
    points = np.asarray(path, dtype=np.float64)
    tangents = np.gradient(points, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    chord = points[-1] - points[0]
    binormal = np.cross(chord, points[len(points) // 2] - points[0])
    binormal /= np.linalg.norm(binormal)
    angles = np.linspace(0, 2 * np.pi, sides + 1)
    rings = []
    for point, tangent in zip(points, tangents, strict=True):
        across = np.cross(binormal, tangent)
        normals = np.cos(angles)[:, None] * across + np.sin(angles)[:, None] * binormal
        rings.append((point + radius * normals, normals, np.full((sides + 1, 2), 0.5)))
    return merge(*(_strip(rings[k:k + 2], True, True) for k in range(len(rings) - 1)))


def arc(center: Point, radii: Point, start: float, stop: float, count: int) -> list[Point]:
    """Return points of an ellipse arc between two angles in degrees."""
    angles = [math.radians(start + (stop - start) * k / (count - 1)) for k in range(count)]
    return [
        (center[0] + radii[0] * math.cos(a), center[1] + radii[1] * math.sin(a)) for a in angles
    ]


def _is_smooth(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(first @ second > math.cos(math.radians(_SHARP_DEGREES)))


def _strip(
    rings: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], low_open: bool, high_open: bool,
) -> Mesh:
    """Join two rings of equal length; a ring that is one point on the axis gives triangles."""
    (low, low_normals, low_cells), (high, high_normals, high_cells) = rings
    count = len(low)
    faces = []
    for i in range(count - 1):
        if low_open:
            faces.append((i, i + 1, count + i + 1))
        if high_open:
            faces.append((i, count + i + 1, count + i))
    return Mesh(
        np.concatenate([low, high]), np.concatenate([low_normals, high_normals]),
        np.concatenate([low_cells, high_cells]), np.array(faces, dtype=np.int64),
    )
