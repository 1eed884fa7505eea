# SPDX-License-Identifier: Apache-2.0
"""The wine bottle and the rack that it is laid on.

LIBERO tests the bottle's foot against the rack's region: within 22 mm of its plane, 0 to 10 cm up
the slope.  The upper shelf lies parallel to that plane and low enough for the bottle's axis, whose
foot rests against the stopper, to be 12 mm above it: away from either limit.
"""

import math

import numpy as np

from worldvla_sim.assets.mjcf import ObjectAsset, turn
from worldvla_sim.assets.shapes import arc, lathe
from worldvla_sim.assets.textures import Label

_FOLDER = 'turbosquid_objects'
_BOTTLE_RADIUS = 0.0215
# Region of the upper shelf: position and turn about x.  Interface, from LIBERO's rack.
_REGION_POS, _REGION_QUAT = (0, -0.08003, 0.21745), (0.855, -0.519, 0, 0)
_SLOPE = math.degrees(math.pi / 2 - 2 * math.atan2(0.519, 0.855))  # 27.5 degrees, rising to +y
_LIFT = 0.012  # of the bottle's axis above the region's plane


def _wine_bottle() -> ObjectAsset:
    """A bottle of 43 mm diameter and 157 mm height, standing on z = 1 mm."""
    asset = ObjectAsset('wine_bottle', f'{_FOLDER}/wine_bottle',
                        bottom=-0.06, top=0.04, radius=0.025)
    low, high = 0.001, 0.158
    profile = [
        (0, low), (0.019, low), (_BOTTLE_RADIUS, low + 0.003), (_BOTTLE_RADIUS, 0.088),
        *arc((0.008, 0.088), (_BOTTLE_RADIUS - 0.008, 0.026), 20, 80, 4),
        (0.0085, 0.125), (0.0085, 0.150), (0.0095, 0.150), (0.0095, high), (0, high),
    ]
    label = Label((26, 52, 30)).rectangle((0, 0, 1, 0.24), (120, 20, 34))
    for left in (0.04, 0.54):
        label.rectangle((left, 0.52, left + 0.42, 0.88), (238, 230, 206))
        label.rectangle((left + 0.03, 0.79, left + 0.39, 0.82), (150, 30, 40))
        label.text((left + 0.08, 0.57, left + 0.34, 0.74), 'VINO', (110, 20, 32))
    glass = asset.material('label', label.image(), specular=0.8, shininess=0.8)
    asset.body.mesh('bottle', lathe(profile), material=glass)
    asset.body.collision(
        'cylinder', (_BOTTLE_RADIUS, 0.0455), (0, 0, low + 0.0455), mass=0.012)
    asset.body.collision('cylinder', (0.015, 0.0125), (0, 0, 0.1045), mass=0.0018)
    asset.body.collision('cylinder', (0.009, 0.0205), (0, 0, 0.1375), mass=0.0016)
    return asset


def _wine_rack() -> ObjectAsset:
    """Two sloping shelves between two side frames, 27 cm wide and 30 cm high."""
    asset = ObjectAsset('wine_rack', f'{_FOLDER}/wine_rack', bottom=-0.06, top=0.04, radius=0.025)
    light = asset.material('wood', (0.78, 0.56, 0.34), specular=0.1)
    dark = asset.material('stopper', (0.45, 0.27, 0.14), specular=0.1)
    body = asset.body
    body.site('top_region', (0.10087, 0.022, 0.00251), _REGION_POS, _REGION_QUAT)
    angle = math.radians(_SLOPE)
    along = np.array([0, math.cos(angle), math.sin(angle)])
    normal = np.array([0, -math.sin(angle), math.cos(angle)])
    foot = np.array(_REGION_POS) + (_LIFT - _BOTTLE_RADIUS) * normal  # upper surface, front edge
    for drop in (np.zeros(3), np.array([0, -0.030, -0.125])):
        shelf = foot + drop
        body.solid('box', (0.120, 0.080, 0.004), tuple(shelf + 0.072 * along - 0.004 * normal),
                   turn('x', _SLOPE), material=light, mass=0.02)
        body.solid('box', (0.120, 0.003, 0.010), tuple(shelf - 0.007 * along + 0.002 * normal),
                   turn('x', _SLOPE), material=dark, mass=0.005)
    for side in (-1, 1):
        x = side * 0.127
        body.solid('box', (0.007, 0.120, 0.008), (x, 0.003, 0.008), material=dark, mass=0.02)
        body.solid('box', (0.007, 0.010, 0.140), (x, 0.030, 0.156), material=dark, mass=0.02)
        for y in (-0.100, 0.106):  # LIBERO lets the rack float 2 cm above the table
            body.visual('box', (0.006, 0.006, 0.010), (x, y, -0.010), material=dark)
    body.solid('box', (0.120, 0.010, 0.006), (0, 0.100, 0.008), material=dark, mass=0.02)
    return asset


def build() -> list[ObjectAsset]:
    """Return bottle and rack."""
    return [_wine_bottle(), _wine_rack()]
