# SPDX-License-Identifier: Apache-2.0
"""Bowl, plate, ramekin and basket: what other objects are put on or into.

No dish has an open conical cavity for another to wedge into: friction of 0.95 would lock a bowl
that sinks into a ramekin, so the ramekin is solid up to just below its rim.
"""

import math

from worldvla_sim.assets.mjcf import Body, ObjectAsset, Vector, product, turn
from worldvla_sim.assets.shapes import Point, arc, lathe
from worldvla_sim.assets.textures import wicker

_FOLDER = 'stable_scanned_objects'


def _dish(name: str) -> ObjectAsset:
    return ObjectAsset(name, f'{_FOLDER}/{name}', bottom=-0.06, top=0.04, radius=0.025)


def wall_ring(
    body: Body, low: Point, high: Point, *, boards: int, thickness: float, mass: float,
) -> None:
    """Add a round, possibly flared wall of boards between two (radius, height) points."""
    rise, flare = high[1] - low[1], high[0] - low[0]
    half = (thickness / 2, max(low[0], high[0]) * math.tan(math.pi / boards),
            math.hypot(rise, flare) / 2)
    radius, height = (low[0] + high[0]) / 2, (low[1] + high[1]) / 2
    tilt = turn('y', math.degrees(math.atan2(flare, rise)))
    for k in range(boards):
        angle = 2 * math.pi * k / boards
        body.collision(
            'box', half, (radius * math.cos(angle), radius * math.sin(angle), height),
            product(turn('z', math.degrees(angle)), tilt), mass=mass / boards)


def _bowl() -> ObjectAsset:
    """A black bowl of 107 mm diameter and 50 mm height, standing on z = 1.5 mm."""
    asset = _dish('akita_black_bowl')
    glaze = asset.material('glaze', (0.07, 0.07, 0.08), specular=0.6, shininess=0.6)
    profile = [
        (0, 0.0015), (0.031, 0.0015), (0.033, 0.006),
        *arc((0.014, 0.0515), (0.0395, 0.0445), -65, 0, 6), (0.0505, 0.0515),
        *arc((0.012, 0.0515), (0.0385, 0.0425), -5, -80, 6), (0, 0.009),
    ]
    asset.body.mesh('bowl', lathe(profile), material=glaze)
    asset.body.collision('cylinder', (0.031, 0.0035), (0, 0, 0.005), mass=0.002)
    for low, high in (
        ((0.0335, 0.006), (0.045, 0.028)), ((0.045, 0.028), (0.0515, 0.0515)),
    ):
        wall_ring(asset.body, low, high, boards=12, thickness=0.003, mass=0.0018)
    return asset


def _plate() -> ObjectAsset:
    """A white plate of 138 mm diameter with a red line; its foot is 2.5 mm below the origin."""
    asset = _dish('plate')
    china = asset.material('china', (0.94, 0.94, 0.92), specular=0.4, shininess=0.5)
    line = asset.material('line', (0.72, 0.16, 0.14), specular=0.4, shininess=0.5)
    profile = [
        (0, -0.0025), (0.038, -0.0025), (0.067, 0.013), (0.069, 0.0155), (0.066, 0.0155),
        (0.042, 0.0055), (0.036, 0.0045), (0, 0.0045),
    ]
    asset.body.mesh('plate', lathe(profile, 32), material=china)
    asset.body.mesh('line', lathe([(0.060, 0.0134), (0.0565, 0.0119)], 32), material=line)
    asset.body.collision('cylinder', (0.037, 0.0035), (0, 0, 0.001), mass=0.006)
    wall_ring(asset.body, (0.034, 0.0025), (0.0675, 0.014), boards=12, thickness=0.004, mass=0.006)
    return asset


def _ramekin() -> ObjectAsset:
    """A fluted white cup of 89 mm diameter and 42 mm height with a blue-grey glazed rim."""
    asset = _dish('glazed_rim_porcelain_ramekin')
    china = asset.material('china', (0.86, 0.88, 0.88), specular=0.4, shininess=0.5)
    rim = asset.material('rim', (0.42, 0.55, 0.66), specular=0.5, shininess=0.6)
    profile = [
        (0, 0.0005), (0.040, 0.0005), (0.043, 0.004), (0.0435, 0.036), (0.0445, 0.037),
    ]
    inside = [(0.0415, 0.040), (0.040, 0.010), (0.036, 0.007), (0, 0.007)]
    lip = [(0.0445, 0.037), *arc((0.043, 0.0405), (0.0018, 0.0022), -30, 210, 6), (0.0412, 0.036)]
    asset.body.mesh('cup', lathe(profile), material=china)
    asset.body.mesh('inside', lathe(inside), material=china)
    asset.body.mesh('lip', lathe(lip), material=rim)
    asset.body.collision('cylinder', (0.0425, 0.020), (0, 0, 0.0205), mass=0.0097)
    return asset


def _basket() -> ObjectAsset:
    """A wicker box of 168 x 156 mm, 141 mm high, open on top; its origin is 4.5 mm below it."""
    asset = _dish('basket')
    weave = asset.material('wicker', wicker((206, 158, 98), 6))
    rim = asset.material('rim', (0.55, 0.36, 0.18))
    body = asset.body
    body.site('contain_region', (0.06108, 0.06108, 0.06949), (0, 0, 0.07185), (0, 0, 0, 1))
    low, high, wall = 0.0045, 0.1455, 0.005
    half_x, half_y = 0.084, 0.078
    middle, half_z = (low + high) / 2, (high - low) / 2
    boards: list[tuple[Vector, Vector]] = [((half_x, half_y, wall), (0, 0, low + wall))]
    for sign in (-1, 1):
        boards.append(((wall, half_y, half_z), (sign * (half_x - wall), 0, middle)))
        boards.append(((half_x, wall, half_z), (0, sign * (half_y - wall), middle)))
        body.visual('box', (wall + 0.002, half_y + 0.002, 0.005),
                    (sign * (half_x - wall), 0, high - 0.004), material=rim)
        body.visual('box', (half_x + 0.002, wall + 0.002, 0.005),
                    (0, sign * (half_y - wall), high - 0.004), material=rim)
    body.boards('weave', boards, material=weave, density=120, tile=0.12)
    return asset


def build() -> list[ObjectAsset]:
    """Return all dishes and the basket."""
    return [_bowl(), _plate(), _ramekin(), _basket()]
