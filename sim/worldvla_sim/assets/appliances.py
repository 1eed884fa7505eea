# SPDX-License-Identifier: Apache-2.0
"""The flat stove with its knob and the microwave with its door.

Joints, regions and the height of the hot plate are LIBERO's interface.
"""

from worldvla_sim.assets.mjcf import ObjectAsset, turn
from worldvla_sim.assets.shapes import lathe, merge, rod

_FOLDER = 'articulated_objects'


def _flat_stove() -> ObjectAsset:
    """A steel plate of 19 cm that reaches 25 mm above the table, and the knob beside it."""
    asset = ObjectAsset('flat_stove', _FOLDER, bottom=-0.045, top=0.045, radius=0.045)
    steel = asset.material('steel', (0.70, 0.71, 0.73), specular=0.6, shininess=0.6)
    black = asset.material('black', (0.10, 0.10, 0.11), specular=0.5, shininess=0.6)
    iron = asset.material('iron', (0.24, 0.24, 0.25), specular=0.3, shininess=0.3)
    red = asset.material('mark', (0.85, 0.15, 0.10))
    base = asset.body.child('base')
    burner = base.child('burner', (0.15, 0, 0))
    burner.site('cook_region', (0.075, 0.075, 0.0025))
    burner.solid('box', (0.095, 0.095, 0.0225), (0, 0, 0.0025), material=steel, mass=1.0)
    burner.mesh('glass', lathe([(0.072, 0.0254), (0, 0.0254)], 32), material=black)
    burner.mesh('rings', merge(
        lathe([(0.064, 0.0260), (0.048, 0.0260)], 32), lathe([(0.046, 0.0260), (0.028, 0.0260)]),
    ), material=iron)
    # LIBERO shows this ring while the stove is on.
    burner.site('burner', (0.0625, 0.0005, 0.005), (0, 0, 0.0268), shape='cylinder',
                rgba=(0.95, 0.12, 0.05, 0))
    base.solid('box', (0.055, 0.060, 0.010), (0.003, 0, -0.010), material=steel, mass=0.2)
    knob = base.child('button', quat=turn('z', 90))
    knob.inertia(3, 1)
    knob.joint('button', 'hinge', (0, 0, 1), (-0.005, 2.1), damping=1)
    knob.mesh('knob', rod(0.046, 0.0055, 24).moved((0, 0, 0.0065)), material=black)
    knob.collision('cylinder', (0.046, 0.0055), (0, 0, 0.0065), mass=0.05)
    knob.solid('box', (0.009, 0.040, 0.019), (0, 0, 0.031), material=iron, mass=0.05)
    knob.visual('box', (0.003, 0.014, 0.0005), (0, -0.022, 0.0503), material=red)
    return asset


def _microwave() -> ObjectAsset:
    """A white oven of 345 x 196 x 187 mm, open to the front (-y), its door hinged on the left."""
    asset = ObjectAsset('microwave', _FOLDER, bottom=-0.06, top=0.06, radius=0.015)
    white = asset.material('case', (0.90, 0.90, 0.89), specular=0.4, shininess=0.5)
    inner = asset.material('inner', (0.62, 0.64, 0.66), specular=0.2, shininess=0.2)
    black = asset.material('black', (0.07, 0.07, 0.08), specular=0.6, shininess=0.7)
    steel = asset.material('steel', (0.75, 0.75, 0.78), specular=0.8, shininess=0.8)
    body = asset.body
    body.site('top_side', (0.12, 0.0835, 0.005), (0, 0.01, 0.2))
    body.site('heating_region', (0.12, 0.0835, 0.08), (0, 0.01, 0.096))
    for half, pos in (
        ((0.1725, 0.098, 0.006), (0, 0.013, 0.006)),
        ((0.1725, 0.098, 0.004), (0, 0.013, 0.183)),
        ((0.005, 0.098, 0.0835), (-0.1675, 0.013, 0.0955)),
        ((0.033, 0.098, 0.0835), (0.1395, 0.013, 0.0955)),
        ((0.1345, 0.004, 0.0835), (-0.028, 0.107, 0.0955)),
    ):
        body.solid('box', half, pos, material=white, mass=0.5)
    body.solid('box', (0.1345, 0.094, 0.002), (-0.028, 0.009, 0.014), material=inner, mass=0.2)
    body.visual('box', (0.028, 0.0005, 0.076), (0.1395, -0.0855, 0.0955), material=black)
    body.visual('box', (0.020, 0.0005, 0.012), (0.1395, -0.0862, 0.148), material=steel)
    for row in range(4):
        for x in (0.128, 0.151):
            body.visual('box', (0.008, 0.0005, 0.007), (x, -0.0862, 0.112 - 0.022 * row),
                        material=steel)
    for x in (-0.15, 0.15):  # LIBERO lets the oven float 2 cm above the table
        body.visual('box', (0.012, 0.085, 0.010), (x, 0.013, -0.010), material=black)
    door = body.child('microdoorroot', (-0.1725, -0.088, 0.096))
    door.joint('microjoint', 'hinge', (0, 0, 1), (-2.094, 0), damping=0.5)
    door.solid('box', (0.136, 0.006, 0.090), (0.1375, -0.006, 0), material=white, mass=0.5)
    door.visual('box', (0.098, 0.0005, 0.062), (0.125, -0.0125, 0), material=black)
    door.visual('box', (0.098, 0.0005, 0.062), (0.125, 0.0003, 0), material=black)
    door.mesh('handle', rod(0.006, 0.056).moved((0.252, -0.034, 0)), material=steel)
    door.collision('box', (0.006, 0.006, 0.056), (0.252, -0.034, 0), mass=0.04)
    for z in (-0.045, 0.045):
        door.solid('box', (0.004, 0.010, 0.004), (0.252, -0.022, z), material=steel, mass=0.01)
    return asset


def build() -> list[ObjectAsset]:
    """Return all appliances."""
    return [_flat_stove(), _microwave()]
