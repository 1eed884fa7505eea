# SPDX-License-Identifier: Apache-2.0
"""The black book and the caddy whose back compartment it goes into."""

from worldvla_sim.assets.mjcf import ObjectAsset
from worldvla_sim.assets.shapes import Cell, box
from worldvla_sim.assets.textures import Label

_FOLDER = 'turbosquid_objects'


def _black_book() -> ObjectAsset:
    """A book of 29 x 110 x 135 mm that stands upright on z = 2 mm; its spine faces +y."""
    asset = ObjectAsset('black_book', f'{_FOLDER}/black_book',
                        bottom=-0.06, top=0.04, radius=0.025)
    cover: Cell = (0.0, 0.0, 0.5, 1.0)
    spine: Cell = (0.55, 0.0, 0.75, 1.0)
    pages: Cell = (0.8, 0.0, 1.0, 1.0)
    label = Label((26, 26, 30), 256, 256)
    label.rectangle((0.78, 0, 1, 1), (232, 226, 206))
    for k in range(6):
        label.rectangle((0.80 + 0.033 * k, 0, 0.805 + 0.033 * k, 1), (200, 194, 176))
    label.rectangle((0.04, 0.05, 0.46, 0.07), (196, 160, 80))
    label.rectangle((0.04, 0.93, 0.46, 0.95), (196, 160, 80))
    label.text((0.08, 0.16, 0.42, 0.27), 'BOOK', (206, 172, 92))
    label.ellipse((0.14, 0.42, 0.36, 0.66), (196, 160, 80))
    label.ellipse((0.17, 0.45, 0.33, 0.63), (26, 26, 30))
    label.rectangle((0.55, 0.12, 0.75, 0.15), (196, 160, 80))
    label.rectangle((0.55, 0.85, 0.75, 0.88), (196, 160, 80))
    paper = asset.material('cover', label.image())
    half, middle = (0.0145, 0.055, 0.0675), (-0.0005, -0.012, 0.0695)
    mesh = box(half, {'-x': cover, '+x': cover, '+y': spine, '-y': pages, '+z': pages,
                      '-z': pages})
    asset.body.mesh('book', mesh, middle, material=paper)
    asset.body.collision('box', half, middle, mass=0.0425)
    return asset


def _desk_caddy() -> ObjectAsset:
    """
    A tray of 15 x 43 cm: one wide compartment on each side, a back and a front one between them.

    The back compartment (x > 0) is 62 x 134 mm, its floor is 24 mm high; LIBERO counts the book
    as inside while its lower middle is 15 to 146 mm above the caddy's origin.
    """
    asset = ObjectAsset('desk_caddy', f'{_FOLDER}/desk_caddy',
                        bottom=-0.06, top=0.04, radius=0.025)
    tin = asset.material('tin', (0.36, 0.47, 0.56), specular=0.3, shininess=0.3)
    inner = asset.material('inner', (0.46, 0.58, 0.67), specular=0.3, shininess=0.3)
    body = asset.body
    about_y = (0, 0, 1, 0)
    body.site('right_contain_region', (0.062, 0.0622, 0.0605), (0.0063, -0.1434, 0.0656), about_y)
    body.site('left_contain_region', (0.062, 0.0622, 0.0605), (0.0063, 0.1455, 0.0656), about_y)
    body.site('back_contain_region', (0.0278, 0.0622, 0.0605), (0.0336, -0.0006, 0.0856), about_y)
    body.site('front_contain_region', (0.0278, 0.036, 0.0622), (-0.031, -0.0006, 0.0405),
              (0, 0, 0.70711, -0.70711))
    body.boards('shell', [
        ((0.075, 0.216, 0.003), (0, 0, 0.004)),
        ((0.004, 0.216, 0.068), (0.071, 0, 0.075)),
        ((0.004, 0.216, 0.030), (-0.071, 0, 0.037)),
        ((0.067, 0.004, 0.050), (0, -0.212, 0.057)),
        ((0.067, 0.004, 0.050), (0, 0.212, 0.057)),
    ], material=tin, density=200)
    body.boards('inside', [
        ((0.067, 0.003, 0.062), (0, -0.071, 0.069)),
        ((0.067, 0.003, 0.062), (0, 0.071, 0.069)),
        ((0.003, 0.068, 0.054), (0, 0, 0.061)),
        ((0.032, 0.068, 0.0085), (0.035, 0, 0.0155)),
    ], material=inner, density=200)
    return asset


def build() -> list[ObjectAsset]:
    """Return book and caddy."""
    return [_black_book(), _desk_caddy()]
