# SPDX-License-Identifier: Apache-2.0
"""The three mugs of libero_10.

A mug is a straight wall around a flat bottom with a handle towards -x.  The wall is thin enough
for the gripper (80 mm open) to take it between its fingers; the cup itself is too wide.  The cup's
axis is the origin, so that a mug in the middle of a plate is where LIBERO's predicate wants it.
"""

from dataclasses import dataclass
import math

from worldvla_sim.assets.dishes import wall_ring
from worldvla_sim.assets.mjcf import Color, ObjectAsset
from worldvla_sim.assets.shapes import lathe, tube

_FOLDER = 'turbosquid_objects'
_HANDLE_REACH = 0.026  # from the cup's wall to the handle's outer edge
_WALL = 0.004
_WHITE: Color = (0.95, 0.95, 0.93)


@dataclass(frozen=True)
class _Mug:
    """One mug: sizes in metres, colours in [0, 1]."""

    name: str
    low: float  # height of the foot in the body frame
    high: float  # height of the rim
    rim: float  # outer radius of the rim
    foot: float  # outer radius of the foot
    mass: float
    outside: Color
    inside: Color
    handle: Color
    band: Color | None = None  # lower half, where it differs


_MUGS = (
    _Mug('porcelain_mug', 0.0025, 0.1085, 0.0455, 0.036, 0.0165, _WHITE, _WHITE, _WHITE),
    _Mug('red_coffee_mug', -0.0018, 0.1305, 0.0445, 0.038, 0.029, (0.72, 0.07, 0.07),
         (0.93, 0.90, 0.86), (0.72, 0.07, 0.07)),
    _Mug('white_yellow_mug', 0.0, 0.103, 0.0480, 0.044, 0.031, _WHITE, (0.96, 0.78, 0.16),
         (0.96, 0.78, 0.16), band=(0.96, 0.78, 0.16)),
)


def _mug(mug: _Mug) -> ObjectAsset:
    asset = ObjectAsset(
        mug.name, f'{_FOLDER}/{mug.name}', bottom=-0.06, top=0.04, radius=0.025)
    glazes = {
        key: asset.material(key, color, specular=0.5, shininess=0.6)
        for key, color in (
            ('outside', mug.outside), ('inside', mug.inside), ('handle', mug.handle),
            ('band', mug.band or mug.outside),
        )
    }
    middle = (mug.low + mug.high) / 2
    waist = (mug.rim + mug.foot) / 2
    base = mug.low + 0.008  # upper side of the bottom
    body = asset.body
    parts = {
        'band': [(0, mug.low), (mug.foot - 0.002, mug.low), (mug.foot, mug.low + 0.003),
                 (waist, middle)],
        'outside': [(waist, middle), (mug.rim, mug.high - 0.001), (mug.rim - 0.001, mug.high),
                    (mug.rim - _WALL + 0.001, mug.high)],
        'inside': [(mug.rim - _WALL + 0.001, mug.high), (mug.rim - _WALL, mug.high - 0.001),
                   (mug.foot - _WALL, base + 0.004), (mug.foot - 2 * _WALL, base), (0, base)],
    }
    for key, profile in parts.items():
        body.mesh(key, lathe(profile), material=glazes[key])
    _add_handle(asset, mug, glazes['handle'])
    body.collision('cylinder', (mug.foot - 0.001, 0.004), (0, 0, mug.low + 0.004),
                   mass=0.4 * mug.mass)
    wall_ring(body, (mug.foot - _WALL / 2, mug.low + 0.004), (mug.rim - _WALL / 2, mug.high),
              boards=12, thickness=_WALL, mass=0.5 * mug.mass)
    return asset


def _add_handle(asset: ObjectAsset, mug: _Mug, material: str) -> None:
    """Add a D-shaped handle of 9 mm thickness around the middle of the height."""
    middle, reach = (mug.low + mug.high) / 2, 0.030
    wall = -(mug.rim + mug.foot) / 2 + 0.002
    edge = wall - _HANDLE_REACH
    path = [
        (wall - (wall - edge) * math.sin(angle), 0, middle + reach * math.cos(angle))
        for angle in (math.pi * k / 8 for k in range(9))
    ]
    asset.body.mesh('handle_loop', tube(path, 0.0045), material=material)
    half = (wall - edge) / 2
    for sign in (-1, 1):
        asset.body.collision('box', (half, 0.004, 0.004),
                             (wall - half, 0, middle + sign * (reach - 0.004)),
                             mass=0.03 * mug.mass)
    asset.body.collision('box', (0.004, 0.004, reach - 0.006), (edge, 0, middle),
                         mass=0.04 * mug.mass)


def build() -> list[ObjectAsset]:
    """Return all mugs."""
    return [_mug(mug) for mug in _MUGS]
