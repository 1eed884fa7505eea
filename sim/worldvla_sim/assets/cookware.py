# SPDX-License-Identifier: Apache-2.0
"""The moka pot and the frying pan of libero_10."""

import numpy as np

from worldvla_sim.assets.dishes import wall_ring
from worldvla_sim.assets.mjcf import ObjectAsset, turn
from worldvla_sim.assets.shapes import lathe, merge, polygon, rod, tube


def _moka_pot() -> ObjectAsset:
    """
    An eight-sided pot of 151 mm height: wide boiler, narrow waist, jug, lid with a knob.

    The origin is 66 mm above its foot.  The handle points to +y, the spout to -y.  The boiler is
    80 mm wide, as much as the gripper opens, so a robot takes it by the waist, jug or handle.
    """
    asset = ObjectAsset('moka_pot', 'turbosquid_objects/moka_pot',
                        bottom=-0.06, top=0.04, radius=0.025)
    metal = asset.material('aluminium', (0.74, 0.75, 0.77), specular=0.9, shininess=0.7)
    black = asset.material('bakelite', (0.09, 0.09, 0.10), specular=0.4, shininess=0.5)
    body = asset.body
    profile = [
        (0, -0.066), (0.039, -0.066), (0.040, -0.062), (0.032, -0.008), (0.033, -0.006),
        (0.033, 0.001), (0.029, 0.004), (0.034, 0.058), (0.035, 0.062), (0.010, 0.074),
        (0, 0.074),
    ]
    spout = merge(
        polygon([(-0.012, -0.030, 0.058), (0, -0.030, 0.030), (0, -0.054, 0.058)]),
        polygon([(0, -0.030, 0.030), (0.012, -0.030, 0.058), (0, -0.054, 0.058)]),
        polygon([(-0.012, -0.030, 0.058), (0, -0.054, 0.058), (0.012, -0.030, 0.058)]),
    )
    body.mesh('pot', merge(lathe(profile, 8), spout), material=metal)
    body.mesh('knob', lathe([(0, 0.072), (0.005, 0.072), (0.008, 0.084), (0, 0.086)], 12),
              material=black)
    path = [(0, 0.030, 0.050), (0, 0.055, 0.056), (0, 0.078, 0.052), (0, 0.086, 0.036),
            (0, 0.084, 0.014), (0, 0.078, -0.010)]
    body.mesh('handle', tube(path, 0.006), material=black)
    body.collision('cylinder', (0.039, 0.027), (0, 0, -0.039), mass=0.034)
    body.collision('cylinder', (0.032, 0.038), (0, 0, 0.026), mass=0.026)
    body.collision('cylinder', (0.008, 0.011), (0, 0, 0.075), mass=0.002)
    body.collision('box', (0.005, 0.026, 0.006), (0, 0.058, 0.052), mass=0.002)
    body.collision('box', (0.005, 0.006, 0.030), (0, 0.082, 0.020), mass=0.003)
    return asset


def _frypan() -> ObjectAsset:
    """A pan of 20 cm diameter and 5 cm height with a 16 cm handle towards +x."""
    name = 'chefmate_8_frypan'
    asset = ObjectAsset(name, f'stable_scanned_objects/{name}',
                        bottom=-0.06, top=0.04, radius=0.025)
    steel = asset.material('steel', (0.30, 0.30, 0.32), specular=0.5, shininess=0.5)
    coating = asset.material('coating', (0.13, 0.13, 0.14), specular=0.3, shininess=0.4)
    black = asset.material('grip', (0.06, 0.06, 0.06), specular=0.2, shininess=0.2)
    body = asset.body
    outside = [(0, 0.001), (0.074, 0.001), (0.080, 0.006), (0.099, 0.046), (0.101, 0.050),
               (0.098, 0.050)]
    inside = [(0.098, 0.050), (0.096, 0.046), (0.077, 0.010), (0.072, 0.006), (0, 0.006)]
    body.mesh('outside', lathe(outside, 32), material=steel)
    body.mesh('inside', lathe(inside, 32), material=coating)
    rise = np.degrees(np.arctan2(0.012, 0.16))
    body.mesh('grip', rod(0.010, 0.075), (0.184, 0, 0.049), turn('y', 90 - rise), material=black)
    body.visual('box', (0.020, 0.006, 0.004), (0.112, 0, 0.042), turn('y', -rise), material=steel)
    body.collision('cylinder', (0.074, 0.003), (0, 0, 0.004), mass=0.030)
    wall_ring(body, (0.077, 0.004), (0.098, 0.050), boards=16, thickness=0.004, mass=0.015)
    body.collision('box', (0.080, 0.009, 0.008), (0.178, 0, 0.049), turn('y', -rise), mass=0.005)
    return asset


def build() -> list[ObjectAsset]:
    """Return pot and pan."""
    return [_moka_pot(), _frypan()]
