# SPDX-License-Identifier: Apache-2.0
"""The two cabinets with three drawers: one of dark wood, one white.

Regions, joints and the heights of the drawer floors are LIBERO's interface, the boards are ours.
Every drawer has 2 to 4 mm of air around it, because MuJoCo lets a drawer touch its cabinet.  The
drawers are 206 mm wide: a wider one would cut into the bottle in some official initial states.
"""

from worldvla_sim.assets.mjcf import Body, ObjectAsset, turn
from worldvla_sim.assets.shapes import Z_TO_X, Z_TO_Y, merge, rod
from worldvla_sim.assets.textures import Image, wood

_FOLDER = 'articulated_objects'
_MIDDLE = 0.003  # x of the cabinet's middle: LIBERO's cabinet is not quite centred on its origin
_TOP = 0.223  # height of the surface that things are put on
# name of the drawer -> height of its middle, height of its region
_LEVELS = {'top': (0.184, 0.18563), 'middle': (0.114, 0.1169), 'bottom': (0.044, 0.047)}
_DENSITY = 60.0  # kg/m^3; only the drawers move, and they have a fixed mass


def _carcass(base: Body, material: str) -> None:
    """Two sides, back, bottom and a top board, open to the front (-y)."""
    base.boards('carcass', [
        ((0.008, 0.093, 0.107), (_MIDDLE - 0.115, 0.018, 0.112)),
        ((0.008, 0.093, 0.107), (_MIDDLE + 0.115, 0.018, 0.112)),
        ((0.107, 0.003, 0.107), (_MIDDLE, 0.108, 0.112)),
        ((0.107, 0.090, 0.002), (_MIDDLE, 0.018, 0.007)),
        ((0.128, 0.094, 0.002), (_MIDDLE, 0.018, _TOP - 0.002)),
    ], material=material, density=_DENSITY)


def _drawer(base: Body, level: str, material: str, metal: str) -> None:
    """A box that slides 16 cm towards -y, with a bar handle of 9 cm."""
    middle, region = _LEVELS[level]
    drawer = base.child(f'cabinet_{level}')
    drawer.inertia(3, 1)
    drawer.joint(f'{level}_level', 'slide', (0, 1, 0), (-0.16, 0.01), damping=50)
    drawer.site(f'{level}_region', (0.02993, 0.07561, 0.10224), (0.00328, 0.01128, region),
                turn('y', 90))
    drawer.boards(f'drawer_{level}', [
        ((0.103, 0.003, 0.033), (_MIDDLE, -0.075, middle + 0.0005)),
        ((0.002, 0.081, 0.027), (_MIDDLE - 0.099, 0.009, middle - 0.002)),
        ((0.002, 0.081, 0.027), (_MIDDLE + 0.099, 0.009, middle - 0.002)),
        ((0.097, 0.002, 0.027), (_MIDDLE, 0.088, middle - 0.002)),
        ((0.097, 0.081, 0.002), (_MIDDLE, 0.009, middle - 0.027)),
    ], material=material, density=_DENSITY)
    bar, feet = (0, -0.101, middle), [(x, -0.087, middle) for x in (-0.033, 0.033)]
    drawer.mesh(f'handle_{level}', merge(
        rod(0.006, 0.046).turned(Z_TO_X).moved(bar),
        *(rod(0.004, 0.009, 8).turned(Z_TO_Y).moved(foot) for foot in feet),
    ), material=metal)
    drawer.collision('box', (0.045, 0.006, 0.006), bar, mass=0.01)
    for foot in feet:
        drawer.collision('box', (0.004, 0.009, 0.004), foot, mass=0.002)


def _cabinet(name: str, grain: Image, drawer_grain: Image) -> ObjectAsset:
    asset = ObjectAsset(name, _FOLDER, bottom=-0.045, top=0.045, radius=0.045, textures_in=name)
    boards = asset.material('wood', grain, specular=0.1)
    fronts = asset.material('drawer_wood', drawer_grain, specular=0.1)
    metal = asset.material('metal', (0.75, 0.75, 0.78), specular=0.8, shininess=0.8)
    base = asset.body.child('base')
    base.site('top_side', (0.12534, 0.09438, 0.00147), (0.00354, 0.01567, 0.22152))
    _carcass(base, boards)
    # LIBERO lets the cabinet float 1 cm above the table.
    base.visual('box', (0.105, 0.080, 0.005), (_MIDDLE, 0.018, 0), material=boards)
    for level in _LEVELS:
        _drawer(base, level, fronts, metal)
    return asset


def build() -> list[ObjectAsset]:
    """Return both cabinets."""
    return [
        _cabinet('wooden_cabinet', wood((96, 62, 40), 7), wood((124, 82, 54), 10)),
        _cabinet('white_cabinet', wood((232, 230, 226), 8), wood((212, 210, 204), 13)),
    ]
