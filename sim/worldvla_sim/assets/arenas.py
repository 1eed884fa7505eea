# SPDX-License-Identifier: Apache-2.0
"""The five rooms of the evaluation tasks and what stands in their background.

The heights of the table tops are LIBERO's interface; the furniture behind the robot is our own and
is only seen, so it costs triangles but no physics.
"""

from collections.abc import Callable
from xml.etree import ElementTree as ET

import numpy as np

from worldvla_sim.assets.mjcf import Vector, turn
from worldvla_sim.assets.rooms import Room
from worldvla_sim.assets.textures import Image, Label, plaster, tiles, to_png, wood

LIVING_ROOM_TABLE = 0.4368  # height of the table top [m]
STUDY_TABLE = 0.885

_TEXTURES: dict[str, Callable[[], Image]] = {
    'light-gray-floor-tile': lambda: tiles((178, 178, 176), (150, 150, 148), 2, 1),
    'gray_ceramic_tile': lambda: tiles((150, 152, 156), (120, 122, 126), 4, 2),
    'seamless_wood_planks_floor': lambda: wood((150, 112, 76), 3, 256, planks=8),
    'light-gray-plaster': lambda: plaster((206, 206, 203), 4),
    'yellow_linen_wall_texture': lambda: plaster((224, 206, 152), 5),
}


def floor_textures() -> dict[str, bytes]:
    """Return the floor and wall images that LIBERO's style table asks for by name."""
    return {f'textures/{name}.png': to_png(draw()) for name, draw in _TEXTURES.items()}


def _floor_room() -> Room:
    room = Room('libero_floor_base_style', 'light-gray-floor-tile', 'light-gray-plaster')
    room.floor(room.body('floor'))
    return room


def _add_table(room: Room) -> None:
    """Add the table that LIBERO resizes to 1 x 1.2 m; the sizes written here are placeholders."""
    room.material('table_wood', wood((214, 186, 150), 9, 256))
    table = room.body('table')
    size, middle = (0.4, 0.4, 0.4), (0, 0, 0)
    room.support(size, middle, parent=table, name='table_collision')
    room.scenery('box', size, middle, 'table_wood', parent=table, name='table_visual')
    for k in range(1, 5):
        room.scenery('cylinder', (0.05, 0.1), (0, 0, 0), 'table_wood',
                     name=f'table_leg{k}_visual', parent=table)
    ET.SubElement(table, 'site', {
        'name': 'table_top', 'pos': '0 0 0.4', 'size': '0.001', 'rgba': '0 0 0 0',
    })


def _table_room() -> Room:
    room = Room('libero_tabletop_base_style', 'light-gray-floor-tile', 'light-gray-plaster')
    room.floor(room.world)
    _add_table(room)
    return room


def _kitchen() -> Room:
    """A table before a row of cupboards with a tiled splashback and a fridge."""
    room = Room('libero_kitchen_tabletop_base_style', 'gray_ceramic_tile',
                'yellow_linen_wall_texture')
    room.floor(room.world)
    _add_table(room)
    fronts = room.material('fronts', (0.36, 0.47, 0.44))
    dark = room.material('gaps', (0.24, 0.33, 0.31))
    top = room.material('worktop', (0.86, 0.84, 0.80))
    steel = room.material('steel', (0.72, 0.73, 0.75))
    copper = room.material('copper', (0.76, 0.42, 0.26))
    black = room.material('iron', (0.12, 0.12, 0.13))
    tile = room.material('splashback', tiles((236, 234, 226), (190, 186, 176), 8, 11))
    room.scenery('box', (0.28, 1.6, 0.43), (-1.70, -0.5, 0.43), fronts)
    room.scenery('box', (0.30, 1.62, 0.02), (-1.70, -0.5, 0.88), top)
    for y in (-1.6, -1.05, -0.5, 0.05, 0.6):
        room.scenery('box', (0.005, 0.008, 0.40), (-1.417, y, 0.43), dark)
    room.scenery('box', (0.01, 1.6, 0.22), (-1.975, -0.5, 1.12), tile)
    room.scenery('box', (0.16, 1.6, 0.30), (-1.83, -0.5, 1.64), fronts)
    for y in (-1.6, -1.05, -0.5, 0.05, 0.6):
        room.scenery('box', (0.005, 0.008, 0.28), (-1.667, y, 1.64), dark)
    room.scenery('box', (0.30, 0.35, 0.95), (-1.68, 1.55, 0.95), steel)
    room.scenery('cylinder', (0.012, 0.30), (-1.36, 1.27, 1.2), dark)
    room.scenery('cylinder', (0.13, 0.09), (-1.66, 0.45, 0.99), copper)
    room.scenery('cylinder', (0.10, 0.06), (-1.66, -1.05, 0.96), black)
    room.scenery('cylinder', (0.075, 0.13), (-1.72, -0.75, 1.03), steel)
    return room


def _living_room() -> Room:
    """A long low table; behind it a sofa, a picture and a lamp."""
    room = Room('libero_living_room_tabletop_base_style', 'seamless_wood_planks_floor',
                'light-gray-plaster')
    floor = room.body('floor')
    room.floor(floor)
    room.material('table_wood', wood((150, 96, 62), 12, 256))
    table = room.body('living_room_table')
    # The robot stands on the table's far end, 17 mm above whose underside LIBERO puts its base.
    _slab(room, table, (0.55, 0.80, 0.012), (-0.15, 0, LIVING_ROOM_TABLE))
    for x in (-0.64, 0.34):
        for y in (-0.74, 0.74):
            room.scenery('box', (0.03, 0.03, 0.206), (x, y, 0.206), 'table_wood', parent=table)
    sofa = room.material('sofa', (0.28, 0.40, 0.50))
    cushion = room.material('cushion', (0.86, 0.62, 0.30))
    room.scenery('box', (0.35, 1.1, 0.22), (-1.55, 0, 0.22), sofa)
    room.scenery('box', (0.12, 1.1, 0.30), (-1.82, 0, 0.62), sofa)
    for y in (-1.15, 1.15):
        room.scenery('box', (0.38, 0.10, 0.32), (-1.55, y, 0.32), sofa)
    for y in (-0.8, 0.75):
        room.scenery('box', (0.06, 0.22, 0.20), (-1.64, y, 0.64), cushion, turn('y', -15))
    _picture(room, 'landscape', (0.01, 0.45, 0.28), (-1.98, 0.0, 1.45))
    _lamp(room, (-1.6, 1.75, 0))
    return room


def _study() -> Room:
    """A desk; behind it a bookshelf, a picture, a plant and a lamp."""
    room = Room('libero_study_base_style', 'light-gray-floor-tile', 'light-gray-plaster')
    room.floor(room.world)
    room.material('table_wood', wood((186, 140, 96), 14, 256))
    table = room.body('study_table')
    _slab(room, table, (0.50, 0.70, 0.015), (-0.20, 0, STUDY_TABLE))
    for y in (-0.67, 0.67):
        room.scenery('box', (0.46, 0.015, 0.43), (-0.20, y, 0.43), 'table_wood', parent=table)
    shelf = room.material('shelf', (0.93, 0.92, 0.90))
    for z in (0.35, 0.75, 1.15, 1.55, 1.95):
        room.scenery('box', (0.14, 0.45, 0.012), (-1.84, -0.95, z), shelf)
    for y in (-1.40, -0.50):
        room.scenery('box', (0.14, 0.012, 0.98), (-1.84, y, 0.98), shelf)
    colors = ((0.62, 0.20, 0.18), (0.20, 0.36, 0.55), (0.85, 0.66, 0.25), (0.24, 0.42, 0.28))
    for k, color in enumerate(colors):
        room.material(f'books{k}', color)
    for k in range(24):
        row, place = divmod(k, 8)
        height = 0.12 + 0.02 * (k * 5 % 3)
        room.scenery('box', (0.09, 0.030, height),
                     (-1.80, -1.33 + 0.075 * place + 0.02 * (row % 2), 0.762 + 0.4 * row + height),
                     f'books{k * 3 % 4}')
    _picture(room, 'landscape', (0.01, 0.32, 0.24), (-1.98, 0.35, 1.55))
    pot = room.material('pot', (0.70, 0.42, 0.30))
    leaves = room.material('leaves', (0.22, 0.46, 0.24))
    room.scenery('cylinder', (0.14, 0.16), (-1.6, 1.1, 0.16), pot)
    for x, y, z, tilt in ((0, 0, 0.75, 0), (0.1, 0.16, 0.62, 25), (-0.05, -0.16, 0.66, -25)):
        room.scenery('ellipsoid', (0.06, 0.07, 0.45), (-1.6 + x, 1.1 + y, z), leaves,
                     turn('x', -tilt))
    _lamp(room, (-1.6, -0.1, 0))
    return room


def _slab(room: Room, table: ET.Element, half: Vector, top: Vector) -> None:
    """Add a table top, given the middle of its upper side."""
    pos = (top[0], top[1], top[2] - half[2])
    room.support(half, pos, parent=table)
    room.scenery('box', half, pos, 'table_wood', parent=table)


def _picture(room: Room, name: str, half: Vector, pos: Vector) -> None:
    """Hang a framed landscape on the rear wall."""
    label = Label((150, 190, 220), 128, 128)
    label.ellipse((0.62, 0.12, 0.82, 0.36), (250, 226, 150))
    label.polygon([(0, 0.75), (0.3, 0.35), (0.6, 0.75)], (96, 116, 140))
    label.polygon([(0.35, 0.8), (0.7, 0.45), (1, 0.8)], (120, 140, 160))
    label.rectangle((0, 0.7, 1, 1), (104, 146, 92))
    room.material(name, np.rot90(label.image()))  # how MuJoCo turns a cube texture's +x side
    frame = room.material('frame', (0.20, 0.16, 0.13))
    room.scenery('box', half, pos, frame)
    inner = (half[0], half[1] - 0.03, half[2] - 0.03)
    room.scenery('box', inner, (pos[0] + 0.005, pos[1], pos[2]), name)


def _lamp(room: Room, foot: Vector) -> None:
    """Stand a floor lamp of 1.5 m."""
    brass = room.material('brass', (0.62, 0.52, 0.32))
    shade = room.material('shade', (0.96, 0.92, 0.80))
    room.scenery('cylinder', (0.14, 0.01), (foot[0], foot[1], 0.01), brass)
    room.scenery('cylinder', (0.012, 0.65), (foot[0], foot[1], 0.65), brass)
    room.scenery('cylinder', (0.17, 0.13), (foot[0], foot[1], 1.42), shade)


def build() -> list[Room]:
    """Return all rooms."""
    return [_floor_room(), _table_room(), _kitchen(), _living_room(), _study()]
