# SPDX-License-Identifier: Apache-2.0
"""Open round things and the basket: what other objects are put on or into."""

from worldvla_sim.assets.mjcf import ObjectAsset
from worldvla_sim.assets.textures import wicker

_FOLDER = 'stable_scanned_objects'


def _dish(name: str) -> ObjectAsset:
    return ObjectAsset(name, f'{_FOLDER}/{name}', bottom=-0.06, top=0.04, radius=0.025)


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
    boards = [((half_x, half_y, wall), (0, 0, low + wall))]
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
    return [_basket()]
