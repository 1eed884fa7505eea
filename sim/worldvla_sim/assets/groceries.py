# SPDX-License-Identifier: Apache-2.0
"""The eleven things from the supermarket: cans, bottles, cartons and boxes.

Sizes are rounded from the bounding boxes of LIBERO's collision geometry; the face an item stands
on is exact to half a millimetre, because it fixes the resting height.  Cans, cartons and the oval
bottles stand along the body's +y, the others along +z.
"""

from worldvla_sim.assets.labels import (
    alphabet_soup_label,
    bbq_label,
    butter_label,
    carton_label,
    cookies_label,
    cream_cheese_label,
    dressing_label,
    ketchup_label,
    pudding_label,
    tomato_label,
)
from worldvla_sim.assets.mjcf import UPRIGHT_Y, ObjectAsset
from worldvla_sim.assets.shapes import QUARTER_TURN, Cell, Mesh, arc, box, lathe, merge, polygon
from worldvla_sim.assets.textures import Image

_FOLDER = 'stable_hope_objects'
# Parts of a carton's image: front, side, roof, gable; of a flat box's: top, long and short edge.
_FRONT, _SIDE, _ROOF = (0.0, 0.0, 0.5, 0.84), (0.5, 0.0, 1.0, 0.84), (0.0, 0.86, 0.5, 1.0)
_GABLE: Cell = (0.5, 0.86, 1.0, 1.0)
_TOP, _LONG, _SHORT = (0.0, 0.0, 1.0, 0.6), (0.0, 0.6, 1.0, 0.8), (0.0, 0.8, 1.0, 1.0)


def _grocery(name: str, bottom: float, top: float, radius: float) -> ObjectAsset:
    return ObjectAsset(
        name, f'{_FOLDER}/{name}', bottom=bottom, top=top, radius=radius)


def _can(name: str, label: Image, mass: float, bottom: float) -> ObjectAsset:
    """A tin can of 62 mm diameter and 76 mm height, its middle half a millimetre under y = 0."""
    asset = _grocery(name, bottom, 0.04, 0.025)
    radius, half = 0.031, 0.038
    profile = [
        (0, -half), (radius, -half), (radius, half - 0.002), (radius - 0.0015, half),
        (radius - 0.003, half - 0.002), (0, half - 0.002),
    ]
    material = asset.material('label', label)
    mesh = lathe(profile).turned(QUARTER_TURN)  # the front to where LIBERO's cameras look from
    asset.body.mesh('can', mesh, (0, -0.0005, 0), UPRIGHT_Y, material=material)
    asset.body.collision('cylinder', (radius, half), (0, -0.0005, 0), UPRIGHT_Y, mass=mass)
    return asset


def _bottle_mesh(half_width: float, height: float, neck: float, flat: float) -> Mesh:
    """Return a flask that stands on z = 0: belly, shoulders, neck and cap, flattened along y."""
    shoulder = 0.70 * height
    cap = 0.80 * height
    profile = [
        (0, 0), (0.90 * half_width, 0), (half_width, 0.04 * height),
        (half_width, 0.45 * height), (0.96 * half_width, 0.6 * height),
        *arc((neck, shoulder - 0.02), (0.92 * half_width - neck, 0.03), 20, 80, 4),
        (neck, cap), (1.25 * neck, cap), (1.2 * neck, height), (0, height),
    ]
    return lathe(profile, 20).scaled((1, flat, 1))


def _oval_bottle(name: str, label: Image, mass: float, half: tuple[float, float],
                 low: float, high: float) -> ObjectAsset:
    """An oval bottle of half width and half depth `half` from y = low to y = high."""
    asset = _grocery(name, -0.06, 0.04, 0.025)
    height = high - low
    neck = 0.012
    mesh = _bottle_mesh(half[0], height, neck, half[1] / half[0])
    material = asset.material('label', label, specular=0.5, shininess=0.6)
    asset.body.mesh('bottle', mesh, (0, low, 0), UPRIGHT_Y, material=material)
    belly = 0.36 * height
    asset.body.collision('box', (half[0], belly, half[1]), (0, low + belly, 0), mass=0.85 * mass)
    top = (height - 2 * belly) / 2
    asset.body.collision('cylinder', (neck, top), (0, high - top, 0), UPRIGHT_Y, mass=0.15 * mass)
    return asset


def _bbq_sauce() -> ObjectAsset:
    """A slim bottle that stands along z, from -54.5 mm to 52.5 mm."""
    asset = _grocery('bbq_sauce', -0.06, 0.06, 0.015)
    low, high, half = -0.0545, 0.0525, (0.0235, 0.0145)
    mesh = _bottle_mesh(half[0], high - low, 0.010, half[1] / half[0])
    material = asset.material('label', bbq_label(), specular=0.5, shininess=0.6)
    asset.body.mesh('bottle', mesh, (0, 0, low), material=material)
    asset.body.collision('box', (*half, 0.039), (0, 0, low + 0.039), mass=0.0102)
    asset.body.collision('cylinder', (0.010, 0.0145), (0, 0, high - 0.0145), mass=0.002)
    return asset


def _carton(name: str, label: Image, radius: float) -> ObjectAsset:
    """A gable-top carton with a 53 mm square base, from y = -70 mm to 61 mm."""
    asset = _grocery(name, -0.06, 0.04, radius)
    half, low, eaves, ridge, fin = 0.0265, -0.070, 0.036, 0.053, 0.0615
    walls = box((half, half, (eaves - low) / 2), {
        '-y': _FRONT, '+y': _FRONT, '-x': _SIDE, '+x': _SIDE, '+z': _GABLE, '-z': _GABLE,
    }).moved((0, 0, (eaves + low) / 2))
    roof = merge(
        polygon([(-half, -half, eaves), (half, -half, eaves), (half, 0, ridge),
                 (-half, 0, ridge)], _ROOF),
        polygon([(half, half, eaves), (-half, half, eaves), (-half, 0, ridge),
                 (half, 0, ridge)], _ROOF),
        polygon([(half, -half, eaves), (half, half, eaves), (half, 0, ridge)], _GABLE),
        polygon([(-half, half, eaves), (-half, -half, eaves), (-half, 0, ridge)], _GABLE),
        box((half, 0.002, (fin - ridge) / 2 + 0.002),
            dict.fromkeys(('-x', '+x', '-y', '+y', '+z', '-z'), _GABLE)
            ).moved((0, 0, (fin + ridge) / 2 - 0.002)),
    )
    material = asset.material('label', label)
    asset.body.mesh('carton', merge(walls, roof), quat=UPRIGHT_Y, material=material)
    asset.body.collision(
        'box', (half, (eaves - low) / 2, half), (0, (eaves + low) / 2, 0), mass=0.0285)
    asset.body.collision(
        'box', (half, (fin - eaves) / 2, 0.009), (0, (fin + eaves) / 2, 0), mass=0.003)
    return asset


def _flat_box(name: str, label: Image, half: tuple[float, float, float], mass: float,
              sites: tuple[float, float, float], lift: float = 0.0) -> ObjectAsset:
    """A box that lies on its largest side; `sites` are bottom, top and horizontal offset."""
    asset = _grocery(name, *sites)
    ends = ('-x', '+x') if half[0] >= half[1] else ('-y', '+y')
    edges = ('-y', '+y') if half[0] >= half[1] else ('-x', '+x')
    cells = {'+z': _TOP, '-z': _TOP, **dict.fromkeys(edges, _LONG), **dict.fromkeys(ends, _SHORT)}
    material = asset.material('label', label)
    asset.body.mesh('box', box(half, cells), (0, 0, lift), material=material)
    asset.body.collision('box', half, (0, 0, lift), mass=mass)
    return asset


def build() -> list[ObjectAsset]:
    """Return all groceries."""
    return [
        _can('alphabet_soup', alphabet_soup_label(), 0.026, -0.04),
        _can('tomato_sauce', tomato_label(), 0.0265, -0.06),
        _oval_bottle('ketchup', ketchup_label(), 0.023, (0.028, 0.0185), -0.0725, 0.073),
        _oval_bottle('salad_dressing', dressing_label(), 0.022, (0.0265, 0.018), -0.073, 0.073),
        _bbq_sauce(),
        _carton('milk', carton_label('milk'), 0.03),
        _carton('orange_juice', carton_label('orange_juice'), 0.025),
        _flat_box('butter', butter_label(), (0.038, 0.020, 0.0087), 0.005, (-0.02, 0.02, 0.02)),
        _flat_box('cream_cheese', cream_cheese_label(), (0.0405, 0.0215, 0.009), 0.006,
                  (-0.025, 0.025, 0.03)),
        _flat_box('chocolate_pudding', pudding_label(), (0.040, 0.023, 0.0137), 0.010,
                  (-0.06, 0.04, 0.025), lift=0.0005),
        _flat_box('cookies', cookies_label(), (0.031, 0.041, 0.0095), 0.0096,
                  (-0.06, 0.04, 0.025)),
    ]
