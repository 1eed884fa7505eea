# SPDX-License-Identifier: Apache-2.0
"""The flat stove with its knob and the microwave with its door.

Joints, regions and the height of the hot plate are LIBERO's interface.
"""

from worldvla_sim.assets.mjcf import ObjectAsset, turn

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
    burner.visual('cylinder', (0.072, 0.0004), (0, 0, 0.0252), material=black)
    for radius, top in ((0.064, 0.0258), (0.048, 0.0261), (0.046, 0.0264), (0.028, 0.0267)):
        look = iron if radius in (0.064, 0.046) else black
        burner.visual('cylinder', (radius, 0.0003), (0, 0, top), material=look)
    # LIBERO shows this ring while the stove is on.
    burner.site('burner', (0.0625, 0.0005, 0.005), (0, 0, 0.0268), shape='cylinder',
                rgba=(0.95, 0.12, 0.05, 0))
    base.solid('box', (0.055, 0.060, 0.010), (0.003, 0, -0.010), material=steel, mass=0.2)
    knob = base.child('button', quat=turn('z', 90))
    knob.inertia(3, 1)
    knob.joint('button', 'hinge', (0, 0, 1), (-0.005, 2.1), damping=1)
    knob.solid('cylinder', (0.046, 0.0055), (0, 0, 0.0065), material=black, mass=0.05)
    knob.solid('box', (0.009, 0.040, 0.019), (0, 0, 0.031), material=iron, mass=0.05)
    knob.visual('box', (0.003, 0.014, 0.0005), (0, -0.022, 0.0503), material=red)
    return asset


def build() -> list[ObjectAsset]:
    """Return all appliances."""
    return [_flat_stove()]
