# SPDX-License-Identifier: Apache-2.0
"""Write one LIBERO category as an MJCF file: bodies, collision and visual geoms, joints, sites.

The file must satisfy what LIBERO 0.1.4 and robosuite 1.4.0 look for: `worldbody/body/body` named
`object`, three offset sites that the placement samplers read, geoms of group 0 for collision (the
only group that has mass) and of group 1 for looks, and region sites with every attribute spelled
out.
Lengths are in metres, masses in kg, quaternions are (w, x, y, z).
"""

from collections.abc import Sequence
import math
from pathlib import PurePosixPath
from xml.etree import ElementTree as ET

import numpy as np

from worldvla_sim.assets.shapes import Mesh, box, merge
from worldvla_sim.assets.textures import Image, to_png

Vector = Sequence[float]
Color = tuple[float, float, float]  # red, green, blue in [0, 1]
ORIGIN = (0.0, 0.0, 0.0)

# Collision geoms: stiff and of high friction, so that 20 g objects neither sink into the table nor
# slip out of the gripper; the magnitudes are those of LIBERO's own objects.
_CONTACT = {
    'group': '0', 'rgba': '0 0 0 0', 'solref': '0.004 1', 'solimp': '0.97 0.99 0.001',
    'friction': '0.95 0.3 0.1',
}
_LOOKS = {'group': '1', 'contype': '0', 'conaffinity': '0', 'mass': '0'}


def numbers(values: Vector | np.ndarray) -> str:
    """Format numbers for an XML attribute with six significant digits."""
    return ' '.join(f'{value:.6g}' for value in np.ravel(np.asarray(values, dtype=np.float64)))


def turn(axis: str, degrees: float) -> tuple[float, float, float, float]:
    """Return the quaternion (w, x, y, z) of a turn about the body axis 'x', 'y' or 'z'."""
    half = math.radians(degrees) / 2
    vector = [math.sin(half) if name == axis else 0.0 for name in 'xyz']
    return (math.cos(half), vector[0], vector[1], vector[2])


def product(first: Vector, second: Vector) -> tuple[float, float, float, float]:
    """Return the quaternion (w, x, y, z) that turns by `second`, then by `first`."""
    w, x, y, z = first
    v, i, j, k = second
    return (w * v - x * i - y * j - z * k, w * i + x * v + y * k - z * j,
            w * j - x * k + y * v + z * i, w * k + x * j - y * i + z * v)


UPRIGHT_Y = turn('x', -90)  # lays the z axis of a shape along the body's +y (LIBERO's HOPE items)


class Body:
    """A body of the MJCF tree; every method appends one element to it."""

    def __init__(self, asset: 'ObjectAsset', element: ET.Element) -> None:
        self._asset = asset
        self.element = element

    def child(self, name: str, pos: Vector = ORIGIN, quat: Vector | None = None) -> 'Body':
        """Append a child body and return it."""
        attributes = {'name': name, 'pos': numbers(pos)}
        if quat is not None:
            attributes['quat'] = numbers(quat)
        return Body(self._asset, ET.SubElement(self.element, 'body', attributes))

    def collision(
        self, shape: str, size: Vector, pos: Vector = ORIGIN, quat: Vector | None = None, *,
        mass: float,
    ) -> None:
        """Append an invisible geom that touches and weighs."""
        self._geom(shape, size, pos, quat, {'mass': numbers([mass]), **_CONTACT})

    def visual(
        self, shape: str, size: Vector, pos: Vector = ORIGIN, quat: Vector | None = None, *,
        material: str,
    ) -> None:
        """Append a primitive geom that is only seen."""
        self._geom(shape, size, pos, quat, {'material': material, **_LOOKS})

    def solid(
        self, shape: str, size: Vector, pos: Vector = ORIGIN, quat: Vector | None = None, *,
        material: str, mass: float,
    ) -> None:
        """Append a primitive that is seen and touched at the same place."""
        self.visual(shape, size, pos, quat, material=material)
        self.collision(shape, size, pos, quat, mass=mass)

    def boards(
        self, key: str, boards: Sequence[tuple[Vector, Vector]], *, material: str,
        density: float, tile: float = 0.1,
    ) -> None:
        """
        Append boxes, given as (half size, position): one mesh to see, one geom each to touch.

        `density` is in kg/m^3; the material's image repeats every `tile` metres.
        """
        self.mesh(
            key, merge(*(box(half, tile=tile).moved(pos) for half, pos in boards)),
            material=material)
        for half, pos in boards:
            self.collision('box', half, pos, mass=8 * density * math.prod(half))

    def mesh(
        self, key: str, mesh: Mesh, pos: Vector = ORIGIN, quat: Vector | None = None, *,
        material: str,
    ) -> None:
        """Append a mesh that is only seen; `key` names it within the asset."""
        name = self._asset.add_mesh(key, mesh)
        self._geom('mesh', None, pos, quat, {'mesh': name, 'material': material, **_LOOKS})

    def joint(
        self, name: str, kind: str, axis: Vector, limits: tuple[float, float], damping: float,
        pos: Vector = ORIGIN,
    ) -> None:
        """Append a limited joint, `kind` 'slide' [m] or 'hinge' [rad]."""
        ET.SubElement(self.element, 'joint', {
            'name': name, 'type': kind, 'axis': numbers(axis), 'pos': numbers(pos),
            'limited': 'true', 'range': numbers(limits), 'damping': numbers([damping]),
        })

    def inertia(self, mass: float, moment: float) -> None:
        """Give the body a fixed mass and equal principal moments [kg m^2]."""
        ET.SubElement(self.element, 'inertial', {
            'pos': '0 0 0', 'mass': numbers([mass]), 'diaginertia': numbers([moment] * 3),
        })

    def site(
        self, name: str, size: Vector, pos: Vector = ORIGIN, quat: Vector = (1, 0, 0, 0), *,
        shape: str = 'box', rgba: Vector = (0.8, 0.8, 0.8, 0.0),
    ) -> None:
        """Append a site with every attribute that LIBERO parses as text."""
        ET.SubElement(self.element, 'site', {
            'name': name, 'type': shape, 'size': numbers(size), 'pos': numbers(pos),
            'quat': numbers(quat), 'rgba': numbers(rgba), 'group': '0',
        })

    def _geom(
        self, shape: str, size: Vector | None, pos: Vector, quat: Vector | None,
        attributes: dict[str, str],
    ) -> None:
        given = {'size': size, 'pos': pos, 'quat': quat}
        placed = {key: numbers(value) for key, value in given.items() if value is not None}
        ET.SubElement(self.element, 'geom', {'type': shape, **placed, **attributes})


class ObjectAsset:
    """One category: its MJCF tree, its textures, and the files they become."""

    def __init__(
        self, name: str, folder: str, *, bottom: float, top: float, radius: float,
        textures_in: str = '',
    ) -> None:
        """
        Start an asset whose XML is `folder/name.xml`.

        `bottom` and `top` are the heights of the offset sites along z and `radius` the offset of
        the horizontal one, all in metres; they feed LIBERO's placement samplers, so they must be
        the values of the interface, not of the geometry.  `textures_in` is a sub folder.
        """
        self.name = name
        self._folder = PurePosixPath(folder)
        self._textures_in = PurePosixPath(textures_in)
        self._images: dict[str, Image] = {}
        self._root = ET.Element('mujoco', {'model': name})
        self._asset = ET.SubElement(self._root, 'asset')
        outer = ET.SubElement(ET.SubElement(self._root, 'worldbody'), 'body')
        self.body = Body(self, ET.SubElement(outer, 'body', {'name': 'object'}))
        for site, pos in (
            ('bottom_site', (0, 0, bottom)), ('top_site', (0, 0, top)),
            ('horizontal_radius_site', (radius, radius, 0)),
        ):
            ET.SubElement(outer, 'site', {
                'name': site, 'pos': numbers(pos), 'size': '0.005', 'rgba': '0 0 0 0',
            })

    def material(
        self, key: str, look: Color | Image, *, specular: float = 0.2, shininess: float = 0.2,
    ) -> str:
        """Add a plain or a textured material and return its name."""
        name = f'{self.name}_{key}'
        attributes = {
            'name': name, 'specular': numbers([specular]), 'shininess': numbers([shininess]),
            'reflectance': '0',  # a reflecting material makes MuJoCo render the scene twice
        }
        if isinstance(look, np.ndarray):
            file = str(self._textures_in / f'{key}.png')
            self._images[file] = look
            texture = {'name': f'tex-{name}', 'type': '2d', 'file': file}
            ET.SubElement(self._asset, 'texture', texture)
            attributes['texture'] = texture['name']
        else:
            attributes['rgba'] = numbers((*look, 1))
        ET.SubElement(self._asset, 'material', attributes)
        return name

    def add_mesh(self, key: str, mesh: Mesh) -> str:
        """Write a mesh into the file itself and return its name."""
        name = f'{self.name}_{key}'
        ET.SubElement(self._asset, 'mesh', {
            'name': name, 'inertia': 'shell', 'vertex': numbers(mesh.vertices),
            'normal': numbers(mesh.normals), 'texcoord': numbers(mesh.texcoords),
            'face': ' '.join(str(index) for index in mesh.faces.ravel()),
        })
        return name

    def files(self) -> dict[str, bytes]:
        """Return the asset's files: path inside the pack -> content."""
        ET.indent(self._root)
        files = {str(self._folder / f'{self.name}.xml'): ET.tostring(self._root)}
        for path, image in self._images.items():
            files[str(self._folder / path)] = to_png(image)
        return files
